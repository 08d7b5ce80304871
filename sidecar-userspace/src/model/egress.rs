//! Destinations that the workload may not reach, and exceptions.

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sidecar_common::settings::protocol;

use super::Cidr;

/// A protocol on top of IP, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct IpProtocol(pub u8);

impl IpProtocol {
    pub const TCP: Self = Self(protocol::TCP);
    /// Those that have names, as Kubernetes writes them.
    pub const NAMED: [(&'static str, Self); 7] = [
        ("TCP", Self::TCP),
        ("UDP", Self(protocol::UDP)),
        ("SCTP", Self(protocol::SCTP)),
        ("DCCP", Self(protocol::DCCP)),
        ("UDPLITE", Self(protocol::UDP_LITE)),
        ("ICMP", Self(protocol::ICMP)),
        ("ICMPV6", Self(protocol::ICMPV6)),
    ];

    /// Whether its packets name ports.
    pub fn has_ports(self) -> bool {
        protocol::has_ports(self.0)
    }
}

impl fmt::Display for IpProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMED.iter().find(|(_, named)| named == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Destinations that the workload may not reach, or an exception. Loopback is never meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    pub name: Arc<str>,
    /// Empty: every address.
    pub cidrs: Vec<Cidr>,
    /// Empty: every port, and protocols that have none.
    pub ports: BTreeSet<u16>,
    /// Empty: every protocol.
    #[serde(default)]
    pub protocols: BTreeSet<IpProtocol>,
}

impl EgressRule {
    /// Every destination.
    pub fn everything(name: &str) -> Self {
        Self {
            name: name.into(),
            cidrs: Vec::new(),
            ports: BTreeSet::new(),
            protocols: BTreeSet::new(),
        }
    }

    /// Whether the rule means this. `destination`: not v4-mapped; port 0: the protocol has none.
    pub fn means(&self, destination: SocketAddr, protocol: IpProtocol) -> bool {
        let ip = destination.ip();
        !ip.is_loopback()
            && !ip.is_unspecified()
            && (self.cidrs.is_empty() || self.cidrs.iter().any(|cidr| cidr.contains(ip)))
            && (self.ports.is_empty() || self.ports.contains(&destination.port()))
            && (self.protocols.is_empty() || self.protocols.contains(&protocol))
    }

    /// Whether some of what this rule means is an exception from `wide`: an address within one of its ranges, a port of it, a
    /// protocol of it.
    pub fn is_within(&self, wide: &Self) -> bool {
        let cidrs = wide.cidrs.is_empty()
            || self.kernel_cidrs().iter().any(|cidr| {
                let mut around = wide.cidrs.iter();
                around.any(|wide| {
                    wide.contains(cidr.address()) && wide.prefix_bits() <= cidr.prefix_bits()
                })
            });
        let meet = |ports: bool, wide_ports: bool, common: bool| wide_ports || !ports && common;
        cidrs
            && meet(
                self.ports.is_empty(),
                wide.ports.is_empty(),
                !self.ports.is_disjoint(&wide.ports),
            )
            && meet(
                self.protocols.is_empty(),
                wide.protocols.is_empty(),
                !self.protocols.is_disjoint(&wide.protocols),
            )
    }

    /// The ports as the kernel half has them: 0 for every port.
    pub fn kernel_ports(&self) -> Vec<u16> {
        match self.ports.is_empty() {
            true => vec![0],
            false => self.ports.iter().copied().collect(),
        }
    }

    /// The protocols as the kernel half has them: 0 for every one.
    pub fn kernel_protocols(&self) -> Vec<u16> {
        match self.protocols.is_empty() {
            true => vec![0],
            false => self.protocols.iter().map(|p| p.0.into()).collect(),
        }
    }

    /// The ranges, with both families where none is named.
    pub fn kernel_cidrs(&self) -> Vec<Cidr> {
        if !self.cidrs.is_empty() {
            return self.cidrs.clone();
        }
        let every = [IpAddr::from([0_u8; 4]), IpAddr::from([0_u8; 16])];
        every
            .into_iter()
            .filter_map(|ip| Cidr::new(ip, 0))
            .collect()
    }

    /// How narrow it is for an address that it means: whether it names a port, a protocol, and bits of the range.
    fn narrowness(&self, destination: SocketAddr) -> (bool, bool, u8) {
        let around = self
            .cidrs
            .iter()
            .filter(|cidr| cidr.contains(destination.ip()));
        let bits = around.map(Cidr::prefix_bits).max().unwrap_or(0);
        (!self.ports.is_empty(), !self.protocols.is_empty(), bits)
    }
}

/// What the workload may not reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Egress {
    pub deny: Vec<EgressRule>,
    /// Each is an exception from the rules that are wider in every respect, see [`sidecar_common::denial`].
    pub allow: Vec<EgressRule>,
}

impl Egress {
    /// The rule that denies a connection to `destination`; as in the kernel half, the narrowest.
    pub fn denied_by(&self, destination: SocketAddr, protocol: IpProtocol) -> Option<&EgressRule> {
        let excepted = |rule: &EgressRule| {
            let wide = rule.narrowness(destination);
            let mut allowing = self.allow.iter();
            allowing.any(|allowing| {
                let narrow = allowing.narrowness(destination);
                allowing.means(destination, protocol)
                    && narrow.0 >= wide.0
                    && narrow.1 >= wide.1
                    && narrow.2 >= wide.2
                    && narrow != wide
            })
        };
        let denying = self.deny.iter();
        let denying = denying.filter(|rule| rule.means(destination, protocol) && !excepted(rule));
        // Of equals `min_by_key` gives the first.
        denying.min_by_key(|rule| std::cmp::Reverse(rule.narrowness(destination)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(name: &str, cidrs: &[&str], ports: &[u16], protocols: &[u8]) -> EgressRule {
        EgressRule {
            name: name.into(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ports: ports.iter().copied().collect(),
            protocols: protocols.iter().copied().map(IpProtocol).collect(),
        }
    }

    #[test]
    fn the_narrowest_rule_denies() {
        let egress = Egress {
            deny: vec![
                rule("wide", &["10.0.0.0/8"], &[], &[]),
                rule("narrow", &["10.1.0.0/16"], &[], &[]),
                rule("mail", &[], &[25], &[]),
                rule("mail-by-udp", &[], &[25], &[17]),
                rule("pings", &[], &[], &[1, 58]),
                rule("six", &["::/0"], &[], &[]),
            ],
            allow: Vec::new(),
        };
        for (destination, protocol, wanted) in [
            ("10.2.0.1:80", 6, Some("wide")),
            ("10.1.0.1:80", 6, Some("narrow")),
            ("10.1.0.1:25", 6, Some("mail")),
            ("192.0.2.1:25", 6, Some("mail")),
            ("192.0.2.1:25", 17, Some("mail-by-udp")),
            ("192.0.2.1:80", 6, None),
            ("192.0.2.1:0", 1, Some("pings")),
            ("192.0.2.1:0", 47, None),
            ("[2001:db8::1]:80", 6, Some("six")),
            ("[2001:db8::1]:0", 58, Some("pings")),
            ("127.0.0.1:25", 6, None),
            ("[::1]:25", 17, None),
        ] {
            let found = egress.denied_by(destination.parse().unwrap(), IpProtocol(protocol));
            let found = found.map(|rule| &*rule.name);
            assert_eq!(found, wanted, "{destination} by {protocol}");
        }
    }

    #[test]
    fn an_exception_is_narrower_than_what_it_is_from() {
        let egress = Egress {
            deny: vec![
                rule("everything", &["0.0.0.0/0", "::/0"], &[], &[]),
                rule("metadata", &["169.254.169.254"], &[], &[]),
                rule("mail", &[], &[25], &[]),
            ],
            allow: vec![
                rule("dns", &[], &[53], &[6, 17]),
                rule("office", &["10.0.0.0/8"], &[], &[]),
                rule("relay", &["10.1.0.0/16"], &[25], &[6]),
            ],
        };
        for (destination, protocol, wanted) in [
            ("192.0.2.1:53", 17, None),
            ("192.0.2.1:53", 6, None),
            ("192.0.2.1:53", 132, Some("everything")),
            ("192.0.2.1:80", 6, Some("everything")),
            ("10.0.0.1:80", 6, None),
            ("10.0.0.1:0", 1, None),
            // Denied whatever the port.
            ("169.254.169.254:53", 17, Some("metadata")),
            // Denied whatever the address.
            ("10.0.0.1:25", 6, Some("mail")),
            ("10.1.0.1:25", 6, None),
            ("10.1.0.1:25", 17, Some("mail")),
            ("[2001:db8::1]:53", 17, None),
            ("[2001:db8::1]:54", 17, Some("everything")),
        ] {
            let found = egress.denied_by(destination.parse().unwrap(), IpProtocol(protocol));
            let found = found.map(|rule| &*rule.name);
            assert_eq!(found, wanted, "{destination} by {protocol}");
        }
        let within = |narrow: &EgressRule, wide: &EgressRule| narrow.is_within(wide);
        let [dns, office, relay] = &egress.allow[..] else {
            panic!()
        };
        let [everything, metadata, mail] = &egress.deny[..] else {
            panic!()
        };
        assert!(within(dns, everything) && within(office, everything) && within(relay, mail));
        assert!(!within(dns, metadata) && !within(office, mail) && !within(dns, mail));
    }
}
