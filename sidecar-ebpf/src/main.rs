//! The kernel half: brings an enrolled workload's connections to its proxy and back, remembers what the
//! application asked for, and moves bytes between sockets of this node past TCP where that is proven safe.
//!
//! | program | hook | attached to |
//! |---|---|---|
//! | `sock_create` | cgroup/sock_create | the workload's and the proxy's cgroup |
//! | `cgroup_connect4`, `6` | cgroup/connect4, 6 | the workload's and the proxy's cgroup |
//! | `lookup_inbound` | sk_lookup | the workload's network namespace |
//! | `getpeername4`, `6` | cgroup/getpeername4, 6 | the workload's cgroup |
//! | `cgroup_getsockopt`, `cgroup_setsockopt` | cgroup/getsockopt, setsockopt | the proxy's cgroup |
//! | `workload_sockops` | sock_ops | the workload's and the proxy's cgroup |
//! | `msg_stub` | sk_msg | the map `FLOWS`; calls `msg_redirect` |
//! | `kubelet_sockops` | sock_ops | the kubelet's cgroup |
//! | `egress_connect4`, `6`, `egress_sendmsg4`, `6`, `egress_packet` | cgroup/connect, sendmsg, cgroup_skb/egress | the workload's cgroup, while it has rules for destinations |
//! | `egress_setsockopt`, `egress_frame` | cgroup/setsockopt, tc egress | the same, and the interfaces of its network namespace |
//! | `trace_splice` | tp_btf/tcp_rcv_space_adjust | the node, while redirect is on |
//!
//! # Layout
//!
//! - a file per hook: [`sock_create`], [`connect`], [`lookup`], [`getpeername`], [`sockopt`], [`sockops`], [`msg`], [`trace`];
//!   [`kubelet`] is the second sock_ops program; [`egress`] has all that are there only where there are rules for destinations
//! - [`rendezvous`], how both ends of a connection meet; [`pair`], who enters the SOCKHASH
//! - [`member`], who the current task belongs to; [`enrolment`], whose a socket is; [`counters`], what is counted and told
//! - [`maps`]; [`context`], the unsafe
//! - tested on the host: [`sidecar_ebpf::decide`], pure decisions; [`sidecar_ebpf::evidence`], whether a message may be redirected;
//!   [`sidecar_ebpf::packet`], what a packet opens

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        clippy::needless_borrows_for_generic_args,
        reason = "map keys are passed by reference: a copy costs stack, of which a program has 512 bytes"
    )
)]

#[cfg(target_arch = "bpf")]
mod connect;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod counters;
#[cfg(target_arch = "bpf")]
mod egress;
#[cfg(target_arch = "bpf")]
mod enrolment;
#[cfg(target_arch = "bpf")]
mod getpeername;
#[cfg(target_arch = "bpf")]
mod kubelet;
#[cfg(target_arch = "bpf")]
mod lookup;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod member;
#[cfg(target_arch = "bpf")]
mod msg;
#[cfg(target_arch = "bpf")]
mod pair;
#[cfg(target_arch = "bpf")]
mod rendezvous;
#[cfg(target_arch = "bpf")]
mod sock_create;
#[cfg(target_arch = "bpf")]
mod sockops;
#[cfg(target_arch = "bpf")]
mod sockopt;
#[cfg(target_arch = "bpf")]
mod trace;

/// The kernel accepts GPL-compatible programs only for most helpers; the project's own licences stay.
#[cfg(target_arch = "bpf")]
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[cfg(all(target_arch = "bpf", not(test)))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}
