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

/// Tells userspace; dropped when nobody reads fast enough. `fd`: for splice.
#[inline(always)]
pub fn event(kind: u32, workload: u32, fd: i32, address: Address) {
    let event = Event {
        kind,
        workload,
        pid: current_pid(),
        fd,
        address,
        _pad: 0,
    };
    let _ = EVENTS.output(&event, 0);
}
