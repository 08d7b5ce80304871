//! Connections on this node: how two sockets of one connection find each other, and the state of each that the other
//! one may read.
//!
//! Addresses name a connection only while it is made: two isolated networks of a node may use the same ones. Once both
//! ends have met, each knows the other by its socket cookie, which the kernel gives to no second socket.

use crate::address::Address;

/// A connected socket as its addresses have it, seen from itself.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// Cookie of the network namespace; 0 where the two ends may be in different ones, see [`FlowKey::between_networks`].
    pub netns: u64,
    pub local: Address,
    pub remote: Address,
}

impl FlowKey {
    /// `netns`: cookie of the socket's network namespace.
    #[inline(always)]
    pub const fn new(netns: u64, local: Address, remote: Address) -> Self {
        Self {
            netns,
            local,
            remote,
        }
    }

    /// The same flow seen from the other end.
    #[inline(always)]
    pub const fn peer(&self) -> Self {
        Self {
            netns: self.netns,
            local: self.remote,
            remote: self.local,
        }
    }

    /// The key by which the two ends find each other, whichever namespaces they are in. Loopback addresses, which every
    /// namespace has, keep theirs.
    #[inline(always)]
    pub const fn between_networks(&self) -> Self {
        let loopback = self.remote.ip.is_loopback() || self.local.ip.is_loopback();
        Self {
            netns: if loopback { self.netns } else { 0 },
            local: self.local,
            remote: self.remote,
        }
    }
}

/// What a connecting socket leaves before its SYN for the socket that will be accepted, under the flow of that one.
/// `HANDOVERS` has one for each connection of an application to its proxy, `DIALS` for each of a proxy's own, `PAIRINGS` for connections
/// between workloads.
///
/// Written by the connecting socket under its lock, but for `LOCAL`; taken by the accepted one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rendezvous {
    /// Cookie of the connecting socket.
    pub owner: u64,
    /// When it was left, in nanoseconds of the monotonic clock.
    pub since_ns: u64,
    /// The destination that the application asked for.
    pub original: Address,
    /// The peer that the accepting application shall be shown.
    pub shown_peer: Address,
    /// The connecting socket's initial sequence number.
    pub initial_seq: u32,
    /// The accepted socket's, as the connecting one was told by the SYN-ACK; valid with `ANSWERED`.
    pub answered_seq: u32,
    /// Index of the connecting socket's workload.
    pub workload: u32,
    /// See the constants.
    pub flags: u32,
}

impl Rendezvous {
    /// The SYN was seen to arrive on this node.
    pub const LOCAL: u32 = 1;
    /// Neither end shall be put into `FLOWS`.
    pub const TCP_ONLY: u32 = 2;
    /// The connecting socket is a proxy's.
    pub const OF_PROXY: u32 = 4;
    /// The connecting socket is established, and in `FLOWS`.
    pub const ANSWERED: u32 = 8;

    #[inline(always)]
    pub const fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Whether the accepted socket is the one that the owner is connected with: both initial sequence numbers agree, and
    /// nobody can choose both. `read_seq`, `write_seq`: of the accepted socket, before it has read or sent anything.
    #[inline(always)]
    pub const fn is_met_by(&self, read_seq: u32, write_seq: u32) -> bool {
        self.is(Self::ANSWERED)
            && self.initial_seq.wrapping_add(1) == read_seq
            && self.answered_seq.wrapping_add(1) == write_seq
    }
}

/// A connection of the kubelet, under the flow of the socket that will be accepted. Written before its SYN.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct KubeletConnection {
    /// Cookie of the kubelet's socket.
    pub owner: u64,
    /// When it began, in nanoseconds of the monotonic clock.
    pub since_ns: u64,
}

impl KubeletConnection {
    /// How long it may take to arrive: only its SYN is looked at, which is sent again after 1, 3 and 7 s. Addresses and ports mean
    /// somebody else later.
    pub const FRESH_NS: u64 = 10_000_000_000;
}

/// One end of a connection whose sockets are in `FLOWS`, as others may see it; keyed by its socket cookie. A socket
/// writes its own entry, under its lock, except where a field says otherwise.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HalfFlow {
    /// The key once more: an entry may be used again while somebody looks at it.
    pub cookie: u64,
    /// Where the `tcp_sock` is, for reading how far it has read. Only the kernel half has a use for it.
    pub socket: u64,
    /// Cookie of the socket at the other end, 0 until both have met. The accepted socket writes both ends' at
    /// `PASSIVE_ESTABLISHED`, once.
    pub peer: u64,
    /// A proxy that relays every byte between this socket and another one of its own says so: the other one's cookie, or 0.
    pub joined_to: u64,
    /// And the cookie of the socket at the other end of that one.
    pub next: u64,
    /// Bytes redirected to this socket so far. Whoever sends them adds to it, without a lock that both have: a hint.
    pub received_bytes: u64,
    /// Bytes for this socket that went past it, to the application at the far end. Written by who sends them: for records.
    pub bypassed_bytes: u64,
    /// Of the workload: see `Workload::enrolment`.
    pub enrolment: u64,
    /// A proxy's socket to its application: bytes that it has written, all of which have been taken, modulo 2^32.
    pub settled_bytes: u32,
    /// Index of the workload.
    pub workload: u32,
    /// See the constants.
    pub flags: u32,
    pub _pad: u32,
}

impl HalfFlow {
    /// The socket is a proxy's, which reads until nothing is left, whichever queue it comes from.
    pub const OF_PROXY: u32 = 1;
    /// The proxy asks for its send window before it writes to the application at the other end: all it writes is redirected.
    pub const ASKED: u32 = 2;
    /// Something that the proxy wrote to the application took TCP: all that follows does.
    pub const TCP: u32 = 4;
    /// `settled_bytes` is valid.
    pub const SETTLED: u32 = 8;

    #[inline(always)]
    pub const fn is(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

const _: () = assert!(
    size_of::<FlowKey>() == 48 && size_of::<Rendezvous>() == 72 && size_of::<HalfFlow>() == 80
);

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: repr(C), padded by hand, any bytes are a value.
    unsafe impl aya::Pod for super::Rendezvous {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::HalfFlow {}
    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for super::KubeletConnection {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ip;

    #[test]
    fn between_networks_namespaces_count_for_loopback_only() {
        let loopback = Address::new(Ip::from_v4(0x7f00_0001_u32.to_be()), 15001);
        let pod = Address::new(Ip::from_v4(0x0a00_0001_u32.to_be()), 80);
        let netns = |local, remote| FlowKey::new(7, local, remote).between_networks().netns;
        assert_eq!(netns(loopback, loopback), 7);
        assert_eq!(netns(pod, loopback), 7);
        assert_eq!(netns(pod, pod), 0);
        assert_eq!(
            FlowKey::new(7, pod, loopback).peer(),
            FlowKey::new(7, loopback, pod)
        );
    }

    #[test]
    fn both_sequence_numbers_have_to_agree() {
        let left = Rendezvous {
            initial_seq: 10,
            answered_seq: u32::MAX,
            flags: Rendezvous::ANSWERED,
            ..Rendezvous::default()
        };
        assert!(left.is_met_by(11, 0));
        assert!(!left.is_met_by(12, 0));
        assert!(!left.is_met_by(11, 1));
        let unanswered = Rendezvous { flags: 0, ..left };
        assert!(!unanswered.is_met_by(11, 0));
    }
}
