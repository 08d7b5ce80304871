//! How both ends of a connection meet: the connecting one leaves a record before its SYN, the accepted one takes it.
//!
//! Within a workload the record hands over addresses, which must not fail: it is in the workload's own maps, one for its
//! application and one for its proxy, and where that is full the connection is refused. Between workloads it only lets the two sockets find each other for redirect.

use sidecar_common::{
    flow::{FlowKey, Rendezvous},
    socket_state::SocketState,
};

use crate::{
    context::{now_ns, read},
    enrolment::workload_of,
    maps::{DIALS, HANDOVERS, Handovers, PAIRINGS},
};

const ANY: u64 = 0;

/// Keeps a place for a connection that is about to be made. `None`: the workload has used up its own.
#[inline(always)]
pub fn reserve(state: &SocketState, cookie: u64) -> Option<()> {
    let place = Rendezvous {
        owner: cookie,
        since_ns: now_ns(),
        workload: state.workload,
        ..Rendezvous::default()
    };
    of(state)?.insert(&reserved(cookie), &place, ANY).ok()
}

/// The key of a place that is kept: no flow has it, as flows have ports.
#[inline(always)]
fn reserved(cookie: u64) -> FlowKey {
    FlowKey {
        netns: cookie,
        ..FlowKey::default()
    }
}

/// Leaves the record for the accepting end, in the place that the connect hook has kept.
#[inline(always)]
pub fn leave(state: &mut SocketState, record: &Rendezvous) {
    state.flags |= SocketState::NO_HANDOVER;
    let Some(handovers) = of(state) else {
        return;
    };
    let _ = handovers.remove(&reserved(state.cookie));
    if handovers.insert(&state.flow.peer(), record, ANY).is_ok() {
        state.flags &= !SocketState::NO_HANDOVER;
        state.flags |= SocketState::HANDOVER;
    }
}

/// Lets a socket of another workload of this node find this one.
#[inline(always)]
pub fn announce(state: &mut SocketState, record: &Rendezvous) {
    let key = state.flow.peer().between_networks();
    if PAIRINGS.insert(&key, record, ANY).is_ok() {
        state.flags |= SocketState::PAIRING;
    }
}

/// The record that this socket has left within its workload, if nobody has taken it.
#[inline(always)]
pub fn own_handover(state: &SocketState) -> Option<*mut Rendezvous> {
    let record = of(state)?.get_ptr_mut(&state.flow.peer())?;
    (read(record).owner == state.cookie).then_some(record)
}

/// The record that this socket has left for other workloads, if it is still there.
#[inline(always)]
pub fn own_pairing(state: &SocketState) -> Option<*mut Rendezvous> {
    let record = PAIRINGS.get_ptr_mut(&state.flow.peer().between_networks())?;
    (read(record).owner == state.cookie).then_some(record)
}

/// Whether nobody has taken what this socket has left.
#[inline(always)]
pub fn is_waiting(state: &SocketState) -> bool {
    own_handover(state).is_some()
}

/// Takes back what this socket has left.
#[inline(always)]
pub fn take_back(state: &mut SocketState) {
    take_back_handover(state);
    if state.is(SocketState::PAIRING) {
        state.flags &= !SocketState::PAIRING;
        if own_pairing(state).is_some() {
            let _ = PAIRINGS.remove(&state.flow.peer().between_networks());
        }
    }
}

/// Takes back what this socket has left for its own workload.
#[inline(always)]
pub fn take_back_handover(state: &mut SocketState) {
    if state.is(SocketState::HANDOVER) {
        state.flags &= !SocketState::HANDOVER;
        if own_handover(state).is_some()
            && let Some(handovers) = of(state)
        {
            let _ = handovers.remove(&state.flow.peer());
        }
    }
}

/// What a socket of the own workload has left for this one that was just accepted.
#[inline(always)]
pub fn take(state: &SocketState) -> Option<Rendezvous> {
    workload_of(state)?;
    // An application's connections to anybody but its proxy leave nothing.
    if state.is(SocketState::PROXY)
        && let Some(record) = take_from(HANDOVERS.get(state.workload)?, state)
    {
        return Some(record);
    }
    take_from(DIALS.get(state.workload)?, state)
}

#[inline(always)]
fn take_from(handovers: &Handovers, state: &SocketState) -> Option<Rendezvous> {
    let record = read(handovers.get_ptr(&state.flow)?);
    let _ = handovers.remove(&state.flow);
    Some(record)
}

/// What a socket of another workload has left under the accepted socket's addresses: that it is meant for this one is yet to
/// be seen.
#[inline(always)]
pub fn pairing(state: &SocketState) -> Option<Rendezvous> {
    Some(read(PAIRINGS.get_ptr(&state.flow.between_networks())?))
}

/// Forgets it: this socket was meant.
#[inline(always)]
pub fn forget_pairing(state: &SocketState) {
    let _ = PAIRINGS.remove(&state.flow.between_networks());
}

/// Where the socket leaves its record, unless its workload has left.
#[inline(always)]
fn of(state: &SocketState) -> Option<&'static Handovers> {
    workload_of(state)?;
    if state.is(SocketState::PROXY) {
        DIALS.get(state.workload)
    } else {
        HANDOVERS.get(state.workload)
    }
}
