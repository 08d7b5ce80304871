//! What the kernel half decided: counters and events.

use crate::address::Address;

/// What is counted, per workload. The index is the position in [`Counters::counts`].
#[repr(u32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Counter {
    /// Outbound connection rewritten to the proxy.
    Steered,
    /// Outbound connection left alone: excluded address or port.
    Excluded,
    /// Outbound connection left alone: loopback.
    Loopback,
    /// Outbound connection left alone: to an IPv6 link-local or multicast address, whose scope no hook is told.
    LinkLocal,
    /// Inbound connection handed to the proxy.
    Inbound,
    /// Inbound connection let through: the kubelet probes.
    KubeletProbe,
    /// Inbound connection refused: no proxy listens and the workload fails closed.
    InboundRefused,
    /// Inbound connection let through: no proxy listens and the workload fails open.
    InboundBypassed,
    /// Original destination or client address handed to the accepted socket.
    Origin,
    /// Both ends on this node: socket put into the SOCKHASH.
    Paired,
    /// Not put into the SOCKHASH: it or the evidence map is full, or the key is taken.
    Unpaired,
    /// Not put into the SOCKHASH: redirect does not pay on this port.
    Unprofitable,
    /// Message moved past TCP.
    Redirected,
    /// Of those, how many went past the proxies, to the application at the other end.
    Joined,
    /// Message left to TCP: earlier bytes are not proven read.
    FallbackOrder,
    /// Message left to TCP: credit used up.
    FallbackCredit,
    /// Message left to TCP: large ones gain nothing.
    FallbackBulk,
    /// Message left to TCP: its receiver is an application, and the sender does not ask for room.
    FallbackApplication,
    /// Message left to TCP: its receiver is an application that blocks in its reads.
    FallbackBlocking,
    /// Message left to TCP: one end encrypts in the kernel, or has another protocol on top of TCP.
    FallbackUlp,
    /// The proxy was told to wait until the application has read.
    HeldBack,
    /// Message left to TCP: the other end is not in the SOCKHASH.
    FallbackNoPeer,
    /// Message left to TCP: the receiving workload reads with splice.
    FallbackSplice,
    /// Message left to TCP: the socket is closing.
    FallbackClosing,
    /// Message left to TCP: switched off for the workload or the node.
    FallbackOff,
    /// Message left to TCP: redirect helper refused.
    FallbackMiss,
    /// Bytes redirected.
    RedirectedBytes,
    /// Bytes of inserted sockets left to TCP.
    TcpBytes,
    /// splice() seen reading a socket.
    Splice,
    /// Outbound connection, message or packet refused: its destination is denied.
    Denied,
    /// Outbound connection refused: the workload has too many connections under way, the kernel has no memory for one, or the
    /// proxy does not listen.
    ConnectRefused,
    /// The other end could not be told what it has to know: its proxy refuses the connection, or the proxy ends it.
    HandoverFailed,
    /// Inbound connection refused: nobody listens there.
    InboundClosed,
    /// A place at which the application listens could not be remembered.
    ListenerLost,
}

pub const COUNTERS: usize = 34;

impl Counter {
    pub const ALL: [Self; COUNTERS] = [
        Self::Steered,
        Self::Excluded,
        Self::Loopback,
        Self::LinkLocal,
        Self::Inbound,
        Self::KubeletProbe,
        Self::InboundRefused,
        Self::InboundBypassed,
        Self::Origin,
        Self::Paired,
        Self::Unpaired,
        Self::Unprofitable,
        Self::Redirected,
        Self::Joined,
        Self::FallbackOrder,
        Self::FallbackCredit,
        Self::FallbackBulk,
        Self::FallbackApplication,
        Self::FallbackBlocking,
        Self::FallbackUlp,
        Self::HeldBack,
        Self::FallbackNoPeer,
        Self::FallbackSplice,
        Self::FallbackClosing,
        Self::FallbackOff,
        Self::FallbackMiss,
        Self::RedirectedBytes,
        Self::TcpBytes,
        Self::Splice,
        Self::Denied,
        Self::ConnectRefused,
        Self::HandoverFailed,
        Self::InboundClosed,
        Self::ListenerLost,
    ];

    /// Name in metrics and in `inspect`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steered => "steered",
            Self::Excluded => "excluded",
            Self::Loopback => "loopback",
            Self::LinkLocal => "link_local",
            Self::Inbound => "inbound",
            Self::KubeletProbe => "kubelet_probe",
            Self::InboundRefused => "inbound_refused",
            Self::InboundBypassed => "inbound_bypassed",
            Self::Origin => "origin",
            Self::Paired => "paired",
            Self::Unpaired => "unpaired",
            Self::Unprofitable => "unprofitable",
            Self::Redirected => "redirected",
            Self::Joined => "joined",
            Self::FallbackOrder => "fallback_order",
            Self::FallbackCredit => "fallback_credit",
            Self::FallbackBulk => "fallback_bulk",
            Self::FallbackApplication => "fallback_application",
            Self::FallbackBlocking => "fallback_blocking",
            Self::FallbackUlp => "fallback_ulp",
            Self::HeldBack => "held_back",
            Self::FallbackNoPeer => "fallback_no_peer",
            Self::FallbackSplice => "fallback_splice",
            Self::FallbackClosing => "fallback_closing",
            Self::FallbackOff => "fallback_off",
            Self::FallbackMiss => "fallback_miss",
            Self::RedirectedBytes => "redirect",
            Self::TcpBytes => "tcp",
            Self::Splice => "splice",
            Self::Denied => "denied",
            Self::ConnectRefused => "connect_refused",
            Self::HandoverFailed => "handover_failed",
            Self::InboundClosed => "inbound_closed",
            Self::ListenerLost => "listener_lost",
        }
    }

    /// Whether it counts bytes rather than events.
    pub const fn is_bytes(self) -> bool {
        matches!(self, Self::RedirectedBytes | Self::TcpBytes)
    }
}

/// Counters of one workload on one CPU.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counters {
    pub counts: [u64; COUNTERS],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            counts: [0; COUNTERS],
        }
    }
}

/// What the kernel half keeps of a workload itself. Userspace resets it while the workload is not steered, and never writes it else, so
/// that nothing that is learned meanwhile is lost.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Account {
    /// When the second began that the counts of events are of.
    pub events_since_ns: u64,
    /// `WORKLOAD_SPLICES` and `WORKLOAD_PROXY_SPLICES`: whose sockets have been read with `splice`.
    pub splices: u32,
    /// Events in that second that are for people.
    pub events: u32,
    /// Events in that second that say who reads with `splice`.
    pub splice_events: u32,
    /// Entries in `PROFILES`.
    pub profiles: u32,
}

/// Events of one workload in a second: all share one ring buffer, and what is counted is counted all the same.
pub const MAX_EVENTS: u32 = 128;
/// Of those that somebody has to act upon.
pub const MAX_SPLICE_EVENTS: u32 = 512;
/// Ports of one workload of which it is known how redirect fares. On the others it counts as worth it.
pub const MAX_PROFILES_EACH: u32 = 256;

/// What userspace is told at once, through the ring buffer.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Event {
    /// One of the `EVENT_` constants.
    pub kind: u32,
    pub workload: u32,
    /// The process whose system call it was; 0 where the hook cannot know.
    pub pid: u32,
    /// Of a denial, the rule, as the map's value has it.
    pub rule: i32,
    /// Of the socket that is read by somebody who does not see what waits there; else 0.
    pub cookie: u64,
    /// Of the other end of the connection, where the kind has one.
    pub address: Address,
    /// Of this end, as `address`.
    pub local: Address,
    /// Of a denial: the IP protocol, or one of the `PROTOCOL_` constants; else 0.
    pub protocol: u32,
    pub _pad: u32,
}

/// Inbound connection refused: no proxy listens. `address`: what the client asked for.
pub const EVENT_INBOUND_REFUSED: u32 = 1;
/// Both ends are here, but the SOCKHASH is full or the key is taken. `address`: the other end.
pub const EVENT_UNPAIRED: u32 = 2;
/// A process reads sockets with splice. `cookie`, `address`, `local`: of one that has redirected bytes, which it does not see.
pub const EVENT_SPLICE: u32 = 3;

/// Outbound connection, message or packet refused. `address`: where it would have gone.
pub const EVENT_EGRESS_DENIED: u32 = 4;

/// A frame of a packet socket, whatever is in it.
pub const PROTOCOL_FRAME: u32 = 256;
/// A packet that does not say what it carries, or where it ends.
pub const PROTOCOL_UNKNOWN: u32 = 257;

/// Outbound connection refused: see `Counter::ConnectRefused`. `address`: what the application asked for.
pub const EVENT_CONNECT_REFUSED: u32 = 5;

/// Outbound connection refused: the proxy does not listen. `address`: what the application asked for.
pub const EVENT_PROXY_AWAY: u32 = 6;

const _: () = assert!(size_of::<Event>() == 72 && size_of::<Account>() == 24);

/// How redirect fares on a port of a workload, so that flows that only fall back stop being inserted.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Profile {
    pub redirected: u64,
    pub passed: u64,
    /// Connections not inserted since the last try.
    pub skipped: u64,
    /// Sockets that these messages were sent on.
    pub sockets: u64,
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for super::Counters {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Event {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Profile {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Account {}

    use super::Event;
    use crate::address::{Address, Ip};

    impl Event {
        /// From the bytes of the ring buffer; `None` if they are too few.
        pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
            let word = |index: usize| {
                let bytes = bytes.get(index * 4..index * 4 + 4)?;
                Some(u32::from_ne_bytes(bytes.try_into().ok()?))
            };
            let address = |index: usize| {
                let port = bytes.get(index * 4 + 16..index * 4 + 18)?;
                let port = u16::from_ne_bytes(port.try_into().ok()?);
                let ip = Ip([
                    word(index)?,
                    word(index + 1)?,
                    word(index + 2)?,
                    word(index + 3)?,
                ]);
                Some(Address::new(ip, port))
            };
            Some(Self {
                kind: word(0)?,
                workload: word(1)?,
                pid: word(2)?,
                rule: word(3)? as i32,
                cookie: u64::from_ne_bytes(bytes.get(16..24)?.try_into().ok()?),
                address: address(6)?,
                local: address(11)?,
                protocol: word(16)?,
                _pad: 0,
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_is_listed_once_in_order() {
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
        }
    }
}
