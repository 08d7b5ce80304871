//! Whose a socket is now. Places among the workloads are used again when one has left, enrolments are not: what was noted
//! with another one means nothing any more.

use sidecar_common::{
    settings::{MAX_WORKLOADS, Workload},
    socket_state::SocketState,
};

use crate::{
    context::read,
    maps::{ACCOUNTS, WORKLOADS},
};

/// The workload in this place, if it is the one that was meant.
#[inline(always)]
pub fn enrolled(workload: u32, enrolment: u64) -> Option<&'static Workload> {
    if workload >= MAX_WORKLOADS {
        return None;
    }
    let found: &Workload = WORKLOADS.get(workload)?;
    if enrolment == 0 || found.enrolment != enrolment {
        return None;
    }
    Some(found)
}

/// The `SPLICES` flags of the workload in this place.
#[inline(always)]
pub fn splices(workload: u32) -> u32 {
    ACCOUNTS
        .get_ptr(workload)
        .map_or(0, |account| read(account).splices)
}

/// The workload that the socket belongs to.
#[inline(always)]
pub fn workload_of(state: &SocketState) -> Option<&'static Workload> {
    enrolled(state.workload, state.enrolment)
}
