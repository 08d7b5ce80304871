//! Sockets whose both ends are on this node enter the SOCKHASH with their entry in `HALF_FLOWS`, and leave it.

use aya_ebpf::programs::SockOpsContext;
use sidecar_common::{
    flow::HalfFlow,
    record::{Account, Counter, EVENT_UNPAIRED, MAX_PROFILES_EACH, Profile},
    settings::PortKey,
    socket_state::SocketState,
};

use crate::{
    context::{self, Operation, Socket, read, update},
    counters::{count, event},
    maps::{ACCOUNTS, FLOWS, HALF_FLOWS, PROFILES},
};

const NOEXIST: u64 = 1;
/// Profiles forget: beyond this many messages all counts are halved.
const PROFILE_MEMORY: u64 = 1 << 20;
/// Or so many sockets.
const SOCKETS_MEMORY: u64 = 2048;

/// Puts an established socket into `FLOWS` and `HALF_FLOWS`. `peer`: the cookie of the socket at the other end, which is
/// there already; 0: that one is told by the accepted socket later.
#[inline(always)]
pub fn insert(
    ctx: &SockOpsContext,
    socket: Socket,
    state: &mut SocketState,
    peer: u64,
) -> Option<()> {
    let done = try_insert(ctx, socket, state, peer);
    let counter = if done.is_some() {
        Counter::Paired
    } else {
        Counter::Unpaired
    };
    count(state.workload, counter, 1);
    if done.is_none() {
        event(EVENT_UNPAIRED, state.workload, state.flow.remote);
    }
    done
}

#[inline(always)]
fn try_insert(
    ctx: &SockOpsContext,
    socket: Socket,
    state: &mut SocketState,
    peer: u64,
) -> Option<()> {
    state.socket = socket.tcp()?.to_word();
    let half = HalfFlow {
        cookie: state.cookie,
        socket: state.socket,
        peer,
        workload: state.workload,
        enrolment: state.enrolment,
        flags: if state.is(SocketState::PROXY) {
            HalfFlow::OF_PROXY
        } else {
            0
        },
        ..HalfFlow::default()
    };
    HALF_FLOWS.insert(&state.cookie, &half, NOEXIST).ok()?;
    let mut key = state.cookie;
    if FLOWS.update(&mut key, ctx.raw(), NOEXIST).is_err() {
        let _ = HALF_FLOWS.remove(&state.cookie);
        return None;
    }
    state.flags |= SocketState::IN_MAP;
    state.peer = peer;
    state.redirected = 0;
    state.fallback = 0;
    state.sent_bytes = 0;
    state.read_bytes = 0;
    state.joined_bytes = 0;
    state.joined_read_bytes = 0;
    state.bypassed_bytes = 0;
    state.heard = 0;
    Some(())
}

/// Tells the connecting socket, which is in the map, that the accepted one is its other end. Nobody else writes it.
///
/// The connecting socket may close between look and write, and its entry be another socket's by then, which is thus told of an other end
/// that does not name it in turn (`evidence::other_end`): that one's flow takes TCP.
#[inline(always)]
pub fn meet(connecting: u64, accepted: u64) -> Option<()> {
    let half = HALF_FLOWS.get_ptr_mut(&connecting)?;
    if read(half).cookie == connecting {
        update(half, |h: &mut HalfFlow| h.peer = accepted);
    }
    Some(())
}

/// Takes the socket with a cookie out of `FLOWS`; what it sends takes TCP, too, from then on. Nothing redirected may wait there.
#[inline(always)]
pub fn take_out(cookie: u64) {
    // It has gone already if this fails.
    let _ = context::take_out(&FLOWS, cookie);
}

/// The socket is closed; the kernel removes it from `FLOWS` itself.
#[inline(always)]
pub fn remove(state: &mut SocketState) {
    if let Some(half) = HALF_FLOWS.get_ptr(&state.cookie) {
        // The proxy asks for it when all is over.
        state.bypassed_bytes = read(half).bypassed_bytes;
        let _ = HALF_FLOWS.remove(&state.cookie);
    }
    learn(state, state.redirected as u64, state.fallback as u64);
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
            let Some(account) = ACCOUNTS.get_ptr_mut(state.workload) else {
                return;
            };
            if read(account).profiles >= MAX_PROFILES_EACH {
                return;
            }
            let inserted = PROFILES.insert(
                &key,
                &Profile {
                    redirected,
                    passed,
                    skipped: 0,
                    sockets: 1,
                },
                NOEXIST,
            );
            if inserted.is_ok() {
                update(account, |a: &mut Account| a.profiles += 1);
            }
        }
    }
}
