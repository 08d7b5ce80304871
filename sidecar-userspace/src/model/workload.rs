//! The workload behind this sidecar: its name, what is steered, what happens without a proxy.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use super::{
    Cidr, Egress, EgressRule, IpProtocol, Level, Mtls, Protocol, UnknownDestination,
    cgroup::CgroupPattern,
};

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
    /// Destinations that are refused, by the kernel half.
    pub egress: Egress,
    /// Destinations that the kernel leaves alone.
    pub exclude_cidrs: Vec<Cidr>,
    /// Destination ports that the kernel leaves alone.
    pub exclude_ports: BTreeSet<u16>,
    /// Protocol declared for a destination port, whatever the address; others are detected.
    pub ports: BTreeMap<u16, Protocol>,
}

impl Outbound {
    /// The rule that denies a TCP connection to `destination`.
    pub fn denied_by(&self, destination: SocketAddr) -> Option<&EgressRule> {
        self.egress.denied_by(destination, IpProtocol::TCP)
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
            egress: Egress::default(),
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
