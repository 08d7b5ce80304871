//! Whose a socket is now. Places among the workloads are used again when one has left, enrolments are not: what was noted
//! with another one means nothing any more.

use sidecar_common::{
    settings::{MAX_WORKLOADS, WORKLOAD_PROXY_SPLICES, WORKLOAD_SPLICES, Workload},
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
    let Some(account) = ACCOUNTS.get_ptr(workload) else {
        return 0;
    };
    let account = read(account);
    let flag = |since_ns: u64, flag: u32| if since_ns == 0 { 0 } else { flag };
    flag(account.application_splices_ns, WORKLOAD_SPLICES)
        | flag(account.proxy_splices_ns, WORKLOAD_PROXY_SPLICES)
}

/// The workload that the socket belongs to.
#[inline(always)]
pub fn workload_of(state: &SocketState) -> Option<&'static Workload> {
    enrolled(state.workload, state.enrolment)
}
