//! Flows on this node: the key of a socket, and the evidence on which a direction may be redirected.

use crate::address::Address;

/// A connected socket, seen from itself.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct FlowKey {
    /// Cookie of the network namespace for loopback addresses, which every namespace has; 0 for routable
    /// ones, whose two ends may be in different namespaces.
    pub netns: u64,
    pub local: Address,
    pub remote: Address,
}

impl FlowKey {
    /// `netns`: cookie of the socket's network namespace; kept only where the addresses need it.
    #[inline(always)]
    pub const fn new(netns: u64, local: Address, remote: Address) -> Self {
        let scoped = remote.ip.is_loopback() || local.ip.is_loopback();
        Self {
            netns: if scoped { netns } else { 0 },
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
}

/// One direction of a flow, keyed by its receiver. The receiver writes it once, when it enters the map; from then
/// on only the sender does, under its own socket's lock, and whoever is joined to it (see [`HalfFlow::next`]), which
/// never has anything to send while the sender has.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HalfFlow {
    /// Socket cookie of the receiver: two sockets with one key cannot mix.
    pub receiver: u64,
    /// Where the receiver's `tcp_sock` is, for reading how far it has read. Only the kernel half has a use for it.
    pub socket: u64,
    /// Bytes redirected to the receiver so far.
    pub sent_bytes: u64,
    /// Of those, how many the receiver was seen to have read.
    pub drained_bytes: u64,
    /// The receiver is a proxy that passes every byte on unchanged, to this receiver; all zero: it is not.
    pub next: FlowKey,
    /// Socket cookie of the receiver that `next` meant when the proxy joined: a key may be used again.
    pub next_receiver: u64,
    /// Bytes that went past the receiver, straight to the end of the chain of `next`.
    pub joined_bytes: u64,
    /// The receiver's sequence number where the direction begins.
    pub start_seq: u32,
    /// The receiver is an application: bytes that its proxy has passed on to it, all of which are written. Modulo 2^32.
    pub settled_bytes: u32,
    /// The receiver's workload.
    pub workload: u32,
    /// See the constants.
    pub flags: u32,
}

impl HalfFlow {
    /// The receiver is a proxy, which reads until nothing is left, whichever queue it comes from.
    pub const TO_PROXY: u32 = 1;
    /// The receiver is an application, and the sender asks for room before it writes: all it writes is redirected.
    pub const ASKED: u32 = 2;
    /// The receiver is an application, and something took TCP: all that follows does.
    pub const TCP: u32 = 4;
    /// `settled_bytes` is valid.
    pub const SETTLED: u32 = 8;
}

const _: () = assert!(size_of::<FlowKey>() == 48 && size_of::<HalfFlow>() == 112);

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for super::FlowKey {}
    // SAFETY: repr(C), padded by hand, any bytes are a value.
    unsafe impl aya::Pod for super::HalfFlow {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Ip;

    #[test]
    fn namespaces_count_for_loopback_only() {
        let loopback = Address::new(Ip::from_v4(0x7f00_0001_u32.to_be()), 15001);
        let pod = Address::new(Ip::from_v4(0x0a00_0001_u32.to_be()), 80);
        assert_eq!(FlowKey::new(7, loopback, loopback).netns, 7);
        assert_eq!(FlowKey::new(7, pod, pod).netns, 0);
        assert_eq!(
            FlowKey::new(7, pod, loopback).peer(),
            FlowKey::new(7, loopback, pod)
        );
    }
}
