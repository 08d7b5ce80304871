//! Step relay: sockets whose both ends are on this node enter the SOCKHASH with their evidence, and leave it.

use aya_ebpf::programs::SockOpsContext;
use sidecar_common::{
    flow::HalfFlow,
    record::{Counter, EVENT_UNPAIRED, Profile},
    settings::PortKey,
    socket_state::SocketState,
};

use crate::{
    context::{Operation, Socket, entry, update},
    counters::{count, event},
    maps::{FLOWS, HALF_FLOWS, PROFILES},
};

const NOEXIST: u64 = 1;
/// Profiles forget: beyond this many messages all counts are halved.
const PROFILE_MEMORY: u64 = 1 << 20;
/// Or so many sockets.
const SOCKETS_MEMORY: u64 = 2048;

/// Puts an established socket into `FLOWS`, its evidence into `HALF_FLOWS`. Neither is ever overwritten: a key
/// that is taken belongs to another live socket, and this one stays on TCP.
#[inline(always)]
pub fn insert(ctx: &SockOpsContext, socket: Socket, state: &mut SocketState) {
    let done = try_insert(ctx, socket, state).is_some();
    count(
        state.workload,
        if done {
            Counter::Paired
        } else {
            Counter::Unpaired
        },
        1,
    );
    if !done {
        event(EVENT_UNPAIRED, state.workload, 0, state.flow.remote);
    }
}

#[inline(always)]
fn try_insert(ctx: &SockOpsContext, socket: Socket, state: &mut SocketState) -> Option<()> {
    let tcp = socket.tcp()?;
    state.socket = tcp.to_word();
    let direction = HalfFlow {
        receiver: state.cookie,
        socket: state.socket,
        workload: state.workload,
        flags: if state.is(SocketState::PROXY) {
            HalfFlow::TO_PROXY
        } else {
            0
        },
        start_seq: tcp.copied_seq()?,
        ..HalfFlow::default()
    };
    HALF_FLOWS.insert(&state.flow, &direction, NOEXIST).ok()?;
    let mut key = state.flow;
    if FLOWS.update(&mut key, ctx.raw(), NOEXIST).is_err() {
        let _ = HALF_FLOWS.remove(&state.flow);
        return None;
    }
    state.flags |= SocketState::IN_MAP;
    state.redirected = 0;
    state.passed = 0;
    Some(())
}

/// The socket is closed; the kernel removes it from `FLOWS` itself.
#[inline(always)]
pub fn remove(state: &mut SocketState) {
    if let Some(direction) = HALF_FLOWS.get_ptr_mut(&state.flow).map(entry)
        && direction.receiver == state.cookie
    {
        // The proxy asks for it when all is over.
        state.joined_bytes = direction.joined_bytes;
        let _ = HALF_FLOWS.remove(&state.flow);
    }
    learn(state, state.redirected as u64, state.passed as u64);
}

/// Under which the connection's port is looked up.
#[inline(always)]
pub fn port(state: &SocketState) -> PortKey {
    PortKey {
        workload: state.workload,
        port: state.service_port,
        direction: state.direction,
    }
}

/// Adds to the profile of the connection's port.
#[inline(always)]
pub fn learn(state: &SocketState, redirected: u64, passed: u64) {
    let key = port(state);
    match PROFILES.get_ptr_mut(&key) {
        Some(profile) => update(profile, |p: &mut Profile| {
            p.redirected += redirected;
            p.passed += passed;
            p.sockets += 1;
            if p.redirected + p.passed > PROFILE_MEMORY || p.sockets > SOCKETS_MEMORY {
                p.redirected /= 2;
                p.passed /= 2;
                p.sockets /= 2;
            }
        }),
        None => {
            let _ = PROFILES.insert(
                &key,
                &Profile {
                    redirected,
                    passed,
                    skipped: 0,
                    sockets: 1,
                },
                NOEXIST,
            );
        }
    }
}
