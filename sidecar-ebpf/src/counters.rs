//! Counters per workload, and events that userspace is told at once.

use sidecar_common::{
    address::Address,
    flow::FlowKey,
    record::{
        COUNTERS as COUNTER_SLOTS, Counter, EVENT_EGRESS_DENIED, EVENT_SPLICE, Event, MAX_EVENTS,
        MAX_SPLICE_EVENTS,
    },
    settings::protocol::TCP,
};

use crate::{
    context::{current_pid, entry, now_ns, update},
    maps::{ACCOUNTS, COUNTERS, EVENTS},
};

/// Adds `amount` to a counter of a workload.
#[inline(always)]
pub fn count(workload: u32, counter: Counter, amount: u64) {
    let index = counter as usize;
    if let Some(counters) = COUNTERS.get_ptr_mut(workload)
        && index < COUNTER_SLOTS
    {
        update(counters, |c| {
            c.counts[index] = c.counts[index].wrapping_add(amount)
        });
    }
}

/// Tells userspace; dropped when nobody reads fast enough, or the workload has told too much. It does not say which process it
/// was: before Linux 6.10 only some types of program may ask that, and those that packets run would name whomever they
/// interrupted.
#[inline(always)]
pub fn event(kind: u32, workload: u32, address: Address) {
    send(&Event {
        kind,
        workload,
        address,
        ..Event::default()
    });
}

/// As `event`, for hooks in a system call that may ask whose it is: cgroup/connect and tracing.
#[inline(always)]
pub fn event_of_task(kind: u32, workload: u32, address: Address) {
    send(&Event {
        kind,
        workload,
        pid: current_pid(),
        address,
        ..Event::default()
    });
}

/// The rule `rule` denies the destination. `pid`: 0 where the hook cannot know.
#[inline(always)]
pub fn denial(workload: u32, pid: u32, rule: u32, destination: Address, protocol: u32) {
    count(workload, Counter::Denied, 1);
    send(&Event {
        kind: EVENT_EGRESS_DENIED,
        workload,
        pid,
        rule: rule as i32,
        address: destination,
        protocol,
        ..Event::default()
    });
}

/// The current task reads a socket with splice. `cookie`, `flow`: of the socket, if redirected bytes wait there, else zeros.
#[inline(always)]
pub fn event_of_splice(workload: u32, cookie: u64, flow: FlowKey) {
    send(&Event {
        kind: EVENT_SPLICE,
        workload,
        pid: current_pid(),
        cookie,
        address: flow.remote,
        local: flow.local,
        ..Event::default()
    });
}

/// Whether the workload has told no more than its part of late. What one has to be told of a reader that splices is not lost
/// for what others, or the workload itself, are refused.
#[inline(always)]
fn may_tell(event: &Event) -> bool {
    const SECOND_NS: u64 = 1_000_000_000;
    let Some(account) = ACCOUNTS.get_ptr_mut(event.workload) else {
        return false;
    };
    let account = entry(account);
    let now_ns = now_ns();
    if now_ns.wrapping_sub(account.events_since_ns) > SECOND_NS {
        account.events_since_ns = now_ns;
        account.events = 0;
        account.splice_events = 0;
    }
    // One packet after another is soon denied: that leaves room for what else there is to tell.
    let datagram = event.pid == 0 || event.protocol != u32::from(TCP);
    let (told, most) = if event.kind == EVENT_SPLICE {
        (&mut account.splice_events, MAX_SPLICE_EVENTS)
    } else if event.kind == EVENT_EGRESS_DENIED && datagram {
        (&mut account.events, MAX_EVENTS / 2)
    } else {
        (&mut account.events, MAX_EVENTS)
    };
    let may = *told < most;
    if may {
        *told += 1;
    }
    may
}

#[inline(always)]
fn send(event: &Event) {
    if may_tell(event) {
        let _ = EVENTS.output(event, 0);
    }
}
