//! cgroup/connect4 and connect6: the application's connections are rewritten to the proxy, or refused.

use aya_ebpf::{btf_maps::lpm_trie::Key, macros::cgroup_sock_addr, programs::SockAddrContext};
use aya_log_ebpf::debug;
use sidecar_common::{
    address::{Address, Ip},
    record::{Counter, EVENT_CONNECT_REFUSED, EVENT_EGRESS_DENIED},
    settings::{CidrTarget, DenyTarget, OUTBOUND, PortKey},
    socket_state::SocketState,
};
use sidecar_ebpf::decide::{self, Connect};

use crate::{
    context::{SetOption, Socket, UserAddress, octets},
    counters::{count, event_of_task},
    device,
    maps::{CIDRS, DENIALS, PORTS, ROUTES, SOCKETS, WORKLOADS},
    member::member_of_current,
    rendezvous,
    sock_create::{MPTCP, SOCK_STREAM, TCP, newborn},
};

const ALLOW: i32 = 1;
/// `connect` fails with EPERM.
const DENY: i32 = 0;

/// Longest prefix: 32 bits of workload and 128 of address.
const WHOLE_TARGET: u32 = 160;
/// And 32 bits of port.
const WHOLE_DENIAL: u32 = 192;

/// What becomes of a connection that is not left alone.
enum Verdict {
    /// To the proxy's port.
    Steer(u16),
    Deny,
}

#[cgroup_sock_addr(connect4)]
pub fn cgroup_connect4(ctx: SockAddrContext) -> i32 {
    match try_connect(&ctx, ctx.address4()) {
        Some(Verdict::Deny) => DENY,
        Some(Verdict::Steer(port)) => {
            ctx.set_address4(Address::new(Ip::from_v4(0x7f00_0001_u32.to_be()), port));
            ALLOW
        }
        None => ALLOW,
    }
}

#[cgroup_sock_addr(connect6)]
pub fn cgroup_connect6(ctx: SockAddrContext) -> i32 {
    let destination = ctx.address6();
    match try_connect(&ctx, destination) {
        Some(Verdict::Deny) => DENY,
        Some(Verdict::Steer(port)) => {
            let loopback = if destination.ip.is_v4() {
                Ip::from_v4(0x7f00_0001_u32.to_be())
            } else {
                Ip([0, 0, 0, 1_u32.to_be()])
            };
            ctx.set_address6(Address::new(loopback, port));
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
    let state = match SOCKETS.get(socket) {
        Some(state) => state,
        // Created before the workload was enrolled, or handed in from outside.
        None => {
            let mut state = newborn(protocol)?;
            let workload = state.workload;
            match SOCKETS.get_or_insert(socket, &mut state) {
                Some(state) => state,
                // What cannot be remembered cannot be steered.
                None => return Some(refuse(workload, destination)),
            }
        }
    };
    if let Some(member) = member_of_current()
        && member.workload != state.workload
    {
        // Of a former enrolment, whose place among the workloads another one may have by now, or handed over by another pod.
        *state = newborn(protocol)?;
    }
    let id = state.workload;
    let workload = WORKLOADS.get(id)?;
    // Steered a moment ago by the program of a sidecar that this one takes over from.
    if state.is(SocketState::STEERED)
        && destination.ip.is_loopback()
        && destination.port == workload.outbound_port
    {
        return None;
    }
    // The socket may have been connected before.
    state.original = Address::default();
    state.shown_peer = Address::default();
    state.source = Ip::default();
    state.flags &= SocketState::PROXY | SocketState::MULTIPATH;
    if state.is(SocketState::PROXY) {
        return None;
    }
    let target = Key::new(
        WHOLE_TARGET,
        CidrTarget {
            workload: id,
            ip: destination.ip,
        },
    );
    let cidr = CIDRS.get(&target).is_some();
    let rule = denied_by(id, destination);
    match decide::connect(
        workload,
        destination.ip,
        rule != 0,
        cidr,
        port_rule(id, OUTBOUND, destination.port),
    ) {
        Connect::Steer => {
            if keep_bindings(ctx, socket, state).is_none()
                || rendezvous::reserve(id, ctx.cookie()).is_none()
            {
                return Some(refuse(id, destination));
            }
            if socket.bound().ip.is_unspecified() {
                let source = match state.device {
                    0 => ROUTES.get(&target).copied(),
                    _ => device::source(state, destination.ip.is_v4()),
                };
                state.source = source.unwrap_or_default();
            }
            state.original = destination;
            state.shown_peer = destination;
            state.flags |= SocketState::STEERED;
            count(id, Counter::Steered, 1);
            debug!(
                ctx,
                "workload {}: steered from {:i} port {}",
                id,
                octets(destination.ip),
                destination.port
            );
            Some(Verdict::Steer(workload.outbound_port))
        }
        Connect::Deny => {
            count(id, Counter::Denied, 1);
            event_of_task(EVENT_EGRESS_DENIED, id, rule as i32, destination);
            Some(Verdict::Deny)
        }
        Connect::Leave(why) => {
            if bind_to_device(ctx, state).is_none() {
                return Some(refuse(id, destination));
            }
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
        Connect::Ignore if bind_to_device(ctx, state).is_none() => Some(refuse(id, destination)),
        Connect::Ignore => None,
    }
}

/// What the application has bound the socket to is remembered for the proxy, whose connection will have it. `None`: the socket
/// stays bound to a device, from which the proxy cannot be reached.
#[inline(always)]
fn keep_bindings(ctx: &SockAddrContext, socket: Socket, state: &mut SocketState) -> Option<()> {
    let device = socket.device();
    if device != 0 {
        ctx.bind_to_device(device::NO_DEVICE)?;
        state.device = device;
    }
    let bound = socket.bound();
    if bound.ip.is_loopback() {
        // Nothing leaves the machine from there: the proxy's connection cannot have it.
        return Some(());
    }
    if !bound.ip.is_unspecified() {
        state.flags |= SocketState::BOUND_ADDRESS;
    }
    if bound.port != 0 {
        state.flags |= SocketState::BOUND_PORT;
        // The proxy's socket will be bound to the same port of the same address.
        ctx.reuse_address();
    }
    Some(())
}

/// The connection goes out by itself: what the application wanted its socket to be bound to holds from now on.
#[inline(always)]
fn bind_to_device(ctx: &SockAddrContext, state: &mut SocketState) -> Option<()> {
    if state.device != 0 {
        ctx.bind_to_device(device::name_of(state)?)?;
        state.device = 0;
    }
    Some(())
}

/// The workload is steered, and this connection cannot be.
#[inline(always)]
fn refuse(workload: u32, destination: Address) -> Verdict {
    count(workload, Counter::ConnectRefused, 1);
    event_of_task(EVENT_CONNECT_REFUSED, workload, 0, destination);
    Verdict::Deny
}

/// The rule that denies the destination to the workload, or 0.
#[inline(always)]
fn denied_by(workload: u32, destination: Address) -> u32 {
    let rule = |port: u32| {
        let ip = destination.ip;
        let target = DenyTarget { workload, port, ip };
        DENIALS
            .get(&Key::new(WHOLE_DENIAL, target))
            .map_or(0, |rule| *rule)
    };
    match rule(destination.port as u32) {
        0 => rule(0),
        rule => rule,
    }
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
