//! Route: from the original destination to the service that it is for, and the protocol to expect.

use std::{net::SocketAddr, sync::Arc};

use super::{ConnectionContext, Direction};
use crate::{
    model::{Endpoint, EndpointAddress, Protocol, Service, ServiceTls, Snapshot},
    tls::Carried,
};

/// Where a connection (or a request) goes.
#[derive(Debug, Clone)]
pub struct Target {
    /// The service that claims the destination; `None`: passthrough, or the workload itself.
    pub service: Option<Arc<Service>>,
    pub pick: Pick,
    pub protocol: Protocol,
}

/// What may be dialled for a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// This address only: the client named it.
    Address(SocketAddr),
    /// An endpoint of the service; `port` for endpoints that have none of their own.
    Endpoint { port: u16 },
}

impl Target {
    /// One of `service`'s endpoints, for a client that asked for `port`.
    pub fn of_service(service: &Arc<Service>, port: u16) -> Self {
        Self {
            service: Some(service.clone()),
            pick: Pick::Endpoint { port },
            protocol: service.protocol(port),
        }
    }

    /// What an outbound connection to `destination` is for.
    pub fn of_destination(snapshot: &Snapshot, destination: SocketAddr) -> Self {
        let declared = snapshot.outbound.ports.get(&destination.port()).copied();
        let mut target = match snapshot.service_at(destination) {
            Some(service) => Self::of_service(service, destination.port()),
            None => Self::exactly(destination),
        };
        // A client that names an endpoint's own address has done the balancing itself.
        if target
            .service
            .as_ref()
            .is_some_and(|s| s.endpoints.iter().any(|e| is_at(e, destination)))
        {
            target.pick = Pick::Address(destination);
        }
        if target.protocol == Protocol::Auto {
            target.protocol = declared.unwrap_or(Protocol::Auto);
        }
        target
    }

    /// How connections for it are encrypted by us.
    pub fn tls(&self) -> Option<&Arc<ServiceTls>> {
        self.service.as_ref()?.tls.as_ref()
    }

    fn exactly(destination: SocketAddr) -> Self {
        Self {
            service: None,
            pick: Pick::Address(destination),
            protocol: Protocol::Auto,
        }
    }
}

/// The target of the connection; `None` for a client of the explicit proxy, whose requests name theirs.
pub fn route(context: &ConnectionContext) -> Option<Target> {
    let destination = context.original?;
    Some(match context.direction {
        Direction::Outbound => Target::of_destination(&context.snapshot, destination),
        Direction::Inbound => {
            let port = context.snapshot.inbound.ports.get(&destination.port());
            let mut target = Target::exactly(destination);
            target.protocol = port.map_or(Protocol::Auto, |port| port.protocol);
            // Another sidecar has said what it is: nothing to find out.
            let carried = context.tls.as_ref().and_then(|tls| tls.carried);
            if let (Protocol::Auto, Some(Carried::Http1 | Carried::Http2)) =
                (target.protocol, carried)
            {
                target.protocol = Protocol::Http;
            }
            target
        }
    })
}

fn is_at(endpoint: &Endpoint, destination: SocketAddr) -> bool {
    endpoint.address == EndpointAddress::Ip(destination.ip())
        && endpoint.port.is_none_or(|port| port == destination.port())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::ServicePort;

    fn service() -> Arc<Service> {
        Arc::new(Service {
            name: "db".into(),
            hosts: vec![],
            addresses: vec!["10.1.0.0/16".parse().unwrap()],
            ports: vec![ServicePort {
                port: 5432,
                protocol: Protocol::Tcp,
            }],
            endpoints: vec![Endpoint {
                address: EndpointAddress::Ip("192.0.2.1".parse().unwrap()),
                port: Some(6432),
                weight: 1,
            }],
            connect_timeout: Duration::from_secs(1),
            tls: None,
        })
    }

    #[test]
    fn virtual_addresses_balance_and_endpoints_do_not() {
        let mut snapshot = Snapshot::builtin().with_services(vec![service()], vec![]);
        snapshot.outbound.ports.insert(5432, Protocol::Http);
        snapshot.outbound.ports.insert(80, Protocol::Http);
        let to = |text: &str| Target::of_destination(&snapshot, text.parse().unwrap());
        let virtual_address = to("10.1.2.3:5432");
        assert_eq!(virtual_address.pick, Pick::Endpoint { port: 5432 });
        assert_eq!(
            virtual_address.protocol,
            Protocol::Tcp,
            "the service's own word counts more"
        );
        let endpoint = to("192.0.2.1:6432");
        assert_eq!(
            endpoint.pick,
            Pick::Address("192.0.2.1:6432".parse().unwrap())
        );
        assert_eq!(endpoint.service.unwrap().name.as_ref(), "db");
        let unknown = to("198.51.100.1:80");
        assert!(unknown.service.is_none());
        assert_eq!(unknown.protocol, Protocol::Http);
    }
}
