//! cgroup/connect4 and connect6: the application's connections are rewritten to the proxy, or refused.

use aya_ebpf::{btf_maps::lpm_trie::Key, macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::debug;
use sidecar_common::{
    address::{Address, Ip},
    record::{Counter, EVENT_CONNECT_REFUSED, EVENT_PROXY_AWAY},
    settings::{CidrTarget, OUTBOUND, PortKey, ROLE_EXCLUDED, protocol},
    socket_state::SocketState,
};
use sidecar_ebpf::decide::{self, Connect};

use crate::{
    context::{UserAddress, current_pid, fail_with, octets},
    counters::{count, denial, event_of_task},
    egress::denied_by,
    enrolment::workload_of,
    maps::{CIDRS, PORTS, SOCKETS},
    member::owner,
    rendezvous,
    sock_create::{MPTCP, SOCK_STREAM, TCP, newborn},
};

const ALLOW: i32 = 1;
/// `connect` fails with EPERM.
const DENY: i32 = 0;
const ENOBUFS: i32 = 105;

/// The port at which no socket can listen: the kernel refuses the connection as it does where the proxy does not listen.
const NOBODY: u16 = 0;

/// Longest prefix: 32 bits of workload and 128 of address.
const WHOLE_TARGET: u32 = 160;

/// What becomes of a connection that is not left alone.
enum Verdict {
    /// To the proxy, on loopback.
    Steer(Address),
    Deny,
}

#[cgroup_sock_addr(connect4)]
pub fn cgroup_connect4(ctx: SockAddrContext) -> i32 {
    match try_connect(&ctx, ctx.address4()) {
        Some(Verdict::Deny) => DENY,
        Some(Verdict::Steer(to)) => {
            ctx.set_address4(to);
            ALLOW
        }
        None => ALLOW,
    }
}

#[cgroup_sock_addr(connect6)]
pub fn cgroup_connect6(ctx: SockAddrContext) -> i32 {
    match try_connect(&ctx, ctx.address6()) {
        Some(Verdict::Deny) => DENY,
        Some(Verdict::Steer(to)) => {
            ctx.set_address6(to);
            ALLOW
        }
        None => ALLOW,
    }
}

/// What to do with the connection, if it is not to be left alone.
#[inline(always)]
fn try_connect(ctx: &SockAddrContext, destination: Address) -> Option<Verdict> {
    let (kind, protocol) = ctx.kind();
    if kind != SOCK_STREAM || (protocol != TCP && protocol != MPTCP) {
        return None;
    }
    let socket = ctx.socket()?;
    let known = SOCKETS.get(socket);
    let state = match known {
        Some(state) if workload_of(state).is_some() => state,
        // Made before the workload was enrolled, handed in from outside, made by the kernel, or of a workload that has left.
        _ => {
            let owner = owner(ctx.netns_cookie());
            if owner.role == 0 {
                // Who is not known is not let through. Nobody can be told, as it cannot be said of whom.
                return Some(Verdict::Deny);
            }
            if owner.role == ROLE_EXCLUDED || owner.enrolment == 0 {
                return None;
            }
            let mut state = newborn(owner, protocol);
            match SOCKETS.get_or_insert(socket, &mut state) {
                Some(kept) => {
                    *kept = state;
                    kept
                }
                // What cannot be remembered cannot be steered.
                None => return Some(refuse(owner.workload, destination)),
            }
        }
    };
    let id = state.workload;
    let workload = workload_of(state)?;
    if workload.outbound_port == 0 {
        // Not steered: the self-test says itself what its sockets are.
        return None;
    }
    // Steered a moment ago by the program of a sidecar that this one takes over from: judged again.
    let again = state.is(SocketState::STEERING)
        && destination.ip.is_loopback()
        && destination.port == workload.outbound_port;
    let destination = if again { state.original } else { destination };
    // The socket may have been connected before.
    state.original = Address::default();
    state.shown_peer = Address::default();
    state.flags &= SocketState::PROXY | SocketState::MULTIPATH;
    if state.is(SocketState::PROXY) {
        // Where it cannot be known as the proxy's own, the proxy may be handed it, and so on.
        let kept = rendezvous::reserve(state, ctx.cookie());
        return kept.is_none().then(|| refuse(id, destination));
    }
    let target = Key::new(
        WHOLE_TARGET,
        CidrTarget {
            workload: id,
            ip: destination.ip,
        },
    );
    let cidr = CIDRS.get(&target).is_some();
    let tcp = protocol::TCP;
    let rule = denied_by(id, workload.flags, destination, tcp);
    match decide::connect(
        workload,
        destination.ip,
        rule != 0,
        cidr,
        port_rule(id, OUTBOUND, destination.port),
    ) {
        Connect::Steer => {
            let proxy = Address::new(loopback(destination.ip), workload.outbound_port);
            if !is_proxy_there(ctx, proxy, state) {
                count(id, Counter::ConnectRefused, 1);
                event_of_task(EVENT_PROXY_AWAY, id, destination);
                return Some(Verdict::Steer(Address::new(proxy.ip, NOBODY)));
            }
            if rendezvous::reserve(state, ctx.cookie()).is_none() {
                return Some(refuse(id, destination));
            }
            state.original = destination;
            state.shown_peer = destination;
            state.flags |= SocketState::STEERED | SocketState::STEERING;
            if !again {
                count(id, Counter::Steered, 1);
            }
            debug!(
                ctx,
                "workload {}: steered from {:i} port {}",
                id,
                octets(destination.ip),
                destination.port
            );
            Some(Verdict::Steer(proxy))
        }
        Connect::Deny => {
            denial(id, current_pid(), rule, destination, tcp.into());
            Some(Verdict::Deny)
        }
        Connect::Leave(why) => {
            count(id, why, 1);
            debug!(
                ctx,
                "workload {}: left alone {:i} port {}",
                id,
                octets(destination.ip),
                destination.port
            );
            None
        }
        Connect::Ignore => None,
    }
}

/// Where connections of this family find the proxy.
#[inline(always)]
fn loopback(destination: Ip) -> Ip {
    if destination.is_v4() {
        Ip::from_v4(0x7f00_0001_u32.to_be())
    } else {
        Ip([0, 0, 0, 1_u32.to_be()])
    }
}

/// Whether the workload's own proxy listens there. Its port is free when it has gone, for anybody on a host, who would be sent what is
/// meant for others.
#[inline(always)]
fn is_proxy_there(ctx: &SockAddrContext, proxy: Address, state: &SocketState) -> bool {
    let is_proxy = |listener| match SOCKETS.get(listener) {
        Some(found) => {
            found.is(SocketState::PROXY)
                && found.workload == state.workload
                && found.enrolment == state.enrolment
        }
        None => false,
    };
    ctx.listener(proxy, is_proxy).unwrap_or(false)
}

/// The workload is steered, and this connection cannot be: for want of room, not by a rule.
#[inline(always)]
fn refuse(workload: u32, destination: Address) -> Verdict {
    fail_with(ENOBUFS);
    count(workload, Counter::ConnectRefused, 1);
    event_of_task(EVENT_CONNECT_REFUSED, workload, destination);
    Verdict::Deny
}

/// Flags of the rule for a port of a workload, or 0.
#[inline(always)]
pub fn port_rule(workload: u32, direction: u16, port: u16) -> u32 {
    let key = PortKey {
        workload,
        port,
        direction,
    };
    PORTS.get_ptr(&key).map_or(0, crate::context::read)
}
