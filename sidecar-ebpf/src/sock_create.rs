//! cgroup/sock_create: marks every TCP socket of a workload at its birth, so that later hooks, which know no cgroup, know
//! whose it is.

use aya_ebpf::{macros::cgroup_sock, programs::SockContext};
use sidecar_common::{
    settings::{Cgroup, ROLE_PROXY},
    socket_state::SocketState,
};

use crate::{
    context::{AF_INET, AF_INET6, created},
    maps::SOCKETS,
    member::member_of_current,
};

const ALLOW: i32 = 1;

pub const SOCK_STREAM: u32 = 1;
pub const TCP: u32 = 6;
pub const MPTCP: u32 = 262;

/// Marks every TCP socket of a workload at its birth, so that later hooks, which know no cgroup, know whose it is.
#[cgroup_sock(sock_create)]
pub fn sock_create(ctx: SockContext) -> i32 {
    let _ = try_socket(&ctx);
    ALLOW
}

#[inline(always)]
fn try_socket(ctx: &SockContext) -> Option<()> {
    let (socket, family, kind, protocol) = created(ctx)?;
    if kind != SOCK_STREAM
        || (family != AF_INET && family != AF_INET6)
        || (protocol != TCP && protocol != MPTCP)
    {
        return None;
    }
    // The task's, which makes the socket.
    let mut state = newborn(member_of_current()?, protocol);
    SOCKETS.get_or_insert(socket, &mut state).map(|_| ())
}

/// The state of a new socket.
#[inline(always)]
pub fn newborn(member: Cgroup, protocol: u32) -> SocketState {
    let role = if member.role == ROLE_PROXY {
        SocketState::PROXY
    } else {
        0
    };
    let multipath = if protocol == MPTCP {
        SocketState::MULTIPATH
    } else {
        0
    };
    SocketState {
        workload: member.workload,
        enrolment: member.enrolment,
        flags: role | multipath,
        ..SocketState::default()
    }
}
