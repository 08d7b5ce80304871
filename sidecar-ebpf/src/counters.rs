//! Counters per workload, and events that userspace is told at once.

use sidecar_common::{
    address::Address,
    flow::FlowKey,
    record::{COUNTERS as COUNTER_SLOTS, Counter, EVENT_SPLICE, Event},
};

use crate::{
    context::{current_pid, update},
    maps::{COUNTERS, EVENTS},
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

/// Tells userspace; dropped when nobody reads fast enough. It does not say which process it was: before Linux 6.10 only
/// some types of program may ask that, and those that packets run would name whomever they interrupted.
#[inline(always)]
pub fn event(kind: u32, workload: u32, address: Address) {
    send(&Event {
        kind,
        workload,
        pid: 0,
        rule: 0,
        address,
        local: Address::default(),
    });
}

/// As `event`, for hooks in a system call that may ask whose it is: cgroup/connect and tracing.
#[inline(always)]
pub fn event_of_task(kind: u32, workload: u32, rule: i32, address: Address) {
    send(&Event {
        kind,
        workload,
        pid: current_pid(),
        rule,
        address,
        local: Address::default(),
    });
}

/// The current task reads a socket with splice; `flow`: if redirected bytes wait there, else all zeros.
#[inline(always)]
pub fn event_of_splice(workload: u32, flow: FlowKey) {
    send(&Event {
        kind: EVENT_SPLICE,
        workload,
        pid: current_pid(),
        rule: 0,
        address: flow.remote,
        local: flow.local,
    });
}

#[inline(always)]
fn send(event: &Event) {
    let _ = EVENTS.output(event, 0);
}
