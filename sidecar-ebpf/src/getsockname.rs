//! cgroup/getsockname4 and getsockname6: a steered socket shows the address that it would have without a sidecar.

use aya_ebpf::{macros::cgroup_sock_addr, programs::SockAddrContext};
use sidecar_common::{
    address::{Address, Ip},
    socket_state::SocketState,
};

use crate::{
    context::{UserAddress, of_subflow},
    maps::SOCKETS,
    sock_create::MPTCP,
};

const ALLOW: i32 = 1;

#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(ctx: SockAddrContext) -> i32 {
    let own = ctx.address4();
    if let Some(source) = source(&ctx, own.ip)
        && source.is_v4()
    {
        ctx.set_address4(Address::new(source, own.port));
    }
    ALLOW
}

#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(ctx: SockAddrContext) -> i32 {
    let own = ctx.address6();
    if let Some(source) = source(&ctx, own.ip) {
        ctx.set_address6(Address::new(source, own.port));
    }
    ALLOW
}

/// What to show instead of `own`. An address that the application has bound its socket to is its own; a socket whose
/// connection has failed has none.
#[inline(always)]
fn source(ctx: &SockAddrContext, own: Ip) -> Option<Ip> {
    if !own.is_loopback() {
        return None;
    }
    let socket = ctx.socket()?;
    let source = |state: &SocketState| match state.is(SocketState::STEERED) {
        true => state.source,
        false => Ip::default(),
    };
    let source = match ctx.kind().1 {
        MPTCP => of_subflow(ctx, socket, &SOCKETS, source)?,
        _ => source(SOCKETS.get(socket)?),
    };
    (!source.is_unspecified()).then_some(source)
}
