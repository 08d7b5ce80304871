//! What a packet that leaves opens, and where: it alone is judged, so that answers on what was opened from outside pass. Tested
//! on the host over raw bytes.
//!
//! What cannot be told is not let through: a header that ends early, a chain of extension headers without end, a route that
//! the packet carries itself, which says where it goes on from the address in its header.

use sidecar_common::{
    address::{Address, Ip},
    settings::protocol::{self, DCCP, SCTP, TCP},
};

/// The bytes of a packet from its IP header on.
pub trait Bytes {
    /// `N` of them at `offset`; `None`: there are not so many.
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Judgement {
    /// It stays on the machine, or goes on with what was judged when it was opened.
    Pass,
    /// The rules say. Port 0: the protocol has none, or the packet does not say.
    Ask { destination: Address, protocol: u8 },
    /// It leaves, and does not say what it is.
    Unknown { destination: Address },
}

/// Extension headers of IPv6 that are walked.
const MOST_HEADERS: u32 = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;

const SYN: u8 = 2;
const ACK: u8 = 16;
/// Types of SCTP's chunks and DCCP's packets that open.
const SCTP_INIT: u8 = 1;
const DCCP_REQUEST: u8 = 0;

/// What is known of a packet before its payload is looked at.
struct Header {
    destination: Ip,
    protocol: u8,
    payload_at: u32,
    /// `Some(true)`: the first fragment, `Some(false)`: another one.
    fragment: Option<bool>,
    /// It carries options that may send it elsewhere.
    routed: bool,
}

/// `spoken`: the protocol that the kernel speaks on the socket that sends, 0 for one whose packets are made by its owner. Of a
/// connection of that protocol only the packet that opens it is judged.
#[inline(always)]
pub fn judge(packet: &impl Bytes, spoken: u8) -> Judgement {
    let Some(header) = header(packet) else {
        return Judgement::Unknown {
            destination: Address::default(),
        };
    };
    let (ip, protocol) = (header.destination, header.protocol);
    if ip.is_loopback() {
        return Judgement::Pass;
    }
    let ask = |port| Judgement::Ask {
        destination: Address::new(ip, port),
        protocol,
    };
    let unknown = Judgement::Unknown {
        destination: Address::new(ip, 0),
    };
    if header.routed {
        return unknown;
    }
    if header.fragment == Some(false) || !protocol::has_ports(protocol) {
        return ask(0);
    }
    let at = header.payload_at;
    let Some(ports) = packet.load::<4>(at) else {
        return unknown;
    };
    // What is in pieces may say more in a later one.
    let whole = header.fragment.is_none();
    if whole && spoken == protocol {
        match opens(packet, at, protocol) {
            Some(true) => {}
            Some(false) => return Judgement::Pass,
            None => return unknown,
        }
    }
    ask(u16::from_be_bytes([ports[2], ports[3]]))
}

/// Whether the packet opens a connection of a protocol that has such; others open with each packet. `None`: it ends early.
#[inline(always)]
fn opens(packet: &impl Bytes, at: u32, protocol: u8) -> Option<bool> {
    Some(match protocol {
        // Fast Open sends data with it, which makes no difference.
        TCP => packet.load::<1>(at + 13)?[0] & (SYN | ACK) == SYN,
        SCTP => packet.load::<1>(at + 12)?[0] == SCTP_INIT,
        DCCP => packet.load::<1>(at + 8)?[0] >> 1 & 0xf == DCCP_REQUEST,
        _ => true,
    })
}

#[inline(always)]
fn header(packet: &impl Bytes) -> Option<Header> {
    match packet.load::<1>(0)?[0] >> 4 {
        4 => header4(packet),
        6 => header6(packet),
        _ => None,
    }
}

#[inline(always)]
fn header4(packet: &impl Bytes) -> Option<Header> {
    let head = packet.load::<20>(0)?;
    let length = u32::from(head[0] & 0xf) * 4;
    if length < 20 {
        return None;
    }
    let pieces = u16::from_be_bytes([head[6], head[7]]);
    let (offset, more) = (pieces & 0x1fff, pieces & 0x2000 != 0);
    Some(Header {
        destination: Ip::from_v4(u32::from_ne_bytes([head[16], head[17], head[18], head[19]])),
        protocol: head[9],
        payload_at: length,
        fragment: (offset != 0 || more).then_some(offset == 0),
        // A source route among them would.
        routed: length > 20,
    })
}

#[inline(always)]
fn header6(packet: &impl Bytes) -> Option<Header> {
    let head = packet.load::<40>(0)?;
    let word = |at: usize| u32::from_ne_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
    let mut header = Header {
        destination: Ip([word(24), word(28), word(32), word(36)]),
        protocol: head[6],
        payload_at: 40,
        fragment: None,
        routed: false,
    };
    let mut walked = 0;
    while walked < MOST_HEADERS {
        let length = match header.protocol {
            HOP_BY_HOP | DESTINATION_OPTIONS | ROUTING => {
                let next = packet.load::<4>(header.payload_at)?;
                // Segments left: the destination in the header is not the last one.
                header.routed |= header.protocol == ROUTING && next[3] != 0;
                header.protocol = next[0];
                (u32::from(next[1]) + 1) * 8
            }
            AUTHENTICATION => {
                let next = packet.load::<2>(header.payload_at)?;
                header.protocol = next[0];
                (u32::from(next[1]) + 2) * 4
            }
            FRAGMENT => {
                let next = packet.load::<4>(header.payload_at)?;
                let pieces = u16::from_be_bytes([next[2], next[3]]);
                header.protocol = next[0];
                if pieces >> 3 != 0 {
                    header.fragment = Some(false);
                    // What follows is the middle of something.
                    return Some(header);
                }
                header.fragment = Some(true);
                8
            }
            _ => return Some(header),
        };
        header.payload_at += length;
        walked += 1;
    }
    None
}

#[cfg(test)]
mod tests;
