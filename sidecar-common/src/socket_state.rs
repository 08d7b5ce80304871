//! What the kernel half remembers of a socket, and what it hands from the connecting end to the accepting end.

use crate::{address::Address, flow::FlowKey};

/// Storage of a TCP socket of an enrolled workload. Accepted sockets start with a copy of their listener's.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct SocketState {
    /// This socket, from the time it connects or is accepted.
    pub flow: FlowKey,
    /// Its cookie.
    pub cookie: u64,
    /// Where its `tcp_sock` is; on a socket that is just accepted, the listener's. 0: not known.
    pub socket: u64,
    /// `Direction::joined_bytes` of a socket that has left the map.
    pub joined_bytes: u64,
    /// When the last large message was sent: bytes redirected to this socket so far, plus the sequence number up to which it
    /// had read. Changed since: the other end has spoken.
    pub heard: u64,
    /// The destination that the application asked for: on the application's steered socket and on the
    /// proxy's accepted one.
    pub original: Address,
    /// The peer that `getpeername` and `accept` show instead of the real one.
    pub shown_peer: Address,
    /// On a socket of the proxy, before it connects: the peer that the accepting application shall be shown.
    pub claimed_peer: Address,
    /// Messages redirected, for the port's profile.
    pub redirected: u32,
    /// Messages left to TCP, for the port's profile.
    pub passed: u32,
    /// Index of the workload in `WORKLOADS`.
    pub workload: u32,
    /// Role and state, see the constants.
    pub flags: u32,
    /// Port of the service, in host order: what the application asked for, else the accepting end's.
    pub service_port: u16,
    /// `OUTBOUND` or `INBOUND`: which side of the workload the connection is on.
    pub direction: u16,
}

impl SocketState {
    /// The socket belongs to the proxy, not to the application.
    pub const PROXY: u32 = 1;
    /// The application's connection was steered to the proxy.
    pub const STEERED: u32 = 2;
    /// In `FLOWS`, and its entry in `HALF_FLOWS` is ours.
    pub const IN_MAP: u32 = 4;
    /// This socket left a record in `HANDOVERS`.
    pub const HANDOVER: u32 = 8;
    /// Multipath TCP: steered, never redirected.
    pub const MULTIPATH: u32 = 16;
    /// A listener that does not block, found so by userspace.
    pub const NONBLOCKING: u32 = 32;

    #[inline(always)]
    pub const fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// Left by a connecting socket for the socket that will be accepted at the other end; keyed by that
/// socket's flow.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub struct Handover {
    /// Cookie of the connecting socket.
    pub owner: u64,
    pub original: Address,
    pub shown_peer: Address,
    /// Index of the connecting socket's workload. Addresses are believed by sockets of the same one only.
    pub workload: u32,
    /// See the constants.
    pub flags: u32,
}

impl Handover {
    /// The other end was seen on this node.
    pub const LOCAL: u32 = 1;
    /// Neither end shall be put into `FLOWS`.
    pub const TCP_ONLY: u32 = 2;
}

const _: () = assert!(size_of::<SocketState>() == 160 && size_of::<Handover>() == 56);

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), padded by hand, any bytes are a value.
    unsafe impl aya::Pod for super::SocketState {}
    // SAFETY: repr(C), padded by hand, any bytes are a value.
    unsafe impl aya::Pod for super::Handover {}
}
