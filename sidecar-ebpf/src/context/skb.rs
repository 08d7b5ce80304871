//! Packets that leave: cgroup_skb, from their IP header on, and tc, with the frame around.

use core::mem::MaybeUninit;

use aya_ebpf::{
    EbpfContext,
    bindings::__sk_buff,
    helpers::{bpf_skb_ancestor_cgroup_id, bpf_skb_load_bytes, generated::bpf_sk_fullsock},
    programs::{SkBuffContext, TcContext},
};
use sidecar_ebpf::packet::Bytes;

const SOCK_RAW: u32 = 3;

/// A packet that a socket of this machine sends.
#[derive(Clone, Copy)]
pub struct Packet(*mut __sk_buff);

impl Packet {
    #[inline(always)]
    pub fn new(ctx: &SkBuffContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    #[inline(always)]
    pub fn frame(ctx: &TcContext) -> Self {
        Self(ctx.as_ptr().cast())
    }

    /// The family of the socket that sends it, if there is one.
    #[inline(always)]
    pub fn family(&self) -> Option<u32> {
        // SAFETY: context fields; the verifier wants the null check.
        unsafe {
            let socket = (*self.0).__bindgen_anon_2.sk;
            if socket.is_null() {
                None
            } else {
                Some((*socket).family)
            }
        }
    }

    /// The protocol that the kernel speaks on that socket; 0: its owner makes the packets.
    #[inline(always)]
    pub fn spoken(&self) -> u8 {
        // SAFETY: context fields, and a helper that takes the socket; the verifier wants the null checks.
        unsafe {
            let socket = (*self.0).__bindgen_anon_2.sk;
            if socket.is_null() {
                return 0;
            }
            let socket = bpf_sk_fullsock(socket);
            if socket.is_null() || (*socket).type_ == SOCK_RAW {
                return 0;
            }
            (*socket).protocol as u8
        }
    }

    /// Id of that socket's cgroup at `level` below the root, or 0.
    #[inline(always)]
    pub fn ancestor_cgroup(&self, level: i32) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_skb_ancestor_cgroup_id(self.0, level) }
    }
}

impl Bytes for Packet {
    #[inline(always)]
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        // SAFETY: the helper writes `N` bytes or fails.
        unsafe {
            let failed =
                bpf_skb_load_bytes(self.0.cast(), offset, bytes.as_mut_ptr().cast(), N as u32);
            if failed == 0 {
                Some(bytes.assume_init())
            } else {
                None
            }
        }
    }
}
