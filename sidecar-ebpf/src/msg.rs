//! sk_msg: a message goes straight into the receive queue of the other end, if there is proof that it overtakes nothing and
//! that the queue stays bounded; else it takes TCP.
//!
//! A socket keeps the program that the map had when it entered it, so that another one attached there would reach no
//! connection that exists. So what is attached is a stub that never changes; what it calls does.

use aya_ebpf::{macros::sk_msg, programs::SkMsgContext};
use sidecar_common::{record::Counter, socket_state::SocketState};
use sidecar_ebpf::evidence::{self, Kernel, Receiver, Redirected};

use crate::{
    context::{Entry, LOAD_CONSTANTS, TcpSocket, sender, tail_call},
    counters::count,
    enrolment::{enrolled, splices},
    maps::{FLOWS, HALF_FLOWS, MSG_PROGRAMS, SOCKETS},
};

/// What is not redirected takes TCP.
const SK_PASS: u32 = 1;
const BPF_F_INGRESS: u64 = 1;

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
    let bulk = evidence::is_bulk(&Maps, state, bytes);
    let redirect = |cookie: u64| {
        let mut cookie = cookie;
        FLOWS.redirect_msg(&ctx, &mut cookie, BPF_F_INGRESS) == SK_PASS as i64
    };
    match evidence::message(&Maps, state, socket.state(), bytes, bulk, redirect) {
        Ok(redirected) => {
            if redirected == Redirected::Joined || !bulk {
                state.redirected = state.redirected.wrapping_add(1);
            } else {
                state.fallback = state.fallback.wrapping_add(1);
            }
            count(state.workload, Counter::Redirected, 1);
            if redirected == Redirected::Joined {
                count(state.workload, Counter::Joined, 1);
            }
            count(state.workload, Counter::RedirectedBytes, bytes as u64);
        }
        Err(why) => {
            state.fallback = state.fallback.wrapping_add(1);
            count(state.workload, why, 1);
            count(state.workload, Counter::TcpBytes, bytes as u64);
        }
    }
    SK_PASS
}

/// What the proofs ask, answered by the maps and by the kernel's own structures.
pub struct Maps;

impl Kernel for Maps {
    type Half = Entry<sidecar_common::flow::HalfFlow>;
    type Tcp = TcpSocket;

    #[inline(always)]
    fn half(&self, cookie: u64) -> Option<Self::Half> {
        HALF_FLOWS.get_ptr_mut(&cookie).map(Entry::new)
    }

    #[inline(always)]
    fn tcp(&self, address: u64) -> TcpSocket {
        TcpSocket::from_word(address)
    }

    #[inline(always)]
    fn workload(&self, index: u32, enrolment: u64) -> Option<Receiver> {
        let workload = enrolled(index, enrolment)?;
        Some(Receiver {
            flags: workload.flags | splices(index),
            credit_bytes: workload.credit_bytes,
        })
    }

    #[inline(always)]
    fn is_enabled(&self) -> bool {
        LOAD_CONSTANTS.load().redirect != 0
    }

    #[inline(always)]
    fn naive(&self) -> u32 {
        LOAD_CONSTANTS.load().naive
    }
}
