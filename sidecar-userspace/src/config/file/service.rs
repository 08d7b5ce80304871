//! The keys under `services`: names that stand for endpoints.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Timeout, traffic::PortProtocol};
use crate::{
    config::{
        scalar::{Marked, Setting},
        value::{FilePath, Host, Name, Port, Weight},
    },
    identity::SpiffeId,
    model::{Cidr, EndpointAddress},
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Service {
    /// Required, and not that of another service.
    pub name: Setting<Name>,
    /// Hosts by which clients call it. Absent: its name. No host can belong to two services.
    pub hosts: Option<Vec<Setting<Host>>>,
    /// Virtual addresses: a connection to one of them on one of `ports` is for this service. Of overlapping
    /// ranges the longest prefix wins. Connections to the endpoints' own addresses belong to it as well.
    pub addresses: Option<Marked<Vec<Setting<Cidr>>>>,
    /// Its ports and their protocols.
    pub ports: Option<Vec<PortProtocol>>,
    /// Who serves it.
    pub endpoints: Option<Marked<Vec<Endpoint>>>,
    /// Limits on waiting for it.
    pub timeouts: Option<ServiceTimeouts>,
    /// How connections to the endpoints are encrypted. Absent: as the application sends them.
    pub tls: Option<Marked<ServiceTls>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceTls {
    /// Required. `mesh`: mutual TLS with the endpoints' sidecars, Istio's ISTIO_MUTUAL; `simple`: TLS to servers
    /// outside the mesh; `mutual`: the same with a client certificate; `disable`.
    pub mode: Setting<TlsMode>,
    /// Required for `mesh`: the SPIFFE ids that the endpoints may have.
    pub subject_alt_names: Option<Vec<Setting<SpiffeId>>>,
    /// For `mesh`: whether connections to ports of the protocol `tcp` share kept connections to the endpoints' sidecars
    /// (HTTP/2 CONNECT), so that a new one needs no handshake; `true` unless said otherwise. Sidecars that know no tunnels
    /// get a connection each all the same.
    pub tunnel: Option<Setting<bool>>,
    /// For `simple` and `mutual`: the server's name, said to it and expected in its certificate. Absent: the service's
    /// first host, else the address.
    pub sni: Option<Setting<Host>>,
    /// For `simple` and `mutual`: a PEM file with the roots that may have signed the server's certificate. Absent: the
    /// system's public roots. The files named here are read when they are needed, and again when they have changed.
    pub ca_certificates: Option<Setting<FilePath>>,
    /// Required for `mutual`: a PEM file with the client certificate.
    pub client_certificate: Option<Setting<FilePath>>,
    /// Required for `mutual`: a PEM file with its key, for nobody but the owner to read (mode 0600).
    pub private_key: Option<Setting<FilePath>>,
}

/// How connections to a service are encrypted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    Mesh,
    Simple,
    Mutual,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Endpoint {
    /// Required. Names are resolved when they are dialled.
    pub address: Setting<EndpointAddress>,
    /// Port to dial; absent: the one that the client asked for.
    pub port: Option<Setting<Port>>,
    /// Share of the traffic, relative to the service's other endpoints; 0 takes none, absent is 1.
    pub weight: Option<Setting<Weight>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ServiceTimeouts {
    /// To establish a connection to one endpoint. Absent: the general `timeouts.connect`.
    pub connect: Option<Setting<Timeout>>,
}
