//! cgroup/getsockopt and setsockopt: any proxy learns the original destination as it would from the kernel's own NAT; ours
//! asks and says more of its own sockets.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use sidecar_common::{
    address::Source,
    layout::{
        HANDOVER_FAILED, HANDOVER_TAKEN, HANDOVER_WAITING, SEND_WINDOW_TCP, SEND_WINDOW_UNDECIDED,
        SOCKET_OPTION_BYPASSED_BYTES, SOCKET_OPTION_CLAIM_PEER, SOCKET_OPTION_HANDOVER,
        SOCKET_OPTION_JOIN, SOCKET_OPTION_LEVEL, SOCKET_OPTION_SEND_WINDOW, SOCKET_OPTION_SETTLE,
        SOCKET_OPTION_SOURCE,
    },
    record::Counter,
    socket_state::SocketState,
};

use sidecar_ebpf::{decide::SendWindow, evidence};

use crate::{
    context::{SocketOption, address_from, read},
    counters::count,
    maps::{HALF_FLOWS, SOCKETS},
    msg::Maps,
    rendezvous,
};

const ALLOW: i32 = 1;
const SOL_IP: i32 = 0;
const SOL_IPV6: i32 = 41;
/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST` are the same number.
const SO_ORIGINAL_DST: i32 = 80;
const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

#[cgroup_sockopt(getsockopt)]
pub fn cgroup_getsockopt(ctx: SockoptContext) -> i32 {
    let _ = try_getsockopt(&ctx);
    ALLOW
}

/// Answers as `struct sockaddr_in` or `sockaddr_in6`.
#[inline(always)]
fn try_getsockopt(ctx: &SockoptContext) -> Option<()> {
    let (level, name) = ctx.name();
    if level == SOCKET_OPTION_LEVEL {
        return answer_proxy(ctx, name);
    }
    if name != SO_ORIGINAL_DST || (level != SOL_IP && level != SOL_IPV6) {
        return None;
    }
    let state = SOCKETS.get(ctx.socket()?)?;
    if !state.is(SocketState::PROXY) {
        return None;
    }
    // Handed over by sk_lookup: the socket's own address is what the client asked for.
    let original = if state.original.is_some() {
        state.original
    } else {
        state.flow.local
    };
    if !original.is_some() {
        return None;
    }
    if level == SOL_IP {
        if !original.ip.is_v4() {
            return None;
        }
        let value = ctx.value::<16>()?;
        *value = [0; 16];
        put(value, 0, AF_INET.to_ne_bytes());
        put(value, 2, original.port.to_be_bytes());
        put(value, 4, original.ip.0[3].to_ne_bytes());
        ctx.answered(16);
    } else {
        let value = ctx.value::<28>()?;
        *value = [0; 28];
        put(value, 0, AF_INET6.to_ne_bytes());
        put(value, 2, original.port.to_be_bytes());
        put(value, 8, original.ip.0[0].to_ne_bytes());
        put(value, 12, original.ip.0[1].to_ne_bytes());
        put(value, 16, original.ip.0[2].to_ne_bytes());
        put(value, 20, original.ip.0[3].to_ne_bytes());
        ctx.answered(28);
    }
    Some(())
}

/// What the proxy asks of its own sockets.
#[inline(always)]
fn answer_proxy(ctx: &SockoptContext, name: i32) -> Option<()> {
    let socket = ctx.socket()?;
    let state = SOCKETS.get(socket)?;
    if !state.is(SocketState::PROXY) {
        return None;
    }
    match name {
        SOCKET_OPTION_SEND_WINDOW => {
            *ctx.value::<4>()? = send_window(socket.state(), state).to_ne_bytes();
            ctx.answered(4);
        }
        SOCKET_OPTION_HANDOVER => {
            *ctx.value::<4>()? = handover(state).to_ne_bytes();
            ctx.answered(4);
        }
        SOCKET_OPTION_SOURCE => {
            let source = source(state);
            let value = ctx.value::<24>()?;
            put(value, 0, source.ip.0[0].to_ne_bytes());
            put(value, 4, source.ip.0[1].to_ne_bytes());
            put(value, 8, source.ip.0[2].to_ne_bytes());
            put(value, 12, source.ip.0[3].to_ne_bytes());
            put(value, 16, source.device.to_ne_bytes());
            put(value, 20, source.port.to_ne_bytes());
            put(value, 22, source.flags.to_ne_bytes());
            ctx.answered(24);
        }
        SOCKET_OPTION_BYPASSED_BYTES => {
            let bytes = if state.is(SocketState::IN_MAP) {
                read(HALF_FLOWS.get_ptr(&state.cookie)?).bypassed_bytes
            } else {
                state.bypassed_bytes
            };
            *ctx.value::<8>()? = bytes.to_ne_bytes();
            ctx.answered(8);
        }
        _ => return None,
    }
    Some(())
}

/// What the application has bound its socket to, which is at the other end of this one.
#[inline(always)]
fn source(state: &SocketState) -> Source {
    let (ip, flags) = if state.is(SocketState::BOUND_ADDRESS) {
        (state.flow.remote.ip, Source::BOUND)
    } else {
        (state.source, 0)
    };
    let port = if state.is(SocketState::BOUND_PORT) {
        state.flow.remote.port
    } else {
        0
    };
    Source {
        ip,
        device: state.device,
        port,
        flags,
    }
}

/// How much the proxy may write to its socket now; `SEND_WINDOW_TCP` where nothing is redirected to an application.
/// `tcp_state`: of the socket, whose lock is held as it is while it sends.
#[inline(always)]
fn send_window(tcp_state: u32, state: &mut SocketState) -> u32 {
    if !state.is(SocketState::IN_MAP) {
        return SEND_WINDOW_TCP;
    }
    match evidence::send_window(&Maps, state, tcp_state) {
        Some(SendWindow::Bytes(bytes)) => {
            if bytes == 0 {
                count(state.workload, Counter::HeldBack, 1);
            }
            bytes
        }
        Some(SendWindow::Tcp(why)) => {
            count(state.workload, why, 1);
            SEND_WINDOW_TCP
        }
        Some(SendWindow::All) => SEND_WINDOW_TCP,
        // The application has not accepted yet: whether its end enters the map is seen then. A connection to it never
        // leaves the machine, so that this is a matter of microseconds. (Another proxy takes TCP gladly meanwhile.)
        None if state.claimed_peer.is_some() && handover(state) == HANDOVER_WAITING => {
            SEND_WINDOW_UNDECIDED
        }
        None => SEND_WINDOW_TCP,
    }
}

/// What became of what this connecting socket left for the other end.
#[inline(always)]
fn handover(state: &SocketState) -> u32 {
    if state.is(SocketState::NO_HANDOVER) {
        HANDOVER_FAILED
    } else if state.is(SocketState::HANDOVER) && rendezvous::is_waiting(state) {
        HANDOVER_WAITING
    } else {
        HANDOVER_TAKEN
    }
}

#[inline(always)]
fn put<const N: usize, const M: usize>(value: &mut [u8; N], at: usize, bytes: [u8; M]) {
    let mut i = 0;
    while i < M && at + i < N {
        value[at + i] = bytes[i];
        i += 1;
    }
}

#[cgroup_sockopt(setsockopt)]
pub fn cgroup_setsockopt(ctx: SockoptContext) -> i32 {
    let _ = try_setsockopt(&ctx);
    ALLOW
}

/// What the proxy says of its own sockets.
#[inline(always)]
fn try_setsockopt(ctx: &SockoptContext) -> Option<()> {
    let (level, name) = ctx.name();
    if level != SOCKET_OPTION_LEVEL {
        return None;
    }
    let state = SOCKETS.get(ctx.socket()?)?;
    if !state.is(SocketState::PROXY) {
        return None;
    }
    match name {
        // Before it connects to the application: which client the application shall see. Only sockets of a workload of the
        // same enrolment will believe it.
        SOCKET_OPTION_CLAIM_PEER => state.claimed_peer = address_from(ctx.value::<20>()?),
        SOCKET_OPTION_JOIN if state.is(SocketState::IN_MAP) => {
            evidence::join(&Maps, state, u64::from_ne_bytes(*ctx.value::<8>()?))?;
        }
        SOCKET_OPTION_SETTLE if state.is(SocketState::IN_MAP) => {
            evidence::settle(&Maps, state, u32::from_ne_bytes(*ctx.value::<4>()?))?;
        }
        _ => return None,
    }
    ctx.taken();
    Some(())
}
