//! The workload behind this sidecar: its name, what is steered, what happens without a proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use serde::{Deserialize, Serialize};

use super::{Cidr, Level, Mtls, Protocol, UnknownDestination, cgroup::CgroupPattern};

/// Who the sidecar speaks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    pub name: String,
    pub namespace: String,
    /// Cgroups below the application's whose processes are left alone.
    pub exclude_cgroups: Vec<CgroupPattern>,
}

/// What the workload's own connections may do and what of them is steered to the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outbound {
    /// What to do with a destination that no service claims.
    pub unknown: UnknownDestination,
    /// Destinations that are refused, by the kernel half at `connect`.
    pub deny: Vec<EgressRule>,
    /// Destinations that the kernel leaves alone.
    pub exclude_cidrs: Vec<Cidr>,
    /// Destination ports that the kernel leaves alone.
    pub exclude_ports: BTreeSet<u16>,
    /// Protocol declared for a destination port, whatever the address; others are detected.
    pub ports: BTreeMap<u16, Protocol>,
}

/// Destinations that the workload may not reach. Loopback is never meant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EgressRule {
    pub name: Arc<str>,
    /// Empty: every address.
    pub cidrs: Vec<Cidr>,
    /// Empty: every port.
    pub ports: BTreeSet<u16>,
}

impl EgressRule {
    /// `destination`: not v4-mapped.
    pub fn denies(&self, destination: SocketAddr) -> bool {
        let ip = destination.ip();
        !ip.is_loopback()
            && !ip.is_unspecified()
            && (self.cidrs.is_empty() || self.cidrs.iter().any(|cidr| cidr.contains(ip)))
            && (self.ports.is_empty() || self.ports.contains(&destination.port()))
    }

    /// The ports as the kernel half has them: 0 for every port.
    pub fn kernel_ports(&self) -> Vec<u16> {
        match self.ports.is_empty() {
            true => vec![0],
            false => self.ports.iter().copied().collect(),
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
}

impl Outbound {
    /// The rule that denies `destination`: as in the kernel half, the one for its port, and the longest range.
    pub fn denied_by(&self, destination: SocketAddr) -> Option<&EgressRule> {
        let denying = self.deny.iter().filter(|rule| rule.denies(destination));
        let longest = |rule: &EgressRule| {
            let around = rule
                .cidrs
                .iter()
                .filter(|cidr| cidr.contains(destination.ip()));
            around.map(Cidr::prefix_bits).max().unwrap_or(0)
        };
        // Of equals `min_by_key` gives the first.
        denying.min_by_key(|rule| (rule.ports.is_empty(), u8::MAX - longest(rule)))
    }
}

impl Default for Workload {
    fn default() -> Self {
        Self {
            name: "workload".to_owned(),
            namespace: "default".to_owned(),
            exclude_cgroups: Vec::new(),
        }
    }
}

impl Default for Outbound {
    fn default() -> Self {
        Self {
            unknown: UnknownDestination::Passthrough,
            deny: Vec::new(),
            exclude_cidrs: Vec::new(),
            exclude_ports: BTreeSet::new(),
            ports: BTreeMap::new(),
        }
    }
}

/// Which ports of the workload are handed to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InboundCapture {
    /// Every port that a process of the workload listens on. A bare host's other services are left alone.
    Workload,
    /// Only the ports listed in [`Inbound::ports`].
    Listed,
    /// Nothing.
    None,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inbound {
    pub capture: InboundCapture,
    pub ports: BTreeMap<u16, InboundPort>,
    pub exclude_ports: BTreeSet<u16>,
    /// Where the kubelet may ask the application past the proxy; `None`: everywhere.
    pub probe_ports: Option<BTreeSet<u16>>,
    /// For ports that say nothing of their own.
    pub mtls: Mtls,
}

impl Inbound {
    /// Whether connections to `port` must be mutual TLS.
    pub fn mtls(&self, port: u16) -> Mtls {
        let own = self.ports.get(&port).and_then(|port| port.mtls);
        own.unwrap_or(self.mtls)
    }
}

impl Default for Inbound {
    fn default() -> Self {
        Self {
            capture: InboundCapture::Workload,
            ports: BTreeMap::new(),
            exclude_ports: BTreeSet::new(),
            probe_ports: None,
            mtls: Mtls::Disable,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundPort {
    pub protocol: Protocol,
    pub mtls: Option<Mtls>,
}

/// Redirect past the TCP stack between sockets of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Redirect {
    pub enabled: bool,
    /// How far it may go.
    pub level: Level,
    /// Whether connections to ports on which redirect does not pay are left on TCP.
    pub adaptive: bool,
    /// Bytes that may be redirected in one direction of one flow and not yet proven drained.
    pub credit_bytes: u32,
    /// Ports (of the destination) whose flows stay on TCP.
    pub exclude_ports: BTreeSet<u16>,
}

impl Redirect {
    /// How far it may go, or not at all.
    pub fn allowed(&self) -> Level {
        match self.enabled {
            true => self.level,
            false => Level::Off,
        }
    }
}

impl Default for Redirect {
    fn default() -> Self {
        Self {
            enabled: true,
            level: Level::Joined,
            adaptive: true,
            credit_bytes: 256 * 1024,
            exclude_ports: BTreeSet::new(),
        }
    }
}

/// What the workload's traffic does while no proxy is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum FailRule {
    /// Refuse.
    Closed,
    /// Bypass the proxy.
    Open,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_for_the_port_and_the_longest_range_denies() {
        let rule = |name: &str, cidrs: &[&str], ports: &[u16]| EgressRule {
            name: name.into(),
            cidrs: cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect(),
            ports: ports.iter().copied().collect(),
        };
        let outbound = Outbound {
            deny: vec![
                rule("wide", &["10.0.0.0/8"], &[]),
                rule("narrow", &["10.1.0.0/16"], &[]),
                rule("mail", &[], &[25]),
                rule("six", &["::/0"], &[]),
            ],
            ..Outbound::default()
        };
        for (destination, wanted) in [
            ("10.2.0.1:80", Some("wide")),
            ("10.1.0.1:80", Some("narrow")),
            ("10.1.0.1:25", Some("mail")),
            ("192.0.2.1:25", Some("mail")),
            ("192.0.2.1:80", None),
            ("[2001:db8::1]:80", Some("six")),
            ("127.0.0.1:25", None),
            ("[::1]:25", None),
        ] {
            let found = outbound.denied_by(destination.parse().unwrap());
            assert_eq!(found.map(|rule| &*rule.name), wanted, "{destination}");
        }
    }
}
