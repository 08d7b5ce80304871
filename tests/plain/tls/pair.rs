//! Two sidecars with mutual TLS between them: the client's, and the server's.

use std::{net::SocketAddr, sync::Arc};

use sidecar_userspace::{
    model::{
        Endpoint, EndpointAddress, Mtls, Protocol, Service, ServicePort, ServiceTls, Snapshot,
    },
    tls::mesh::MeshHandle,
};

use super::authority::Authority;
use crate::proxy::world::{World, snapshot};

pub const CLIENT: &str = "spiffe://td/ns/default/sa/client";
pub const SERVER: &str = "spiffe://td/ns/default/sa/server";

pub struct Pair {
    pub client: World,
    pub server: World,
    pub client_mesh: Arc<MeshHandle>,
    pub server_mesh: Arc<MeshHandle>,
}

impl Pair {
    /// In front of `application`, whose port is strict.
    pub fn new(authority: &Authority, application: SocketAddr) -> Self {
        Self::with(authority, application, SERVER, |_| ())
    }

    /// `expected`: whom the client's sidecar takes the server for.
    pub fn with(
        authority: &Authority,
        application: SocketAddr,
        expected: &str,
        change: impl Fn(&mut Snapshot),
    ) -> Self {
        Self::of(authority, application, change, |at| service(at, expected))
    }

    /// The protocol is known to be opaque bytes: connections share tunnels.
    pub fn opaque(
        authority: &Authority,
        application: SocketAddr,
        change: impl Fn(&mut Snapshot),
    ) -> Self {
        Self::of(authority, application, change, opaque)
    }

    fn of(
        authority: &Authority,
        application: SocketAddr,
        change: impl Fn(&mut Snapshot),
        service: impl FnOnce(SocketAddr) -> Service,
    ) -> Self {
        let (client_mesh, server_mesh) = (authority.mesh(CLIENT), authority.mesh(SERVER));
        let mut inbound = snapshot();
        inbound.inbound.mtls = Mtls::Strict;
        change(&mut inbound);
        let server = World::secured(inbound, application, server_mesh.clone());
        let at = SocketAddr::from(([127, 0, 0, 1], server.handle.ports().inbound));
        let mut outbound = snapshot();
        change(&mut outbound);
        let outbound = outbound.with_services(vec![Arc::new(service(at))], vec![]);
        let client = World::secured(outbound, at, client_mesh.clone());
        Self {
            client,
            server,
            client_mesh,
            server_mesh,
        }
    }
}

/// As [`service`], of opaque bytes.
pub fn opaque(at: SocketAddr) -> Service {
    let mut service = service(at, SERVER);
    for port in &mut service.ports {
        port.protocol = Protocol::Tcp;
    }
    service
}

/// `server`, with one endpoint and the protocol to be found out.
pub fn service(at: SocketAddr, expected: &str) -> Service {
    let tls = ServiceTls::Mesh {
        identities: vec![expected.parse().unwrap()],
        tunnel: true,
    };
    Service {
        name: "server".into(),
        hosts: vec!["server".into()],
        addresses: vec![],
        ports: vec![ServicePort {
            port: at.port(),
            protocol: Protocol::Auto,
        }],
        endpoints: vec![Endpoint {
            address: EndpointAddress::Ip(at.ip()),
            port: Some(at.port()),
            weight: 1,
        }],
        connect_timeout: std::time::Duration::from_secs(2),
        tls: Some(Arc::new(tls)),
    }
}
