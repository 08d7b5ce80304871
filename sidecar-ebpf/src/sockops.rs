//! The life of a TCP socket as sock_ops sees it: what the connecting end leaves for the accepting end (step
//! origin), which pairs are put into the SOCKHASH (step relay), and what is cleared when a socket closes.

use aya_ebpf::{macros::sock_ops, programs::SockOpsContext};
use sidecar_common::{
    record::Counter,
    settings::{
        INBOUND, ListeningKey, OUTBOUND, PORT_NO_REDIRECT, WORKLOAD_ADAPTIVE, WORKLOAD_REDIRECT,
        WORKLOAD_SPLICES,
    },
    socket_state::{Handover, SocketState},
};
use sidecar_ebpf::decide;

use crate::{
    connect::port_rule,
    context::{Ends, LOAD_CONSTANTS, Operation, TcpSocket, read, update},
    counters::count,
    maps::{HALF_FLOWS, HANDOVERS, LISTENING, PROFILES, SOCKETS, WORKLOADS},
    pair,
};

pub const TCP_CONNECT: u32 = 3;
const ACTIVE_ESTABLISHED: u32 = 4;
const PASSIVE_ESTABLISHED: u32 = 5;
pub const STATE: u32 = 10;
const TCP_LISTEN: u32 = 11;

pub const STATE_CB_FLAG: i32 = 4;
pub const TCP_CLOSE: u32 = 7;
const STATE_LISTEN: u32 = 10;

const NOEXIST: u64 = 1;

#[sock_ops]
pub fn workload_sockops(ctx: SockOpsContext) -> u32 {
    let _ = match ctx.op() {
        TCP_CONNECT => connecting(&ctx),
        ACTIVE_ESTABLISHED => connected(&ctx),
        PASSIVE_ESTABLISHED => accepted(&ctx),
        TCP_LISTEN => listening(&ctx),
        STATE if ctx.arg(1) == TCP_CLOSE => closed(&ctx),
        _ => None,
    };
    1
}

/// Before the SYN: leave a record for the other end. Earlier than `ACTIVE_ESTABLISHED`, because with Fast Open
/// the other end is accepted first.
#[inline(always)]
fn connecting(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if !state.is(SocketState::PROXY | SocketState::STEERED) {
        return None;
    }
    state.flow = ctx.flow();
    state.cookie = ctx.cookie();
    state.service_port = if state.original.is_some() {
        state.original.port
    } else {
        state.flow.remote.port
    };
    // Towards its application a proxy says whom it speaks for.
    state.direction = if state.claimed_peer.is_some() {
        INBOUND
    } else {
        OUTBOUND
    };
    let local = state.flow.remote.ip.is_loopback() || state.flow.remote.ip == state.flow.local.ip;
    let suits = state.is(SocketState::PROXY) || nonblocking(socket.tcp()?);
    let pays = suits && allowed(state) && pays(state);
    if !pays && !state.original.is_some() && !state.claimed_peer.is_some() {
        // There is nothing to tell the other end.
        return None;
    }
    let pending = Handover {
        owner: state.cookie,
        original: state.original,
        shown_peer: state.claimed_peer,
        workload: state.workload,
        flags: if local { Handover::LOCAL } else { 0 } | if pays { 0 } else { Handover::TCP_ONLY },
    };
    HANDOVERS.insert(&state.flow.peer(), &pending, 0).ok()?;
    state.flags |= SocketState::HANDOVER;
    ctx.set_cb_flags(STATE_CB_FLAG).ok()
}

/// An application that blocks in its calls would notice that its socket is in the SOCKHASH: a blocked receive can
/// return EAGAIN (`tcp_bpf_recvmsg` waits once). Whoever does not block expects that.
#[inline(always)]
fn nonblocking(socket: TcpSocket) -> bool {
    socket.is_nonblocking() == Some(true)
}

/// Whether redirect is switched on for the workload and for the connection's port.
#[inline(always)]
fn allowed(state: &SocketState) -> bool {
    !state.is(SocketState::MULTIPATH)
        && LOAD_CONSTANTS.load().redirect != 0
        && WORKLOADS.get(state.workload).is_some_and(|w| {
            w.flags & WORKLOAD_REDIRECT != 0
                && (state.is(SocketState::PROXY) || w.flags & WORKLOAD_SPLICES == 0)
        })
        && port_rule(state.workload, state.direction, state.service_port) & PORT_NO_REDIRECT == 0
}

/// Whether this connection should be put into the SOCKHASH if both ends turn out to be here.
#[inline(always)]
fn pays(state: &SocketState) -> bool {
    let Some(profile) = PROFILES.get_ptr_mut(&pair::port(state)) else {
        return true;
    };
    let adaptive = WORKLOADS
        .get(state.workload)
        .is_some_and(|w| w.flags & WORKLOAD_ADAPTIVE != 0);
    let pays = !adaptive || decide::pays(&read(profile));
    if !pays {
        count(state.workload, Counter::Unprofitable, 1);
    }
    update(profile, |p| p.skipped = p.skipped.wrapping_add(1));
    pays
}

/// SYN-ACK arrived at the connecting end.
#[inline(always)]
fn connected(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if !state.is(SocketState::HANDOVER) {
        return None;
    }
    let key = state.flow.peer();
    // Gone already if the other end was accepted first (Fast Open): then it stays on TCP.
    let pending = read(HANDOVERS.get_ptr(&key)?);
    if pending.flags & Handover::LOCAL == 0 {
        // Nobody here will fetch it.
        state.flags &= !SocketState::HANDOVER;
        let _ = HANDOVERS.remove(&key);
    } else if pending.flags & Handover::TCP_ONLY == 0 {
        pair::insert(ctx, socket, state);
    }
    Some(())
}

/// The accepting end is established: fetch what the connecting end left.
#[inline(always)]
fn accepted(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    // A copy of the listener's until now.
    let listener = TcpSocket::from_word(state.socket);
    state.flow = ctx.flow();
    state.cookie = ctx.cookie();
    state.socket = 0;
    let pending = read(HANDOVERS.get_ptr(&state.flow)?);
    let _ = HANDOVERS.remove(&state.flow);
    let own = pending.workload == state.workload;
    if own {
        if state.is(SocketState::PROXY) {
            state.original = pending.original;
        } else {
            state.shown_peer = pending.shown_peer;
        }
        count(state.workload, Counter::Origin, 1);
    }
    state.service_port = if pending.original.is_some() {
        pending.original.port
    } else {
        state.flow.local.port
    };
    state.direction = if own && state.is(SocketState::PROXY) {
        OUTBOUND
    } else {
        INBOUND
    };
    // The other end went before, or it is of no use (and with Fast Open it is too late for it).
    if pending.flags & Handover::TCP_ONLY != 0
        || !allowed(state)
        || HALF_FLOWS.get_ptr(&state.flow.peer()).is_none()
    {
        return None;
    }
    if !state.is(SocketState::PROXY)
        && !(own && (state.is(SocketState::NONBLOCKING) || nonblocking(listener)))
    {
        // Nobody has this socket yet, but the sockets of a listener that blocks mostly do.
        pair::learn(state, 0, decide::FLOW_ON_TCP as u64);
        return None;
    }
    pair::insert(ctx, socket, state);
    ctx.set_cb_flags(STATE_CB_FLAG).ok()
}

/// A socket of the application begins to listen: its port may be captured.
#[inline(always)]
fn listening(ctx: &SockOpsContext) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if state.is(SocketState::PROXY) {
        return None;
    }
    state.socket = socket.tcp()?.to_word();
    let key = listening_key(ctx, state);
    let one = 1;
    if LISTENING.insert(&key, &one, NOEXIST).is_err() {
        update(LISTENING.get_ptr_mut(&key)?, |sockets| *sockets += 1);
    }
    ctx.set_cb_flags(STATE_CB_FLAG).ok()
}

#[inline(always)]
fn listening_key(ctx: &SockOpsContext, state: &SocketState) -> ListeningKey {
    ListeningKey {
        netns: ctx.netns_cookie(),
        workload: state.workload,
        port: ctx.local_port(),
    }
}

#[inline(always)]
fn closed(ctx: &SockOpsContext) -> Option<()> {
    let state = SOCKETS.get(ctx.socket()?)?;
    if ctx.arg(0) == STATE_LISTEN {
        let key = listening_key(ctx, state);
        let sockets = LISTENING.get_ptr_mut(&key)?;
        if read(sockets) <= 1 {
            let _ = LISTENING.remove(&key);
        } else {
            update(sockets, |sockets| *sockets -= 1);
        }
        return Some(());
    }
    if state.is(SocketState::HANDOVER) {
        let key = state.flow.peer();
        if HANDOVERS
            .get_ptr(&key)
            .is_some_and(|p| read(p).owner == state.cookie)
        {
            let _ = HANDOVERS.remove(&key);
        }
    }
    if state.is(SocketState::IN_MAP) {
        pair::remove(state);
    }
    state.flags &= SocketState::PROXY | SocketState::MULTIPATH | SocketState::STEERED;
    Some(())
}
