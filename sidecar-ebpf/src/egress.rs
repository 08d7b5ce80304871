//! Rules for destinations beyond the application's TCP connections, which `connect` judges: these programs are attached only
//! where there are rules.
//!
//! - cgroup/connect4 and 6 of other sockets, cgroup/sendmsg4 and 6: whoever asks fails with EPERM, and is named in the log.
//! - cgroup_skb/egress: what none of them has seen, or saw under other rules. Packets of raw sockets, of protocols without
//!   such a hook, the SYN of a connection, and UDP, which opens with each packet.
//! - Packet sockets never get there. They send nothing where there are rules: `egress_frame` drops it on the interface, and
//!   `egress_setsockopt` refuses the options by which frames would go past that.

use aya_ebpf::{
    btf_maps::lpm_trie::Key,
    macros::{cgroup_skb, cgroup_sock_addr, cgroup_sockopt, classifier},
    programs::{SkBuffContext, SockAddrContext, SockoptContext, TcContext},
};
use sidecar_common::{
    address::Address,
    denial::{self, Found},
    record::{PROTOCOL_FRAME, PROTOCOL_UNKNOWN},
    settings::{
        Cgroup, DenyTarget, ROLE_EXCLUDED, ROLE_PROXY, Ruling, WORKLOAD_DENIES, WORKLOAD_ENROLLED,
        protocol::{self, TCP},
    },
};
use sidecar_ebpf::packet::{self, Judgement};

use crate::{
    context::{Packet, SocketOption, UserAddress, current_pid},
    counters::denial,
    enrolment::enrolled,
    maps::DENIALS,
    member::{member_of_sender, owner},
    sock_create::{MPTCP, SOCK_STREAM},
};

const ALLOW: i32 = 1;
/// The system call fails with EPERM.
const DENY: i32 = 0;

/// `TCX_NEXT`: what other programs say.
const NEXT: i32 = -1;
/// `TCX_DROP`
const DROP: i32 = 2;

/// Longest prefix: 32 bits of workload, 32 of port and protocol, 128 of address.
const WHOLE_DENIAL: u32 = 192;

const AF_PACKET: u32 = 17;
const SOL_PACKET: i32 = 263;
const PACKET_QDISC_BYPASS: i32 = 20;
const SOL_XDP: i32 = 283;
const SOCK_RAW: u32 = 3;

#[cgroup_sock_addr(connect4)]
pub fn egress_connect4(ctx: SockAddrContext) -> i32 {
    connect(&ctx, ctx.address4())
}

#[cgroup_sock_addr(connect6)]
pub fn egress_connect6(ctx: SockAddrContext) -> i32 {
    connect(&ctx, ctx.address6())
}

#[cgroup_sock_addr(sendmsg4)]
pub fn egress_sendmsg4(ctx: SockAddrContext) -> i32 {
    verdict(asked(&ctx, ctx.address4()))
}

#[cgroup_sock_addr(sendmsg6)]
pub fn egress_sendmsg6(ctx: SockAddrContext) -> i32 {
    verdict(asked(&ctx, ctx.address6()))
}

#[cgroup_skb(egress)]
pub fn egress_packet(ctx: SkBuffContext) -> i32 {
    verdict(sent(&Packet::new(&ctx)))
}

#[cgroup_sockopt(setsockopt)]
pub fn egress_setsockopt(ctx: SockoptContext) -> i32 {
    let past = match ctx.name() {
        (SOL_PACKET, PACKET_QDISC_BYPASS) => true,
        // Without its rings an AF_XDP socket sends nothing.
        (level, _) => level == SOL_XDP,
    };
    if past {
        return DENY;
    }
    ctx.unchanged();
    ALLOW
}

#[classifier]
pub fn egress_frame(ctx: TcContext) -> i32 {
    match framed(&Packet::frame(&ctx)) {
        Some(()) => DROP,
        None => NEXT,
    }
}

#[inline(always)]
fn verdict(denied: Option<()>) -> i32 {
    match denied {
        Some(()) => DENY,
        None => ALLOW,
    }
}

#[inline(always)]
fn connect(ctx: &SockAddrContext, destination: Address) -> i32 {
    let (kind, protocol) = ctx.kind();
    // `cgroup_connect4` and 6 judge it.
    if kind == SOCK_STREAM && (protocol == u32::from(TCP) || protocol == MPTCP) {
        return ALLOW;
    }
    verdict(asked(ctx, destination))
}

/// `Some`: a destination is asked for that is denied to the socket's workload, whoever uses the socket.
#[inline(always)]
fn asked(ctx: &SockAddrContext, destination: Address) -> Option<()> {
    if destination.ip.is_loopback() || destination.ip.is_unspecified() {
        return None;
    }
    let (kind, protocol) = ctx.kind();
    let member = owner(ctx.netns_cookie());
    // Whose it cannot be told here, its packets tell.
    if member.role == 0 || member.role == ROLE_PROXY || member.role == ROLE_EXCLUDED {
        return None;
    }
    let (id, protocol) = (member.workload, protocol as u8);
    let ports = kind != SOCK_RAW && protocol::has_ports(protocol);
    let port = if ports { destination.port } else { 0 };
    let destination = Address::new(destination.ip, port);
    let rule = denied_by(id, flags(&member), destination, protocol);
    if rule == 0 {
        return None;
    }
    denial(id, current_pid(), rule, destination, protocol.into());
    Some(())
}

/// `Some`: a socket of the workload sends a packet that opens something where that is denied.
#[inline(always)]
fn sent(packet: &Packet) -> Option<()> {
    let judgement = packet::judge(packet, packet.spoken());
    if matches!(judgement, Judgement::Pass) {
        return None;
    }
    let member = member_of_sender(packet)?;
    if member.role == ROLE_PROXY {
        return None;
    }
    let id = member.workload;
    let flags = flags(&member);
    match judgement {
        Judgement::Ask {
            destination,
            protocol,
        } => {
            let rule = denied_by(id, flags, destination, protocol);
            if rule == 0 {
                return None;
            }
            denial(id, 0, rule, destination, protocol.into());
        }
        Judgement::Unknown { destination } => {
            if flags & WORKLOAD_DENIES == 0 {
                return None;
            }
            denial(id, 0, 0, destination, PROTOCOL_UNKNOWN);
        }
        Judgement::Pass => return None,
    }
    Some(())
}

/// `Some`: a packet socket of a workload with rules sends it.
#[inline(always)]
fn framed(packet: &Packet) -> Option<()> {
    if packet.family()? != AF_PACKET {
        return None;
    }
    let member = member_of_sender(packet)?;
    if member.role == ROLE_PROXY || flags(&member) & WORKLOAD_DENIES == 0 {
        return None;
    }
    denial(member.workload, 0, 0, Address::default(), PROTOCOL_FRAME);
    Some(())
}

/// The rule that denies the destination to the workload with these `flags`, or 0.
#[inline(always)]
pub fn denied_by(workload: u32, flags: u32, destination: Address, protocol: u8) -> u32 {
    if flags & WORKLOAD_DENIES == 0 {
        return 0;
    }
    let ip = destination.ip;
    let ruling = |port: u16, protocol: u8| {
        let protocol = u16::from(protocol);
        let target = DenyTarget {
            workload,
            port,
            protocol,
            ip,
        };
        let found = DENIALS.get(&Key::new(WHOLE_DENIAL, target));
        found.map_or(Ruling::NONE, |ruling| Ruling(*ruling))
    };
    let port = destination.port;
    let has_port = port != 0;
    denial::denied_by(&Found {
        both: if has_port {
            ruling(port, protocol)
        } else {
            Ruling::NONE
        },
        port: if has_port {
            ruling(port, 0)
        } else {
            Ruling::NONE
        },
        protocol: ruling(0, protocol),
        neither: ruling(0, 0),
    })
}

/// Of the workload that is meant, if it is enrolled; else none.
#[inline(always)]
fn flags(member: &Cgroup) -> u32 {
    match enrolled(member.workload, member.enrolment) {
        Some(workload) if workload.flags & WORKLOAD_ENROLLED != 0 => workload.flags,
        _ => 0,
    }
}
