//! cgroup/getpeername4 and getpeername6: the application sees the peer that it asked for, or that called it.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sidecar_common::address::Address;

use crate::{
    context::{UserAddress, of_subflow},
    maps::SOCKETS,
    sock_create::MPTCP,
};

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(ctx: SockAddrContext) -> i32 {
    if let Some(peer) = shown_peer(&ctx)
        && peer.ip.is_v4()
    {
        ctx.set_address4(peer);
    }
    ALLOW
}

#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(ctx: SockAddrContext) -> i32 {
    if let Some(peer) = shown_peer(&ctx) {
        ctx.set_address6(peer);
    }
    ALLOW
}

#[inline(always)]
fn shown_peer(ctx: &SockAddrContext) -> Option<Address> {
    let socket = ctx.socket()?;
    let peer = match SOCKETS.get(socket) {
        Some(state) if state.shown_peer.is_some() => state.shown_peer,
        _ if ctx.kind().1 == MPTCP => of_subflow(ctx, socket, &SOCKETS, |state| state.shown_peer)?,
        _ => return None,
    };
    peer.is_some().then_some(peer)
}
