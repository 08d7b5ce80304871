//! The contexts of a connection's course: sock_ops and sk_msg.

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_ops,
    btf_maps::{ProgramArray, SockHash},
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie, generated::bpf_map_delete_elem},
    programs::{SkMsgContext, SockOpsContext},
};
use sidecar_common::{
    address::{Address, Ip},
    flow::FlowKey,
};

use super::{
    address::{AF_INET, read_ip6},
    socket::Socket,
};

/// The flow of a context that names both ends, as the socket sees it.
pub trait Ends {
    fn flow(&self) -> FlowKey;
}

impl Ends for SockOpsContext {
    #[inline(always)]
    fn flow(&self) -> FlowKey {
        // SAFETY: context fields; the helper takes this context.
        unsafe {
            let ops = self.ops;
            let (local, remote) = if (*ops).family == AF_INET {
                (
                    Ip::from_v4((*ops).local_ip4),
                    Ip::from_v4((*ops).remote_ip4),
                )
            } else {
                (
                    Ip(read_ip6(&raw const (*ops).local_ip6)),
                    Ip(read_ip6(&raw const (*ops).remote_ip6)),
                )
            };
            FlowKey::new(
                bpf_get_netns_cookie(self.as_ptr()),
                Address::new(local, (*ops).local_port as u16),
                Address::new(remote, u32::from_be((*ops).remote_port) as u16),
            )
        }
    }
}

/// `BPF_SOCK_OPS_STATE_CB_FLAG`
const STATE_CB_FLAG: i32 = 4;
/// `BPF_SOCK_OPS_WRITE_HDR_OPT_CB_FLAG`
const WRITE_HDR_OPT_CB_FLAG: i32 = 1 << 6;

/// What the sock_ops programs need beyond aya's accessors.
pub trait Operation {
    fn socket(&self) -> Option<Socket>;
    fn cookie(&self) -> u64;
    fn netns_cookie(&self) -> u64;
    fn watch_close(&self) -> Option<()>;
    fn watch_segments(&self) -> Option<bool>;
    fn unwatch_segments(&self) -> Option<()>;
    #[expect(
        clippy::mut_from_ref,
        reason = "aya's SockHash::update wants it so; the context outlives the call"
    )]
    fn raw(&self) -> &mut bpf_sock_ops;
}

impl Operation for SockOpsContext {
    #[inline(always)]
    fn socket(&self) -> Option<Socket> {
        // SAFETY: context fields; `sk` is null for a request socket.
        unsafe {
            if (*self.ops).is_fullsock == 0 {
                return None;
            }
            Socket::new((*self.ops).__bindgen_anon_2.sk)
        }
    }

    #[inline(always)]
    fn cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_socket_cookie(self.as_ptr()) }
    }

    #[inline(always)]
    fn netns_cookie(&self) -> u64 {
        // SAFETY: the helper takes this context.
        unsafe { bpf_get_netns_cookie(self.as_ptr()) }
    }

    /// Asks for a call when the socket's state changes, beside what other programs have asked for.
    #[inline(always)]
    fn watch_close(&self) -> Option<()> {
        self.set_cb_flags(self.cb_flags() as i32 | STATE_CB_FLAG)
            .ok()
    }

    /// Asks for a call before each segment is made, and before bytes are queued for one. `true`: somebody else has.
    #[inline(always)]
    fn watch_segments(&self) -> Option<bool> {
        let flags = self.cb_flags() as i32;
        self.set_cb_flags(flags | WRITE_HDR_OPT_CB_FLAG).ok()?;
        Some(flags & WRITE_HDR_OPT_CB_FLAG != 0)
    }

    /// Takes that back.
    #[inline(always)]
    fn unwatch_segments(&self) -> Option<()> {
        self.set_cb_flags(self.cb_flags() as i32 & !WRITE_HDR_OPT_CB_FLAG)
            .ok()
    }

    #[inline(always)]
    fn raw(&self) -> &mut bpf_sock_ops {
        // SAFETY: the context is valid for the run of the program.
        unsafe { &mut *self.ops }
    }
}

/// sk_msg: the sending socket.
#[inline(always)]
pub fn sender(ctx: &SkMsgContext) -> Option<Socket> {
    // SAFETY: a context field.
    Socket::new(unsafe { (*ctx.msg).__bindgen_anon_3.sk })
}

/// Takes a socket out of the map, which fails where it is not in there.
#[inline(always)]
pub fn take_out<const SLOTS: usize>(map: &SockHash<u64, SLOTS>, key: u64) -> Option<()> {
    let map = core::ptr::from_ref(map).cast_mut().cast();
    // SAFETY: the map is the kernel's; the key is on our stack.
    let code = unsafe { bpf_map_delete_elem(map, (&raw const key).cast_mut().cast()) };
    (code == 0).then_some(())
}

/// Goes on with the program in `programs`, and does not come back if there is one.
#[inline(always)]
pub fn tail_call(ctx: &SkMsgContext, programs: &ProgramArray<1>) {
    // SAFETY: nothing of ours has to be dropped.
    unsafe { programs.tail_call(ctx, 0) }
}
