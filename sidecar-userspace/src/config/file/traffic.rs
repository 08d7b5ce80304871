//! The keys under `outbound` and `inbound`: which connections come to the sidecar, and how they are understood.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::{
        scalar::{Marked, Setting},
        value::{Name, Port},
    },
    model::{Cidr, InboundCapture, IpProtocol, Mtls, Protocol, UnknownDestination},
};

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Outbound {
    /// What to do with a destination that no service claims: `passthrough` dials the address that the
    /// application asked for, `registryOnly` resets the connection. IPv6 link-local ones cannot be steered: they are left
    /// alone with `passthrough` if there are no policies for outbound, else `connect` fails with EPERM.
    pub unknown: Option<Setting<UnknownDestination>>,
    /// Destinations that are refused: in the kernel, where `connect` and `send` fail with EPERM. All IP traffic, whatever the
    /// protocol, but never loopback. While there are rules, packet sockets of the application send nothing.
    pub deny: Option<Vec<EgressRule>>,
    /// Exceptions from `deny`. Each is one from the rules that are wider than it: its range is within theirs, and it names
    /// ports, or protocols, where they do.
    pub allow: Option<Vec<EgressRule>>,
    /// Destinations that are not steered to the sidecar.
    pub exclude: Option<OutboundExclude>,
    /// Protocols declared for destination ports, whatever the address. Others are declared by a service or
    /// found out from the first bytes.
    pub ports: Option<Vec<PortProtocol>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct EgressRule {
    /// Required, and not that of another rule: it stands in the log.
    pub name: Setting<Name>,
    /// Addresses and ranges of addresses. Absent: every address. One of the three lists is required.
    pub cidrs: Option<Marked<Vec<Setting<Cidr>>>>,
    /// Destination ports. Absent: every port, and protocols without ports.
    pub ports: Option<Marked<Vec<Setting<Port>>>>,
    /// Protocols on top of IP. Absent: every one.
    pub protocols: Option<Marked<Vec<Setting<IpProtocol>>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct OutboundExclude {
    /// Addresses and ranges of addresses.
    pub cidrs: Option<Vec<Setting<Cidr>>>,
    /// Destination ports.
    pub ports: Option<Vec<Setting<Port>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PortExclude {
    /// Destination ports.
    pub ports: Option<Vec<Setting<Port>>>,
}

/// A port and how its bytes are to be understood.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PortProtocol {
    /// Required.
    pub port: Setting<Port>,
    /// `auto` finds it out without stalling a protocol in which the server speaks first; `tcp` relays bytes;
    /// `http` is HTTP/1.1, and HTTP/2 from clients that open with its preface; `http2` and `grpc` are HTTP/2
    /// with prior knowledge.
    pub protocol: Option<Setting<Protocol>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Inbound {
    /// Which ports are handed to the sidecar: `workload`, those that the workload listens on; `listed`, those
    /// under `ports`; `none`.
    pub capture: Option<Setting<InboundCapture>>,
    /// Whether connections must be mutual TLS, as in Istio's PeerAuthentication: `strict` takes nothing else;
    /// `permissive` takes plaintext as well, told apart by the first bytes; `disable` leaves TLS to the application.
    /// Absent: `permissive` with an `identity`, else `disable`. On a permissive port, plaintext clients that wait
    /// for the server to speak first wait 300 ms longer.
    pub mtls: Option<Setting<Mtls>>,
    /// What is declared for the workload's ports.
    pub ports: Option<Vec<InboundPort>>,
    /// Ports that are not steered to the sidecar.
    pub exclude: Option<PortExclude>,
    /// Ports at which the kubelet of the node may ask the application past the sidecar, for its probes and hooks cannot prove an
    /// identity. Absent: every port. The injector writes those that the pod's own probes and hooks name.
    pub probe_ports: Option<Vec<Setting<Port>>>,
}

/// A port of the workload.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct InboundPort {
    /// Required.
    pub port: Setting<Port>,
    /// How its bytes are to be understood, as in `outbound.ports`.
    pub protocol: Option<Setting<Protocol>>,
    /// Absent: the general `inbound.mtls`.
    pub mtls: Option<Setting<Mtls>>,
}
