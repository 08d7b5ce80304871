//! Multipath TCP: the hooks of a connection run on the subflow, those that answer the application on the socket above it,
//! which has the same addresses.

use core::mem::size_of;

use aya_ebpf::{
    EbpfContext,
    bindings::bpf_sock_tuple,
    helpers::generated::{bpf_sk_lookup_tcp, bpf_sk_release},
    programs::SockAddrContext,
};
use sidecar_common::{address::Ip, socket_state::SocketState};

use super::{
    address::{AF_INET, read_ip6},
    socket::Socket,
    storage::SocketStorage,
};

/// `BPF_F_CURRENT_NETNS`: that of the context's socket.
const OWN_NETWORK: u64 = u64::MAX;

/// `struct bpf_sock_tuple`, as a packet for the socket has it.
#[repr(C)]
struct Tuple<const WORDS: usize> {
    from: [u32; WORDS],
    to: [u32; WORDS],
    from_port: u16,
    to_port: u16,
}

/// What `look` finds in the state of the first subflow of `socket`, if it has one.
#[inline(always)]
pub fn of_subflow<T>(
    ctx: &SockAddrContext,
    socket: Socket,
    sockets: &SocketStorage<SocketState>,
    look: impl FnOnce(&SocketState) -> T,
) -> Option<T> {
    let remote = socket.remote_ip6();
    let v4 = socket.family() == AF_INET || Ip(remote).is_v4();
    let subflow = if v4 {
        let tuple = Tuple {
            from: [socket.remote_ip4()],
            to: [socket.local_ip4()],
            from_port: socket.remote_port(),
            to_port: socket.local_port().to_be(),
        };
        find(ctx, &tuple)
    } else {
        let tuple = Tuple {
            from: remote,
            to: socket.local_ip6(),
            from_port: socket.remote_port(),
            to_port: socket.local_port().to_be(),
        };
        find(ctx, &tuple)
    }?;
    let found = sockets.get(subflow).map(|state| look(state));
    // SAFETY: from `find`, and not used any more.
    unsafe { bpf_sk_release(subflow.0.cast()) };
    found
}

/// A reference that has to be given back.
#[inline(always)]
fn find<const WORDS: usize>(ctx: &SockAddrContext, tuple: &Tuple<WORDS>) -> Option<Socket> {
    let bytes = size_of::<Tuple<WORDS>>() as u32;
    let tuple = core::ptr::from_ref(tuple)
        .cast_mut()
        .cast::<bpf_sock_tuple>();
    // SAFETY: the helper takes this context, and reads so many bytes of the tuple.
    Socket::new(unsafe { bpf_sk_lookup_tcp(ctx.as_ptr(), tuple, bytes, OWN_NETWORK, 0) })
}

impl Socket {
    #[inline(always)]
    fn family(self) -> u32 {
        // SAFETY: not null; the verifier checks the rest, here and below.
        unsafe { (*self.0).family }
    }

    #[inline(always)]
    fn local_ip4(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).src_ip4 }
    }

    #[inline(always)]
    fn remote_ip4(self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).dst_ip4 }
    }

    #[inline(always)]
    fn local_ip6(self) -> [u32; 4] {
        // SAFETY: as above.
        unsafe { read_ip6(&raw const (*self.0).src_ip6) }
    }

    #[inline(always)]
    fn remote_ip6(self) -> [u32; 4] {
        // SAFETY: as above.
        unsafe { read_ip6(&raw const (*self.0).dst_ip6) }
    }

    #[inline(always)]
    fn local_port(self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.0).src_port as u16 }
    }

    /// In network order.
    #[inline(always)]
    fn remote_port(self) -> u16 {
        // SAFETY: as above.
        unsafe { (*self.0).dst_port }
    }
}
