//! The kernel half: brings an enrolled workload's connections to its proxy and back, remembers what the
//! application asked for, and moves bytes between sockets of this node past TCP where that is proven safe.
//!
//! | program | hook | attached to |
//! |---|---|---|
//! | `accept_socket` | cgroup/sock_create | the workload's and the proxy's cgroup |
//! | `accept_connect4`, `6` | cgroup/connect4, 6 | the workload's cgroup |
//! | `accept_lookup` | sk_lookup | the workload's network namespace |
//! | `origin_peername4`, `6` | cgroup/getpeername4, 6 | the workload's cgroup |
//! | `origin_getsockopt`, `origin_setsockopt` | cgroup/getsockopt, setsockopt | the proxy's cgroup |
//! | `relay_sockops` | sock_ops | the workload's and the proxy's cgroup |
//! | `relay_stub` | sk_msg | the map `FLOWS`; calls `relay_message` |
//! | `probe_sockops` | sock_ops | the kubelet's cgroup |
//! | `record_splice` | tp_btf/tcp_rcv_space_adjust | the node, while redirect is on |

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    allow(
        clippy::needless_borrows_for_generic_args,
        reason = "map keys are passed by reference: a copy costs stack, of which a program has 512 bytes"
    )
)]

#[cfg(target_arch = "bpf")]
mod accept;
#[cfg(target_arch = "bpf")]
mod context;
#[cfg(target_arch = "bpf")]
mod join;
#[cfg(target_arch = "bpf")]
mod maps;
#[cfg(target_arch = "bpf")]
mod origin;
#[cfg(target_arch = "bpf")]
mod pair;
#[cfg(target_arch = "bpf")]
mod probe;
#[cfg(target_arch = "bpf")]
mod record;
#[cfg(target_arch = "bpf")]
mod relay;
#[cfg(target_arch = "bpf")]
mod sockops;
#[cfg(target_arch = "bpf")]
mod stub;

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
