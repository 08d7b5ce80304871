//! Counters per workload, and events that userspace is told at once.

use sidecar_common::{
    address::Address,
    record::{COUNTERS as COUNTER_SLOTS, Counter, Event},
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
    send(kind, workload, 0, fd, address);
}

/// As `event`, for hooks in a system call that may ask whose it is: cgroup/connect and tracing.
#[inline(always)]
pub fn event_of_task(kind: u32, workload: u32, fd: i32, address: Address) {
    send(kind, workload, current_pid(), fd, address);
}

/// `fd`: for splice.
#[inline(always)]
fn send(kind: u32, workload: u32, pid: u32, fd: i32, address: Address) {
    let event = Event {
        kind,
        workload,
        pid,
        fd,
        address,
        _pad: 0,
    };
    let _ = EVENTS.output(&event, 0);
}
