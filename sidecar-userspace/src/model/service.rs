//! Services: names that stand for endpoints.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use super::{Cidr, ServiceTls};

/// How the bytes of a port are to be understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// Found out from the first bytes, without stalling a protocol in which the server speaks first.
    Auto,
    /// Opaque bytes.
    Tcp,
    /// HTTP/1.1; HTTP/2 too if the client opens with its preface.
    Http,
    /// HTTP/2 with prior knowledge towards the endpoints (gRPC among it).
    Http2,
}

/// A named set of endpoints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: Arc<str>,
    /// Names by which clients call it in `Host`/`:authority`; lower case, no port, no trailing dot.
    pub hosts: Vec<String>,
    /// Virtual addresses: an original destination in one of them on one of `ports` is this service.
    /// The endpoints' own literal addresses belong to the service as well.
    pub addresses: Vec<Cidr>,
    pub ports: Vec<ServicePort>,
    pub endpoints: Vec<Endpoint>,
    /// Time to establish a connection to one endpoint.
    pub connect_timeout: Duration,
    /// How connections to the endpoints are encrypted; `None`: as the application sends them.
    pub tls: Option<Arc<ServiceTls>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: EndpointAddress,
    /// Port to dial; `None` dials the port that the client asked for.
    pub port: Option<u16>,
    /// Share of the traffic; 0 takes none.
    pub weight: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum EndpointAddress {
    Ip(IpAddr),
    /// Resolved when it is dialled, by the system's resolver.
    Name(String),
}

impl Service {
    /// The protocol declared for `port`, or `Auto`. A service with a single port declares it for its endpoints'
    /// ports as well, where clients call an endpoint by its own address.
    pub fn protocol(&self, port: u16) -> Protocol {
        let is_endpoint = || self.endpoints.iter().any(|e| e.port == Some(port));
        let declared = self.ports.iter().find(|p| p.port == port);
        match (declared, self.ports.as_slice()) {
            (Some(declared), _) => declared.protocol,
            (None, [only]) if is_endpoint() => only.protocol,
            _ => Protocol::Auto,
        }
    }

    /// Whether a connection to `destination` is a connection to this service.
    pub fn claims(&self, destination: SocketAddr) -> bool {
        let address = destination.ip().to_canonical();
        let port_listed = self.ports.iter().any(|p| p.port == destination.port());
        (port_listed && self.addresses.iter().any(|cidr| cidr.contains(address)))
            || self.endpoints.iter().any(|endpoint| {
                endpoint.address == EndpointAddress::Ip(address)
                    && endpoint
                        .port
                        .map_or(port_listed, |port| port == destination.port())
            })
    }
}
