//! Rules for destinations, as entries of the shared map.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
};

use aya::maps::lpm_trie::Key;
use sidecar_common::{
    address::Ip,
    settings::{DenyTarget, Ruling},
};

use super::rules::mapped;
use crate::model::{Cidr, EgressRule};

/// The entries for rules. Of rules for the same destinations the first one counts, and one that denies before one that allows.
pub(super) fn denials(
    slot: u32,
    deny: &[EgressRule],
    allow: &[EgressRule],
) -> Vec<(Key<DenyTarget>, u32)> {
    let mut entries: BTreeMap<(u16, u16, u32, [u8; 16]), Ruling> = BTreeMap::new();
    let number = |index: usize| u16::try_from(index + 1).unwrap_or(u16::MAX);
    let denying = deny.iter().enumerate();
    let denying = denying.map(|(index, rule)| (rule, Some(number(index))));
    for (rule, number) in denying.chain(allow.iter().map(|rule| (rule, None))) {
        for port in rule.kernel_ports() {
            for protocol in rule.kernel_protocols() {
                for cidr in &rule.kernel_cidrs() {
                    let (bits, ip) = mapped(cidr);
                    let ruling = match number {
                        Some(number) => Ruling::deny(number, bits),
                        None => Ruling::allow(bits),
                    };
                    let key = (port, protocol, bits, ip.octets());
                    entries.entry(key).or_insert(ruling);
                }
            }
        }
    }
    // A range of IPv6 that IPv4's place in it is part of does not mean IPv4.
    let v4 = Ipv4Addr::UNSPECIFIED.to_ipv6_mapped();
    let around = |bits: u32, ip: &[u8; 16]| {
        let range = Cidr::around(v4.into(), u8::try_from(bits).unwrap_or(u8::MAX));
        bits < 96 && range.is_some_and(|range| range.address() == IpAddr::from(*ip))
    };
    let around = entries.keys().filter(|(_, _, bits, ip)| around(*bits, ip));
    let around: BTreeSet<(u16, u16)> = around
        .map(|(port, protocol, ..)| (*port, *protocol))
        .collect();
    for (port, protocol) in around {
        let key = (port, protocol, 96, v4.octets());
        entries.entry(key).or_insert(Ruling::NONE);
    }
    let key = |((port, protocol, bits, ip), ruling): ((u16, u16, u32, [u8; 16]), Ruling)| {
        let target = DenyTarget {
            workload: slot,
            port,
            protocol,
            ip: Ip::from(IpAddr::from(ip)),
        };
        (Key::new(64 + bits, target), ruling.0)
    };
    entries.into_iter().map(key).collect()
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use sidecar_common::{
        address::Address,
        denial::{self, Found},
    };

    use super::*;
    use crate::model::{Egress, IpProtocol};

    /// What the kernel half does with the entries.
    fn denied_by(entries: &[(Key<DenyTarget>, u32)], to: SocketAddr, protocol: u8) -> u32 {
        let Address { ip, port, .. } = to.into();
        let bits = |ip: Ip| {
            ip.0.iter()
                .fold(0, |all, word| all << 32 | u128::from(u32::from_be(*word)))
        };
        let ruling = |port: u16, protocol: u16| {
            let of_class = entries
                .iter()
                .filter(|(key, _)| (key.data().port, key.data().protocol) == (port, protocol));
            let around = of_class.filter(|(key, _)| {
                let length = key.prefix_len() - 64;
                let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
                bits(key.data().ip) & mask == bits(ip) & mask
            });
            let longest = around.max_by_key(|(key, _)| key.prefix_len());
            longest.map_or(Ruling::NONE, |(_, ruling)| Ruling(*ruling))
        };
        let with_port = |protocol| match port {
            0 => Ruling::NONE,
            port => ruling(port, protocol),
        };
        denial::denied_by(&Found {
            both: with_port(protocol.into()),
            port: with_port(0),
            protocol: ruling(0, protocol.into()),
            neither: ruling(0, 0),
        })
    }

    /// A small generator is enough: xorshift.
    struct Random(u64);

    impl Random {
        fn below(&mut self, most: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % most as u64) as usize
        }

        fn some<T: Copy>(&mut self, of: &[T]) -> Vec<T> {
            (0..self.below(3))
                .map(|_| of[self.below(of.len())])
                .collect()
        }
    }

    #[test]
    fn the_kernel_half_says_what_the_model_says() {
        const RANGES: [&str; 11] = [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "10.1.2.3/32",
            "192.0.2.0/24",
            "::/0",
            "::/64",
            "2001:db8::/32",
            "2001:db8:1::/48",
            "2001:db8:1::7/128",
            "64:ff9b::/96",
        ];
        const TO: [&str; 8] = [
            "10.1.2.3",
            "10.1.2.4",
            "10.2.0.1",
            "192.0.2.1",
            "2001:db8:1::7",
            "2001:db8::1",
            "64:ff9b::1",
            "fd00::1",
        ];
        const PORTS: [u16; 3] = [25, 53, 80];
        const PROTOCOLS: [u8; 4] = [1, 6, 17, 132];
        let mut random = Random(0x5ca1_ab1e);
        let (mut denied, mut allowed) = (0, 0);
        for _ in 0..2000 {
            let rules = |random: &mut Random, names: &str| -> Vec<EgressRule> {
                let rule = |number: usize| EgressRule {
                    name: format!("{names}-{number}").into(),
                    cidrs: random
                        .some(&RANGES)
                        .iter()
                        .map(|c| c.parse().unwrap())
                        .collect(),
                    ports: random.some(&PORTS).into_iter().collect(),
                    protocols: random
                        .some(&PROTOCOLS)
                        .into_iter()
                        .map(IpProtocol)
                        .collect(),
                };
                (0..4).map(rule).collect()
            };
            let egress = Egress {
                deny: rules(&mut random, "deny"),
                allow: rules(&mut random, "allow"),
            };
            let entries = denials(7, &egress.deny, &egress.allow);
            for to in TO {
                for protocol in PROTOCOLS {
                    let port = match IpProtocol(protocol).has_ports() {
                        true => PORTS[random.below(PORTS.len())],
                        false => 0,
                    };
                    let to = SocketAddr::new(to.parse().unwrap(), port);
                    let expected = egress.denied_by(to, IpProtocol(protocol));
                    let found = denied_by(&entries, to, protocol);
                    let found = found.checked_sub(1).map(|n| &egress.deny[n as usize]);
                    assert_eq!(found, expected, "{to} by {protocol}: {egress:?}");
                    match found {
                        Some(_) => denied += 1,
                        None => allowed += 1,
                    }
                }
            }
        }
        assert!(denied > 10_000 && allowed > 10_000, "{denied} {allowed}");
    }

    #[test]
    fn dns_and_nothing_else_takes_no_more_than_everybody_gets() {
        let rule = |cidrs: &[&str], ports: &[u16], protocols: &[u8]| EgressRule {
            name: "x".into(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ports: ports.iter().copied().collect(),
            protocols: protocols.iter().copied().map(IpProtocol).collect(),
        };
        let everything = rule(&["0.0.0.0/0", "::/0"], &[], &[]);
        let dns = rule(&["10.96.0.10", "fd00::a"], &[53], &[6, 17]);
        let entries = denials(7, &[everything], &[dns]);
        assert!(entries.len() <= 8, "{}", entries.len());
    }
}
