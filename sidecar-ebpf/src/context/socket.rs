//! Sockets, and what is read of them in the kernel's own structures.

use aya_ebpf::{
    bindings::bpf_sock,
    helpers::{bpf_probe_read_kernel_buf, generated::bpf_skc_to_tcp_sock},
    programs::BtfTracePointContext,
};

use sidecar_ebpf::evidence::Tcp;

use super::LOAD_CONSTANTS;

/// A socket that a context points at; not null.
#[derive(Clone, Copy)]
pub struct Socket(pub(super) *mut bpf_sock);

impl Socket {
    #[inline(always)]
    pub(super) fn new(sk: *mut bpf_sock) -> Option<Self> {
        if sk.is_null() { None } else { Some(Self(sk)) }
    }

    /// `TCP_*` state.
    #[inline(always)]
    pub fn state(self) -> u32 {
        // SAFETY: not null; the verifier checks the rest.
        unsafe { (*self.0).state }
    }

    /// As `tcp`, of a socket that a tracepoint of TCP's was called with.
    #[inline(always)]
    pub fn traced_tcp(self) -> TcpSocket {
        TcpSocket(self.0.cast_const().cast())
    }

    /// The kernel's `tcp_sock`, to be read with `probe`. `None` where redirect is off.
    #[inline(always)]
    pub fn tcp(self) -> Option<TcpSocket> {
        // Constant when the verifier looks: without the kernel's types it would refuse what follows.
        if LOAD_CONSTANTS.load().redirect == 0 {
            return None;
        }
        // SAFETY: the helper takes any socket and returns null if it is not TCP.
        let tcp = unsafe { bpf_skc_to_tcp_sock(self.0.cast()) };
        if tcp.is_null() {
            None
        } else {
            Some(TcpSocket(tcp.cast()))
        }
    }
}

/// The socket that a tracepoint of TCP's was called with.
#[inline(always)]
pub fn traced(ctx: &BtfTracePointContext) -> Option<Socket> {
    Socket::new(ctx.arg(0))
}

/// A `struct tcp_sock`, read at the offsets of the running kernel's BTF.
#[derive(Clone, Copy)]
pub struct TcpSocket(*const u8);

impl TcpSocket {
    /// The address as a number, to be kept in a map.
    #[inline(always)]
    pub fn to_word(self) -> u64 {
        self.0 as u64
    }

    /// From a number of `to_word`. If the socket has gone since, what is read is meaningless, not harmful.
    #[inline(always)]
    pub fn from_word(word: u64) -> Self {
        Self(word as *const u8)
    }
}

impl Tcp for TcpSocket {
    #[inline(always)]
    fn copied_seq(&self) -> Option<u32> {
        probe(self.0, LOAD_CONSTANTS.load().copied_seq).map(u32::from_ne_bytes)
    }

    #[inline(always)]
    fn write_seq(&self) -> Option<u32> {
        probe(self.0, LOAD_CONSTANTS.load().write_seq).map(u32::from_ne_bytes)
    }

    /// Whether reads and writes of the application return at once (`O_NONBLOCK`); `None` before it has a descriptor
    /// for the socket.
    #[inline(always)]
    fn is_nonblocking(&self) -> Option<bool> {
        const O_NONBLOCK: u32 = 0o4000;
        let constants = LOAD_CONSTANTS.load();
        let socket = pointer(self.0 as u64, constants.sk_socket).filter(|s| *s != 0)?;
        let file = pointer(socket, constants.socket_file).filter(|f| *f != 0)?;
        let flags = u32::from_ne_bytes(probe(file as *const u8, constants.file_flags)?);
        Some(flags & O_NONBLOCK != 0)
    }

    /// Whether a protocol such as kernel TLS sits on top.
    #[inline(always)]
    fn has_ulp(&self) -> bool {
        pointer(self.0 as u64, LOAD_CONSTANTS.load().ulp_ops) != Some(0)
    }

    /// Whether the socket's redirected bytes have all been read. The list head of `sk_psock.ingress_msg`
    /// points to itself when it is empty; the low bits of `sk_user_data` are flags.
    #[inline(always)]
    fn ingress_is_empty(&self) -> bool {
        let constants = LOAD_CONSTANTS.load();
        let Some(user_data) = probe(self.0, constants.sk_user_data).map(u64::from_ne_bytes) else {
            return false;
        };
        let psock = user_data & !7;
        if psock == 0 {
            // Out of the map: there is no such queue.
            return true;
        }
        let head = psock + constants.ingress_msg as u64;
        probe(head as *const u8, 0).map(u64::from_ne_bytes) == Some(head)
    }
}

#[inline(always)]
pub(super) fn probe<const N: usize>(base: *const u8, offset: u32) -> Option<[u8; N]> {
    // Constant when the verifier looks: a kernel that is locked down has no such helper.
    if LOAD_CONSTANTS.load().redirect == 0 {
        return None;
    }
    let mut bytes = [0; N];
    // SAFETY: the helper checks the address itself and fails instead of faulting.
    unsafe { bpf_probe_read_kernel_buf(base.wrapping_add(offset as usize), &mut bytes) }.ok()?;
    Some(bytes)
}

#[inline(always)]
pub(super) fn pointer(base: u64, offset: u32) -> Option<u64> {
    probe(base as *const u8, offset).map(u64::from_ne_bytes)
}
