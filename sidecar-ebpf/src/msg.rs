//! sk_msg: a message goes straight into the receive queue of the other end, if there is proof that it overtakes nothing and
//! that the queue stays bounded; else it takes TCP.
//!
//! A socket keeps the program that the map had when it entered it, so that another one attached there would reach no
//! connection that exists. So what is attached is a stub that never changes; what it calls does.

use aya_ebpf::{macros::sk_msg, programs::SkMsgContext};
use sidecar_common::{
    flow::HalfFlow,
    layout::{SEND_WINDOW_TCP, SEND_WINDOW_UNDECIDED},
    record::Counter,
    settings::NAIVE_REDIRECT,
    socket_state::SocketState,
};
use sidecar_ebpf::decide::{self, Evidence, SendWindow};

use crate::{
    context::{LOAD_CONSTANTS, Socket, TcpSocket, entry, read, sender, tail_call},
    counters::count,
    join,
    maps::{FLOWS, HALF_FLOWS, HANDOVERS, MSG_PROGRAMS, SOCKETS, WORKLOADS},
};

/// What is not redirected takes TCP.
pub const SK_PASS: u32 = 1;
pub const BPF_F_INGRESS: u64 = 1;

/// Where nothing is to be called, after `sidecar agent uninstall`, messages take TCP.
#[sk_msg]
pub fn msg_stub(ctx: SkMsgContext) -> u32 {
    tail_call(&ctx, &MSG_PROGRAMS);
    SK_PASS
}

/// Always passes. Refusing is no way to make a sender wait: the kernel keeps a refusal for all that follows on the
/// socket (`psock->eval` stays in net/ipv4/tcp_bpf.c).
#[sk_msg]
pub fn msg_redirect(ctx: SkMsgContext) -> u32 {
    let Some(socket) = sender(&ctx) else {
        return SK_PASS;
    };
    let Some(state) = SOCKETS.get(socket) else {
        return SK_PASS;
    };
    if !state.is(SocketState::IN_MAP) {
        return SK_PASS;
    }
    let bytes = ctx.size();
    let bulk = is_bulk(state, bytes);
    match try_message(&ctx, socket, state, bulk) {
        Ok(way) => {
            if way == Way::Joined || !bulk {
                state.redirected = state.redirected.wrapping_add(1);
            } else {
                state.passed = state.passed.wrapping_add(1);
            }
            count(state.workload, Counter::Redirected, 1);
            if way == Way::Joined {
                count(state.workload, Counter::Joined, 1);
            }
            count(state.workload, Counter::RedirectedBytes, bytes as u64);
        }
        Err(why) => {
            state.passed = state.passed.wrapping_add(1);
            count(state.workload, why, 1);
            count(state.workload, Counter::TcpBytes, bytes as u64);
        }
    }
    SK_PASS
}

/// Where a message was redirected to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The other end of the connection.
    Peer,
    /// The application at the far end, past the proxies between.
    Joined,
}

#[inline(always)]
fn try_message(
    ctx: &SkMsgContext,
    socket: Socket,
    state: &mut SocketState,
    bulk: bool,
) -> Result<Way, Counter> {
    let mut peer = state.flow.peer();
    let direction = HALF_FLOWS
        .get_ptr_mut(&peer)
        .map(entry)
        .ok_or(Counter::FallbackNoPeer)?;
    let bytes = ctx.size();
    if LOAD_CONSTANTS.load().naive != NAIVE_REDIRECT {
        if !state.is(SocketState::PROXY) && join::try_message(ctx, socket, state, direction) {
            return Ok(Way::Joined);
        }
        let evidence =
            evidence(socket.state(), state, direction, bytes, bulk).ok_or(Counter::FallbackMiss)?;
        decide::redirect(&evidence).inspect_err(|_| take_tcp(state, direction))?;
    }
    if FLOWS.redirect_msg(ctx, &mut peer, BPF_F_INGRESS) != SK_PASS as i64 {
        take_tcp(state, direction);
        return Err(Counter::FallbackMiss);
    }
    direction.sent_bytes = direction.sent_bytes.wrapping_add(bytes as u64);
    Ok(Way::Peer)
}

/// Whether the message is part of a stream: large, and nothing came the other way since the large one before.
#[inline(always)]
fn is_bulk(state: &mut SocketState, bytes: u32) -> bool {
    if !decide::is_large(bytes) {
        return false;
    }
    let Some(by_tcp) = TcpSocket::from_word(state.socket).copied_seq() else {
        return true;
    };
    let redirected = HALF_FLOWS
        .get_ptr_mut(&state.flow)
        .map(entry)
        .map_or(0, |back| back.sent_bytes);
    let heard = redirected.wrapping_add(by_tcp as u64);
    let stream = state.heard == heard;
    state.heard = heard;
    stream
}

/// Towards an application there is no way back from TCP: see `decide::redirect`.
#[inline(always)]
fn take_tcp(state: &mut SocketState, direction: &mut HalfFlow) {
    if direction.flags & (HalfFlow::TO_PROXY | HalfFlow::TCP) == 0 {
        direction.flags |= HalfFlow::TCP;
        state.passed = state.passed.wrapping_add(decide::FLOW_ON_TCP);
    }
}

/// `getsockopt`: how much the proxy may write to `state`'s socket now; `SEND_WINDOW_TCP` where nothing is redirected to an
/// application. `tcp_state`: of the asking socket, whose lock is held as it is while it sends.
#[inline(always)]
pub fn send_window(tcp_state: u32, state: &mut SocketState) -> u32 {
    if !state.is(SocketState::IN_MAP) {
        return SEND_WINDOW_TCP;
    }
    let peer = state.flow.peer();
    let Some(direction) = HALF_FLOWS.get_ptr_mut(&peer).map(entry) else {
        // The application has not accepted yet: whether its end enters the map is seen then. A connection to it never
        // leaves the machine, so that this is a matter of microseconds. (Another proxy takes TCP gladly meanwhile.)
        let waits = state.claimed_peer.is_some()
            && HANDOVERS
                .get_ptr(&peer)
                .is_some_and(|pending| read(pending).owner == state.cookie);
        return if waits {
            SEND_WINDOW_UNDECIDED
        } else {
            SEND_WINDOW_TCP
        };
    };
    if direction.flags & (HalfFlow::TO_PROXY | HalfFlow::TCP) != 0
        || LOAD_CONSTANTS.load().naive == NAIVE_REDIRECT
    {
        return SEND_WINDOW_TCP;
    }
    let room = match evidence(tcp_state, state, direction, 0, false) {
        Some(evidence) => decide::send_window(&evidence),
        None => SendWindow::Tcp(Counter::FallbackMiss),
    };
    match room {
        SendWindow::Bytes(bytes) => {
            direction.flags |= HalfFlow::ASKED;
            if bytes == 0 {
                state.passed = state.passed.wrapping_add(decide::WAIT);
                count(state.workload, Counter::HeldBack, 1);
            }
            bytes
        }
        SendWindow::Tcp(why) => {
            take_tcp(state, direction);
            count(state.workload, why, 1);
            SEND_WINDOW_TCP
        }
    }
}

/// Runs under the sender's lock, and nobody else puts messages into the receiver's queue. Only where two
/// threads send on one socket at a time may a message that is still on its way be taken for read; the bound is then
/// exceeded by that message.
#[inline(always)]
fn evidence(
    tcp_state: u32,
    state: &SocketState,
    direction: &mut HalfFlow,
    bytes: u32,
    bulk: bool,
) -> Option<Evidence> {
    let sender = TcpSocket::from_word(state.socket);
    let receiver = TcpSocket::from_word(direction.socket);
    let workload = WORKLOADS.get(direction.workload)?;
    let unread_bytes = unread(direction, receiver);
    let to_proxy = direction.flags & HalfFlow::TO_PROXY != 0;
    // An application is at one end at most.
    let application = if to_proxy { sender } else { receiver };
    Some(Evidence {
        enabled: LOAD_CONSTANTS.load().redirect != 0,
        receiver_flags: workload.flags,
        to_proxy,
        asked: direction.flags & HalfFlow::ASKED != 0,
        took_tcp: direction.flags & HalfFlow::TCP != 0,
        blocking: !to_proxy && receiver.is_nonblocking() == Some(false),
        ulp: application.has_ulp(),
        tcp_state,
        write_seq: sender.write_seq()?,
        copied_seq: receiver.copied_seq()?,
        unread_bytes,
        message_bytes: bytes,
        bulk,
        credit_bytes: workload.credit_bytes,
    })
}

/// Bytes redirected that the receiver has not been seen to have read.
#[inline(always)]
pub fn unread(direction: &mut HalfFlow, receiver: TcpSocket) -> u64 {
    // Read once: another sender may add to it meanwhile.
    let sent_bytes = direction.sent_bytes;
    if direction.drained_bytes != sent_bytes && receiver.ingress_is_empty() {
        direction.drained_bytes = sent_bytes;
    }
    sent_bytes.wrapping_sub(direction.drained_bytes)
}
