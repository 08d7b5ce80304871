//! Counters per workload, and events that userspace is told at once.

use sidecar_common::{
    address::Address,
    record::{COUNTERS as COUNTER_SLOTS, Counter, EVENT_EGRESS_DENIED, Event},
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
pub fn event(kind: u32, workload: u32, fd: i32, address: Address) {
    send(kind, workload, 0, fd, address, 0);
}

/// As `event`, for hooks in a system call that may ask whose it is: cgroup/connect and tracing.
#[inline(always)]
pub fn event_of_task(kind: u32, workload: u32, fd: i32, address: Address) {
    send(kind, workload, current_pid(), fd, address, 0);
}

/// The rule `rule` denies the destination. `pid`: 0 where the hook cannot know.
#[inline(always)]
pub fn denial(workload: u32, pid: u32, rule: u32, destination: Address, protocol: u32) {
    count(workload, Counter::Denied, 1);
    let kind = EVENT_EGRESS_DENIED;
    send(kind, workload, pid, rule as i32, destination, protocol);
}

/// `fd`: for splice.
#[inline(always)]
fn send(kind: u32, workload: u32, pid: u32, fd: i32, address: Address, protocol: u32) {
    let event = Event {
        kind,
        workload,
        pid,
        fd,
        address,
        protocol,
    };
    let _ = EVENTS.output(&event, 0);
}
