//! Step relay: a message goes straight into the receive queue of the other end, if there is proof that it
//! overtakes nothing and that the queue stays bounded; else it takes TCP.

use aya_ebpf::{macros::sk_msg, programs::SkMsgContext};
use sidecar_common::{flow::Direction, origin::SocketState, record::Counter};
use sidecar_ebpf::decide::{self, Evidence};

use crate::{
    context::{Socket, TUNABLES, TcpSocket, entry, sender},
    maps::{DIRECTIONS, FLOWS, SOCKETS, WORKLOADS},
    record::count,
};

/// What is not redirected takes TCP.
const SK_PASS: u32 = 1;
const BPF_F_INGRESS: u64 = 1;

/// Always passes. Refusing is no way to make a sender wait: the kernel keeps a refusal for all that follows on the
/// socket (`psock->eval` stays in net/ipv4/tcp_bpf.c).
#[sk_msg]
pub fn relay_message(ctx: SkMsgContext) -> u32 {
    let Some(socket) = sender(&ctx) else {
        return SK_PASS;
    };
    let Some(state) = SOCKETS.get(socket) else {
        return SK_PASS;
    };
    if !state.is(SocketState::IN_MAP) {
        return SK_PASS;
    }
    let bytes = ctx.size() as u64;
    match try_message(&ctx, socket, state) {
        Ok(()) => {
            state.redirected = state.redirected.wrapping_add(1);
            count(state.workload, Counter::Redirected, 1);
            count(state.workload, Counter::RedirectedBytes, bytes);
        }
        Err(why) => {
            state.passed = state.passed.wrapping_add(1);
            count(state.workload, why, 1);
            count(state.workload, Counter::TcpBytes, bytes);
        }
    }
    SK_PASS
}

#[inline(always)]
fn try_message(ctx: &SkMsgContext, socket: Socket, state: &SocketState) -> Result<(), Counter> {
    let mut peer = state.flow.peer();
    let direction = DIRECTIONS
        .get_ptr_mut(&peer)
        .map(entry)
        .ok_or(Counter::PassedNoPeer)?;
    let bytes = ctx.size();
    if TUNABLES.load().naive == 0 {
        let evidence = evidence(socket, direction, bytes).ok_or(Counter::PassedMiss)?;
        decide::relay(&evidence)?;
    }
    if FLOWS.redirect_msg(ctx, &mut peer, BPF_F_INGRESS) != SK_PASS as i64 {
        return Err(Counter::PassedMiss);
    }
    direction.sent_bytes = direction.sent_bytes.wrapping_add(bytes as u64);
    Ok(())
}

/// This program runs under the sender's lock, and nobody else puts messages into the receiver's queue. Only where two
/// threads send on one socket at a time may a message that is still on its way be taken for read; the bound is then
/// exceeded by that message.
#[inline(always)]
fn evidence(socket: Socket, direction: &mut Direction, bytes: u32) -> Option<Evidence> {
    let receiver = TcpSocket::from_word(direction.socket);
    let workload = WORKLOADS.get(direction.workload)?;
    if direction.drained_bytes != direction.sent_bytes && receiver.ingress_is_empty() {
        direction.drained_bytes = direction.sent_bytes;
    }
    Some(Evidence {
        enabled: TUNABLES.load().redirect != 0,
        receiver_flags: workload.flags,
        to_proxy: direction.flags & Direction::TO_PROXY != 0,
        tcp_state: socket.state(),
        write_seq: socket.tcp()?.write_seq()?,
        copied_seq: receiver.copied_seq()?,
        unread_bytes: direction.sent_bytes.wrapping_sub(direction.drained_bytes),
        message_bytes: bytes,
        credit_bytes: workload.credit_bytes,
    })
}
