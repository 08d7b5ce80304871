//! What the kernel half remembers of a socket, in the socket's own storage: it goes when the socket does.

use crate::{
    address::{Address, Ip},
    flow::FlowKey,
};

/// Storage of a TCP socket of an enrolled workload. Accepted sockets start with a copy of their listener's. Every field is
/// written under the socket's lock.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketState {
    /// This socket, from the time it connects or is accepted.
    pub flow: FlowKey,
    /// Its cookie.
    pub cookie: u64,
    /// Cookie of the socket at the other end; 0 until this one knows that both have met.
    pub peer: u64,
    /// Where its `tcp_sock` is; on a socket that is just accepted, the listener's. 0: not known.
    pub socket: u64,
    /// Bytes redirected to the peer so far.
    pub sent_bytes: u64,
    /// Of those, how many the peer was seen to have read.
    pub read_bytes: u64,
    /// Bytes sent past the proxies so far, to the application at the far end.
    pub joined_bytes: u64,
    /// Of those, how many it was seen to have read.
    pub joined_read_bytes: u64,
    /// `HalfFlow::bypassed_bytes` of a socket that has left the map.
    pub bypassed_bytes: u64,
    /// When the last large message was sent: bytes redirected to this socket so far, plus the sequence number up to which it
    /// had read. Changed since: the other end has spoken.
    pub heard: u64,
    /// Of the workload: see `Workload::enrolment`.
    pub enrolment: u64,
    /// The destination that the application asked for: on the application's steered socket and on the
    /// proxy's accepted one.
    pub original: Address,
    /// The peer that `getpeername` and `accept` show instead of the real one.
    pub shown_peer: Address,
    /// On a socket of the proxy, before it connects: the peer that the accepting application shall be shown.
    pub claimed_peer: Address,
    /// On the application's steered socket: the address that `getsockname` shows instead of loopback, which is that of the
    /// route to `original`; all zero where it shows the socket's own. On the proxy's accepted one: the same.
    pub source: Ip,
    /// The first sequence number of what this socket sends.
    pub start_seq: u32,
    /// Messages redirected, for the port's profile.
    pub redirected: u32,
    /// Messages left to TCP, for the port's profile.
    pub fallback: u32,
    /// Index of the workload in `WORKLOADS`.
    pub workload: u32,
    /// Role and state, see the constants.
    pub flags: u32,
    /// Port of the service, in host order: what the application asked for, else the accepting end's.
    pub service_port: u16,
    /// `OUTBOUND` or `INBOUND`: which side of the workload the connection is on.
    pub direction: u16,
    /// Index of the device that the application has bound its socket to, which is not bound to it itself; 0: to none. On the
    /// proxy's accepted socket: what the application's is bound to.
    pub device: u32,
}

impl SocketState {
    /// The socket belongs to the proxy, not to the application.
    pub const PROXY: u32 = 1;
    /// The application's connection was steered to the proxy.
    pub const STEERED: u32 = 2;
    /// In `FLOWS` and `HALF_FLOWS`.
    pub const IN_MAP: u32 = 4;
    /// This socket left a record in `HANDOVERS`, or `DIALS`.
    pub const HANDOVER: u32 = 8;
    /// Multipath TCP: steered, never redirected.
    pub const MULTIPATH: u32 = 16;
    /// A listener that does not block, found so by userspace.
    pub const NONBLOCKING: u32 = 32;
    /// This socket left a record in `PAIRINGS`.
    pub const PAIRING: u32 = 64;
    /// The workload's room for handovers was used up when this socket connected.
    pub const NO_HANDOVER: u32 = 128;
    /// See `HalfFlow::ASKED`.
    pub const ASKED: u32 = 256;
    /// See `HalfFlow::TCP`.
    pub const TCP: u32 = 512;
    /// The connect hook has steered it, and its connection has not begun.
    pub const STEERING: u32 = 1024;
    /// The application has bound its socket to an address. Like the next one on its steered socket, and on the proxy's
    /// accepted one.
    pub const BOUND_ADDRESS: u32 = 2048;
    /// And to a port.
    pub const BOUND_PORT: u32 = 4096;
    /// A proxy's socket whose first bytes by TCP would be noticed before they are queued: without, nothing is redirected to the
    /// application at the other end.
    pub const WATCHED: u32 = 8192;
    /// Nobody but us has asked for the calls by which that is noticed.
    pub const OWN_WATCH: u32 = 16_384;
    /// It was found without an other end in the map once.
    pub const LONE: u32 = 32_768;

    #[inline(always)]
    pub const fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

const _: () = assert!(size_of::<SocketState>() == 232);

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), padded by hand, any bytes are a value.
    unsafe impl aya::Pod for super::SocketState {}
}
