//! Step accept: the application's connections are rewritten to the proxy, connections from elsewhere are
//! handed to it.

use aya_ebpf::Global;
use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    macros::{cgroup_sock, cgroup_sock_addr, sk_lookup},
    programs::{SkLookupContext, SockAddrContext, SockContext},
};
use aya_log_ebpf::debug;
use sidecar_common::{
    address::{Address, Ip},
    flow::FlowKey,
    origin::{Pending, SocketState},
    record::{Counter, EVENT_EGRESS_DENIED, EVENT_INBOUND_REFUSED},
    settings::{
        CidrTarget, DenyTarget, INBOUND, ListeningKey, OUTBOUND, PortKey, ROLE_PROXY, Workload,
    },
};
use sidecar_ebpf::decide::{self, Connect};

use crate::{
    context::{AF_INET, AF_INET6, UserAddress, created, octets, packet},
    maps::{CIDRS, DENIALS, LISTENERS, LISTENING, PENDING, PORTS, SOCKETS, WORKLOADS},
    probe::is_probe,
    record::{count, event, event_of_task, member_of_current},
};

const ALLOW: i32 = 1;
/// `connect` fails with EPERM.
const DENY: i32 = 0;
const SK_DROP: u32 = 0;
const SK_PASS: u32 = 1;

const SOCK_STREAM: u32 = 1;
const TCP: u32 = 6;
const MPTCP: u32 = 262;

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

/// Whose inbound connections this instance of `accept_lookup` steers: sk_lookup programs know no cgroup.
#[unsafe(no_mangle)]
static LOOKUP_WORKLOAD: Global<u32> = Global::new(0);

/// Marks every TCP socket of a workload at its birth, so that later hooks, which know no cgroup, know whose it is.
#[cgroup_sock(sock_create)]
pub fn accept_socket(ctx: SockContext) -> i32 {
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
    let mut state = newborn(protocol)?;
    SOCKETS.get_or_insert(socket, &mut state).map(|_| ())
}

/// The state of a socket that the current task creates; `None` if the task belongs to no workload.
#[inline(always)]
fn newborn(protocol: u32) -> Option<SocketState> {
    let member = member_of_current()?;
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
    Some(SocketState {
        workload: member.workload,
        flags: role | multipath,
        ..SocketState::default()
    })
}

#[cgroup_sock_addr(connect4)]
pub fn accept_connect4(ctx: SockAddrContext) -> i32 {
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
pub fn accept_connect6(ctx: SockAddrContext) -> i32 {
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
        None => SOCKETS.get_or_insert(socket, &mut newborn(protocol)?)?,
    };
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

/// Hands new connections for the workload's ports to the proxy's inbound listener. Addresses stay as they are.
#[sk_lookup]
pub fn accept_lookup(ctx: SkLookupContext) -> u32 {
    try_lookup(&ctx).unwrap_or(SK_PASS)
}

#[inline(always)]
fn try_lookup(ctx: &SkLookupContext) -> Option<u32> {
    let (protocol, local, remote) = packet(ctx);
    if protocol != TCP {
        return None;
    }
    mark_local(local, remote);
    let id = LOOKUP_WORKLOAD.load();
    let workload: &Workload = WORKLOADS.get(id)?;
    let listening = ListeningKey {
        netns: workload.netns,
        workload: id,
        port: local.port as u32,
    };
    let listening = LISTENING.get_ptr(&listening).is_some();
    let rule = port_rule(id, INBOUND, local.port);
    if !decide::capture(workload, local.ip, remote.ip, listening, rule) {
        return None;
    }
    if is_probe(local, remote) {
        count(id, Counter::Probe, 1);
        return Some(SK_PASS);
    }
    if LISTENERS.redirect_sk_lookup(ctx, id, 0).is_ok() {
        count(id, Counter::Inbound, 1);
        Some(SK_PASS)
    } else if decide::fail_closed(workload) {
        count(id, Counter::InboundRefused, 1);
        event(EVENT_INBOUND_REFUSED, id, 0, local);
        Some(SK_DROP)
    } else {
        count(id, Counter::InboundBypassed, 1);
        Some(SK_PASS)
    }
}

/// A connecting socket of this node finds here, before it is established, that its other end is on this node
/// too: only then does it belong into the SOCKHASH.
#[inline(always)]
fn mark_local(local: Address, remote: Address) {
    let key = FlowKey {
        netns: 0,
        local,
        remote,
    };
    if let Some(pending) = PENDING.get_ptr_mut(&key) {
        crate::context::update(pending, |p: &mut Pending| p.flags |= Pending::LOCAL);
    }
}
