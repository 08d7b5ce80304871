use super::*;
use sidecar_common::settings::protocol::{ICMP, ICMPV6, UDP, UDP_LITE};

struct Raw(Vec<u8>);

impl Bytes for Raw {
    fn load<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let at = offset as usize;
        self.0.get(at..at.checked_add(N)?)?.try_into().ok()
    }
}

const V4: [u8; 4] = [192, 0, 2, 7];
const V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

/// `pieces`: flags and offset of a fragment.
fn v4(protocol: u8, pieces: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 20];
    packet[0] = 0x40 | (5 + options.len() / 4) as u8;
    packet[6..8].copy_from_slice(&pieces.to_be_bytes());
    packet[9] = protocol;
    packet[16..20].copy_from_slice(&V4);
    packet.extend_from_slice(options);
    packet.extend_from_slice(payload);
    packet
}

/// `headers`: extension headers, each with its number and its bytes, of which the first is filled in.
fn v6(headers: &[(u8, &[u8])], protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; 40];
    packet[0] = 0x60;
    packet[24..40].copy_from_slice(&V6);
    let mut next_at = 6;
    for (number, bytes) in headers {
        packet[next_at] = *number;
        next_at = packet.len();
        packet.extend_from_slice(bytes);
    }
    packet[next_at] = protocol;
    packet.extend_from_slice(payload);
    packet
}

fn tcp(port: u16, flags: u8) -> Vec<u8> {
    let mut segment = vec![0; 20];
    segment[2..4].copy_from_slice(&port.to_be_bytes());
    segment[12] = 0x50;
    segment[13] = flags;
    segment
}

fn udp(port: u16) -> Vec<u8> {
    let mut datagram = vec![0; 8];
    datagram[2..4].copy_from_slice(&port.to_be_bytes());
    datagram
}

fn sctp(port: u16, chunk: u8) -> Vec<u8> {
    let mut packet = vec![0; 16];
    packet[2..4].copy_from_slice(&port.to_be_bytes());
    packet[12] = chunk;
    packet
}

fn dccp(port: u16, kind: u8) -> Vec<u8> {
    let mut packet = vec![0; 12];
    packet[2..4].copy_from_slice(&port.to_be_bytes());
    // The lowest bit: long sequence numbers.
    packet[8] = kind << 1 | 1;
    packet
}

fn judge4(protocol: u8, payload: &[u8], spoken: u8) -> Judgement {
    judge(&Raw(v4(protocol, 0, &[], payload)), spoken)
}

fn judge6(protocol: u8, payload: &[u8], spoken: u8) -> Judgement {
    judge(&Raw(v6(&[], protocol, payload)), spoken)
}

fn ip4() -> Ip {
    Ip::from_v4(u32::from_ne_bytes(V4))
}

fn ip6() -> Ip {
    let word = |at: usize| u32::from_ne_bytes([V6[at], V6[at + 1], V6[at + 2], V6[at + 3]]);
    Ip([word(0), word(4), word(8), word(12)])
}

fn ask(ip: Ip, protocol: u8, port: u16) -> Judgement {
    Judgement::Ask {
        destination: Address::new(ip, port),
        protocol,
    }
}

fn unknown(ip: Ip) -> Judgement {
    Judgement::Unknown {
        destination: Address::new(ip, 0),
    }
}

#[test]
fn a_connection_is_judged_when_it_is_opened() {
    const FIN: u8 = 1;
    const RST: u8 = 4;
    const PSH: u8 = 8;
    for (flags, opens) in [
        (SYN, true),
        // With ECN, as Linux sends it.
        (SYN | 0xc0, true),
        (SYN | ACK, false),
        (ACK, false),
        (PSH | ACK, false),
        (FIN | ACK, false),
        (RST, false),
        (RST | ACK, false),
    ] {
        let mut segment = tcp(443, flags);
        // Fast Open: data with the SYN.
        segment.extend_from_slice(b"GET /");
        for (ip, judgement) in [
            (ip4(), judge4(TCP, &segment, TCP)),
            (ip6(), judge6(TCP, &segment, TCP)),
        ] {
            let expected = match opens {
                true => ask(ip, TCP, 443),
                false => Judgement::Pass,
            };
            assert_eq!(judgement, expected, "{flags:#x}");
        }
    }
}

#[test]
fn whoever_makes_packets_is_judged_by_each() {
    for spoken in [0, UDP, ICMP] {
        let got = judge4(TCP, &tcp(443, ACK), spoken);
        assert_eq!(got, ask(ip4(), TCP, 443), "{spoken}");
        let got = judge6(SCTP, &sctp(7, 0), spoken);
        assert_eq!(got, ask(ip6(), SCTP, 7), "{spoken}");
        let got = judge4(DCCP, &dccp(7, 4), spoken);
        assert_eq!(got, ask(ip4(), DCCP, 7), "{spoken}");
    }
}

#[test]
fn datagrams_open_with_each_packet() {
    for protocol in [UDP, UDP_LITE] {
        for spoken in [0, protocol] {
            assert_eq!(judge4(protocol, &udp(53), spoken), ask(ip4(), protocol, 53));
            assert_eq!(judge6(protocol, &udp(53), spoken), ask(ip6(), protocol, 53));
        }
    }
}

#[test]
fn associations_of_sctp_open_with_init() {
    const DATA: u8 = 0;
    const INIT_ACK: u8 = 2;
    const COOKIE_ECHO: u8 = 10;
    assert_eq!(
        judge4(SCTP, &sctp(3868, SCTP_INIT), SCTP),
        ask(ip4(), SCTP, 3868)
    );
    assert_eq!(
        judge6(SCTP, &sctp(3868, SCTP_INIT), SCTP),
        ask(ip6(), SCTP, 3868)
    );
    for chunk in [DATA, INIT_ACK, COOKIE_ECHO] {
        assert_eq!(judge4(SCTP, &sctp(3868, chunk), SCTP), Judgement::Pass);
    }
}

#[test]
fn connections_of_dccp_open_with_a_request() {
    const RESPONSE: u8 = 1;
    const DATA_ACK: u8 = 4;
    assert_eq!(
        judge4(DCCP, &dccp(5001, DCCP_REQUEST), DCCP),
        ask(ip4(), DCCP, 5001)
    );
    for kind in [RESPONSE, DATA_ACK] {
        assert_eq!(judge6(DCCP, &dccp(5001, kind), DCCP), Judgement::Pass);
    }
}

#[test]
fn protocols_without_ports_are_judged_by_address() {
    const GRE: u8 = 47;
    assert_eq!(judge4(ICMP, &[8, 0, 0, 0], 0), ask(ip4(), ICMP, 0));
    assert_eq!(judge4(ICMP, &[8, 0, 0, 0], ICMP), ask(ip4(), ICMP, 0));
    assert_eq!(judge6(ICMPV6, &[128, 0, 0, 0], 0), ask(ip6(), ICMPV6, 0));
    assert_eq!(judge4(GRE, &[], 0), ask(ip4(), GRE, 0));
}

/// SMC is TCP on the wire until both ends agree on more: the kernel's own TCP socket sends this.
#[test]
fn smc_opens_as_tcp_does() {
    let mut segment = tcp(443, SYN);
    segment[12] = 0x70;
    // The option by which both ends find that they speak it.
    segment.extend_from_slice(&[254, 6, 0xe2, 0xd4, 0xc3, 0xd9, 1, 1]);
    assert_eq!(judge4(TCP, &segment, TCP), ask(ip4(), TCP, 443));
}

#[test]
fn loopback_passes() {
    let mut packet = v4(UDP, 0, &[], &udp(53));
    packet[16..20].copy_from_slice(&[127, 0, 0, 11]);
    assert_eq!(judge(&Raw(packet), 0), Judgement::Pass);
    let mut packet = v6(&[], TCP, &tcp(80, SYN));
    packet[24..40].copy_from_slice(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(judge(&Raw(packet), TCP), Judgement::Pass);
}

#[test]
fn extension_headers_hide_nothing() {
    const SHORT: [u8; 8] = [0; 8];
    let long = {
        let mut bytes = [0; 24];
        bytes[1] = 2;
        bytes
    };
    let authentication = {
        let mut bytes = [0; 16];
        bytes[1] = 2;
        bytes
    };
    let chain: [(u8, &[u8]); 4] = [
        (HOP_BY_HOP, &SHORT),
        (DESTINATION_OPTIONS, &long),
        (AUTHENTICATION, &authentication),
        (DESTINATION_OPTIONS, &SHORT),
    ];
    let syn = Raw(v6(&chain, TCP, &tcp(443, SYN)));
    assert_eq!(judge(&syn, TCP), ask(ip6(), TCP, 443));
    let ack = Raw(v6(&chain, TCP, &tcp(443, ACK)));
    assert_eq!(judge(&ack, TCP), Judgement::Pass);
    // Longer than anybody needs.
    let endless = [(DESTINATION_OPTIONS, &SHORT[..]); MOST_HEADERS as usize + 1];
    let endless = judge(&Raw(v6(&endless, TCP, &tcp(443, SYN))), TCP);
    assert!(matches!(endless, Judgement::Unknown { .. }), "{endless:?}");
}

#[test]
fn a_route_of_its_own_is_not_followed() {
    let ends_here: [(u8, &[u8]); 1] = [(
        ROUTING,
        &[
            0, 2, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    )];
    let packet = Raw(v6(&ends_here, UDP, &udp(53)));
    assert_eq!(judge(&packet, UDP), ask(ip6(), UDP, 53));
    let goes_on: [(u8, &[u8]); 1] = [(
        ROUTING,
        &[
            0, 2, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
        ],
    )];
    for segment in [tcp(443, SYN), tcp(443, ACK)] {
        let packet = Raw(v6(&goes_on, TCP, &segment));
        assert_eq!(judge(&packet, TCP), unknown(ip6()));
    }
    // Loose source and record route of IPv4.
    let options = [131, 7, 4, 198, 51, 100, 1, 0];
    let packet = Raw(v4(TCP, 0, &options, &tcp(443, ACK)));
    assert_eq!(judge(&packet, TCP), unknown(ip4()));
}

#[test]
fn fragments_hide_nothing() {
    const MORE: u16 = 0x2000;
    // The first one names the port. That it opens nothing could change with the next.
    let first = Raw(v4(TCP, MORE, &[], &tcp(443, ACK)[..8]));
    assert_eq!(judge(&first, TCP), ask(ip4(), TCP, 443));
    // Others name none: rules that ask for none say.
    let other = Raw(v4(TCP, MORE | 1, &[], &tcp(443, ACK)));
    assert_eq!(judge(&other, TCP), ask(ip4(), TCP, 0));
    let last = Raw(v4(UDP, 185, &[], &[0; 4]));
    assert_eq!(judge(&last, UDP), ask(ip4(), UDP, 0));

    let piece = |offset: u16, more: u16| {
        let mut bytes = [0; 8];
        bytes[2..4].copy_from_slice(&(offset << 3 | more).to_be_bytes());
        bytes
    };
    let (one, two) = (piece(0, 1), piece(181, 0));
    let first = Raw(v6(&[(FRAGMENT, &one)], UDP, &udp(53)));
    assert_eq!(judge(&first, UDP), ask(ip6(), UDP, 53));
    let last = Raw(v6(&[(FRAGMENT, &two)], UDP, &[0; 2]));
    assert_eq!(judge(&last, UDP), ask(ip6(), UDP, 0));
    // The first fragment has to hold all headers.
    let cut = Raw(v6(&[(FRAGMENT, &one)], DESTINATION_OPTIONS, &[TCP, 0]));
    assert!(matches!(judge(&cut, UDP), Judgement::Unknown { .. }));
}

#[test]
fn what_ends_early_is_unknown() {
    let whole = [
        v4(TCP, 0, &[], &tcp(443, ACK)[..14]),
        v4(UDP, 0, &[], &udp(53)[..4]),
        v4(SCTP, 0, &[], &sctp(7, 0)[..13]),
        v6(&[], TCP, &tcp(443, ACK)[..14]),
        v6(&[(HOP_BY_HOP, &[0; 8])], DCCP, &dccp(7, 1)[..9]),
    ];
    for packet in whole {
        for length in 0..packet.len() {
            let cut = Raw(packet[..length].to_vec());
            for spoken in [TCP, UDP, SCTP, DCCP] {
                let judgement = judge(&cut, spoken);
                let known = matches!(judgement, Judgement::Pass);
                assert!(!known, "{length} of {} bytes pass", packet.len());
            }
        }
    }
    assert!(matches!(
        judge(&Raw(vec![0x45, 0]), TCP),
        Judgement::Unknown { .. }
    ));
    // A header that is shorter than one can be, and another version.
    for first in [0x44, 0x50, 0x00] {
        let mut packet = v4(TCP, 0, &[], &tcp(443, ACK));
        packet[0] = first;
        assert!(matches!(
            judge(&Raw(packet), TCP),
            Judgement::Unknown { .. }
        ));
    }
}
