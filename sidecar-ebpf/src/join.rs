//! Step relay: where proxies only pass bytes on, a message goes past them, to the application at the far end.
//!
//! The proxy joins two sockets when it has found that it relays between them every byte as it is. From the sender's socket
//! the joined hops lead to the application at the other end: `HalfFlow::next` of one proxy, or of two. What may still be
//! under way on them is known by counting: the application that sends knows how many bytes it gave to its first hop, and
//! the last proxy says how many it has written to the other application, all of them (`settle`). If both are the
//! same number, nothing is in any queue or proxy between, and a message that goes past them overtakes nothing. While they
//! differ messages take the first hop.

use aya_ebpf::programs::SkMsgContext;
use sidecar_common::{
    flow::{FlowKey, HalfFlow},
    settings::NAIVE_JOIN,
    socket_state::SocketState,
};
use sidecar_ebpf::decide::{self, Evidence};

use crate::{
    context::{LOAD_CONSTANTS, Socket, TcpSocket, entry},
    maps::{FLOWS, HALF_FLOWS, WORKLOADS},
    msg::{BPF_F_INGRESS, SK_PASS, unread},
};

/// Redirects the message past the proxies if that is proven safe. `first`: of the hop to the sender's own proxy.
#[inline(always)]
pub fn try_message(
    ctx: &SkMsgContext,
    socket: Socket,
    state: &SocketState,
    first: &mut HalfFlow,
) -> bool {
    try_chain(ctx, socket, state, first).is_some()
}

#[inline(always)]
fn try_chain(
    ctx: &SkMsgContext,
    socket: Socket,
    state: &SocketState,
    first: &mut HalfFlow,
) -> Option<()> {
    let bytes = ctx.size() as u64;
    let mut receiver = first.next;
    let hop = next(first)?;
    let (between, last) = if hop.flags & HalfFlow::TO_PROXY == 0 {
        (None, hop)
    } else {
        receiver = hop.next;
        let last = next(hop)?;
        (Some(hop), last)
    };
    check(socket, state, first, last, ctx.size())?;
    if FLOWS.redirect_msg(ctx, &mut receiver, BPF_F_INGRESS) != SK_PASS as i64 {
        return None;
    }
    // Two threads that send on one socket may lose one another's count here: the credit is then exceeded by a message.
    last.sent_bytes = last.sent_bytes.wrapping_add(bytes);
    if let Some(between) = between {
        between.joined_bytes += bytes;
    }
    first.joined_bytes += bytes;
    Some(())
}

/// The hop behind `hop`; none is behind a proxy that has not joined, or whose other connection has gone.
#[inline(always)]
fn next<'a>(hop: &HalfFlow) -> Option<&'a mut HalfFlow> {
    if hop.next.local.port == 0 {
        return None;
    }
    let next = HALF_FLOWS.get_ptr_mut(&hop.next).map(entry)?;
    (next.receiver == hop.next_receiver).then_some(next)
}

#[inline(always)]
fn check(
    socket: Socket,
    state: &SocketState,
    first: &HalfFlow,
    last: &mut HalfFlow,
    bytes: u32,
) -> Option<()> {
    if last.flags & HalfFlow::TO_PROXY != 0 || last.flags & HalfFlow::SETTLED == 0 {
        return None;
    }
    let sender = TcpSocket::from_word(state.socket);
    let receiver = TcpSocket::from_word(last.socket);
    let workload = WORKLOADS.get(last.workload)?;
    let by_tcp = sender.write_seq()?.wrapping_sub(first.start_seq);
    let given = by_tcp.wrapping_add(first.sent_bytes as u32);
    let arrived = if LOAD_CONSTANTS.load().naive == NAIVE_JOIN {
        given
    } else {
        last.settled_bytes
    };
    let evidence = Evidence {
        enabled: LOAD_CONSTANTS.load().redirect != 0,
        receiver_flags: workload.flags,
        to_proxy: false,
        asked: last.flags & HalfFlow::ASKED != 0,
        took_tcp: last.flags & HalfFlow::TCP != 0,
        blocking: receiver.is_nonblocking() == Some(false),
        ulp: receiver.has_ulp(),
        tcp_state: socket.state(),
        write_seq: given,
        copied_seq: arrived,
        unread_bytes: unread(last, receiver),
        message_bytes: bytes,
        bulk: false,
        credit_bytes: workload.credit_bytes,
    };
    decide::redirect(&evidence).ok()
}

/// `setsockopt`: the proxy relays between `state`'s socket and the one whose flow is `other`, every byte as it is.
#[inline(always)]
pub fn join(state: &SocketState, other: &FlowKey) -> Option<()> {
    if !state.is(SocketState::IN_MAP) {
        return None;
    }
    let there = HALF_FLOWS.get_ptr_mut(other).map(entry)?;
    let here = HALF_FLOWS.get_ptr_mut(&state.flow).map(entry)?;
    // Both are this workload's proxy's own.
    if there.workload != state.workload
        || there.flags & here.flags & HalfFlow::TO_PROXY == 0
        || here.receiver != state.cookie
    {
        return None;
    }
    let (onward, back) = (other.peer(), state.flow.peer());
    let (onward_receiver, back_receiver) = (receiver(&onward)?, receiver(&back)?);
    here.next = onward;
    here.next_receiver = onward_receiver;
    there.next = back;
    there.next_receiver = back_receiver;
    Some(())
}

/// The socket that is the flow's receiver now.
#[inline(always)]
fn receiver(flow: &FlowKey) -> Option<u64> {
    Some(HALF_FLOWS.get_ptr_mut(flow).map(entry)?.receiver)
}

/// `setsockopt`: the proxy has written to `state`'s socket all that has arrived for it, `bytes` so far.
#[inline(always)]
pub fn settle(state: &SocketState, bytes: u32) -> Option<()> {
    if !state.is(SocketState::IN_MAP) {
        return None;
    }
    let peer = state.flow.peer();
    let direction = HALF_FLOWS.get_ptr_mut(&peer).map(entry)?;
    if direction.flags & (HalfFlow::TO_PROXY | HalfFlow::TCP) != 0
        || direction.flags & HalfFlow::ASKED == 0
    {
        return None;
    }
    // What may have gone by TCP in the beginning has been read.
    let written = TcpSocket::from_word(state.socket).write_seq()?;
    if written != TcpSocket::from_word(direction.socket).copied_seq()? {
        return None;
    }
    direction.settled_bytes = bytes;
    direction.flags |= HalfFlow::SETTLED;
    Some(())
}
