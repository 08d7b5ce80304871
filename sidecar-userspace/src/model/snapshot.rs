//! The snapshot: everything a connection needs to know, frozen.

use std::{
    net::{Ipv4Addr, SocketAddr},
    num::NonZeroUsize,
    sync::Arc,
    thread,
    time::Duration,
};

use crate::jwt::RequestAuthentication;

use super::{
    AccessLog, Authorization, FailRule, Identity, Inbound, Outbound, Redirect, Route, RouteRule,
    Service, Workload, index::Index,
};

/// One configuration, compiled. Never changed, only replaced.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot {
    /// Counts up with every accepted configuration, from 1.
    pub generation: u64,
    pub workload: Workload,
    /// Who the workload is; `None`: nobody, and no connection is encrypted. Read at start only.
    pub identity: Option<Identity>,
    pub outbound: Outbound,
    pub inbound: Inbound,
    pub redirect: Redirect,
    pub fail_rule: FailRule,
    pub listeners: Listeners,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub lifecycle: Lifecycle,
    pub access_log: AccessLog,
    pub authorization: Authorization,
    pub request_authentication: RequestAuthentication,
    /// Threads that serve connections. Read at start only.
    pub workers: NonZeroUsize,
    // Private, so that the index cannot disagree with what it indexes.
    services: Vec<Arc<Service>>,
    routes: Vec<Route>,
    index: Index,
}

/// Where the sidecar listens; port 0 takes a free one. Read at start only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listeners {
    /// The explicit proxy; loopback, both families.
    pub outbound: u16,
    /// Steered connections of the application; loopback, both families.
    pub steered: u16,
    /// Steered connections from elsewhere.
    pub inbound: u16,
    /// Admin, loopback only.
    pub admin: u16,
    /// `/stats/prometheus`.
    pub metrics: SocketAddr,
    /// `/healthz/ready`.
    pub health: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once; more are shed with a reset and a reason. `None`: as many as the memory suffices for.
    pub connections: Option<usize>,
    /// Bytes of a request's or response's head.
    pub header_bytes: usize,
    /// Header fields of a request or response.
    pub headers: usize,
    /// Bytes of one relay buffer at most.
    pub buffer_bytes: usize,
    /// Idle connections kept to one endpoint by one worker.
    pub idle_connections_per_endpoint: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// Establishing a connection to a destination without a service.
    pub connect: Duration,
    /// A TCP connection on which no byte moves in either direction is ended after this; zero: never.
    pub idle: Duration,
    /// From the first byte of a request to the end of its head.
    pub request_head: Duration,
    /// An HTTP connection without a request is closed after this.
    pub http_idle: Duration,
    /// Until the TLS handshake of a connection to the workload is complete.
    pub tls_handshake: Duration,
    /// Kernel keepalive: first probe after this.
    pub keepalive: Duration,
    /// A peer that has answered nothing for about so long, while data waits for it, is gone; zero: the kernel decides.
    pub user: Duration,
    /// How long SIGTERM waits for connections to end.
    pub drain: Duration,
}

/// From start to end beside an application that somebody else starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lifecycle {
    /// End when nothing but the sidecar is left in the pod.
    pub exit_when_alone: bool,
    /// How long nothing but the sidecar must have been there for that.
    pub alone_for: Duration,
    /// How long SIGTERM waits for the application to go before the drain.
    pub wait_for_application: Duration,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            exit_when_alone: true,
            alone_for: Duration::ZERO,
            wait_for_application: Duration::from_secs(20),
        }
    }
}

impl Snapshot {
    /// What holds without a configuration file.
    pub fn builtin() -> Self {
        Self {
            generation: 1,
            workload: Workload::default(),
            identity: None,
            outbound: Outbound::default(),
            inbound: Inbound::default(),
            redirect: Redirect::default(),
            fail_rule: FailRule::Closed,
            listeners: Listeners::default(),
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            lifecycle: Lifecycle::default(),
            access_log: AccessLog::default(),
            authorization: Authorization::default(),
            request_authentication: RequestAuthentication::default(),
            workers: default_workers(),
            services: Vec::new(),
            routes: Vec::new(),
            index: Index::default(),
        }
    }

    /// The same settings with these services and routes. A backend's service should be one of `services`;
    /// of two services or routes that claim the same thing the first one gets it.
    pub fn with_services(mut self, services: Vec<Arc<Service>>, routes: Vec<Route>) -> Self {
        self.index = Index::new(&services, &routes);
        self.services = services;
        self.routes = routes;
        self
    }

    /// In the file's order.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// In the file's order.
    pub fn routes(&self) -> &[Route] {
        &self.routes
    }

    /// The service that a connection to `destination` is for: the one with the longest range of virtual
    /// addresses around it, else the first one with such an endpoint.
    pub fn service_at(&self, destination: SocketAddr) -> Option<&Arc<Service>> {
        self.services.get(self.index.service_at(destination)?)
    }

    /// The service that `host` names (lower case, without port and trailing dot).
    pub fn service_of_host(&self, host: &str) -> Option<&Arc<Service>> {
        self.services.get(self.index.service_of_host(host)?)
    }

    /// The service called `name` in the configuration.
    pub fn service_named(&self, name: &str) -> Option<&Arc<Service>> {
        self.services.get(self.index.service_named(name)?)
    }

    /// The rule for a request, by the precedence of Gateway API's HTTPRoute: rules for exactly this host
    /// first, then those of the longest wildcard, then those for every host; among them an exact path, then the
    /// longest prefix; of equals the first in the file. A host whose rules all miss the path falls to the next.
    ///
    /// `host`: lower case, without port and trailing dot; `path`: without query.
    pub fn route(&self, host: &str, path: &str) -> Option<(&Route, &RouteRule)> {
        let (route, rule) = self.index.rule(host, path)?;
        let route = self.routes.get(route)?;
        Some((route, route.rules.get(rule)?))
    }
}

/// Two, or one where there is only one CPU: a sidecar should not take the machine that its application needs.
/// A sidecar leaves the CPUs to its application: half of them, and two at most. (Two CPUs, HTTP with mTLS at its maximum: 53
/// µs of CPU a request with one worker in each of the two sidecars, 72 with two.)
fn default_workers() -> NonZeroUsize {
    let cpus = thread::available_parallelism().map_or(1, NonZeroUsize::get);
    NonZeroUsize::new((cpus / 2).clamp(1, 2)).unwrap_or(NonZeroUsize::MIN)
}

impl Default for Listeners {
    fn default() -> Self {
        Self {
            outbound: 15001,
            steered: 15002,
            inbound: 15006,
            admin: 15000,
            metrics: SocketAddr::from((Ipv4Addr::LOCALHOST, 15020)),
            health: SocketAddr::from((Ipv4Addr::LOCALHOST, 15021)),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: None,
            header_bytes: 64 * 1024,
            headers: 100,
            buffer_bytes: 256 * 1024,
            idle_connections_per_endpoint: 64,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(60 * 60),
            request_head: Duration::from_secs(10),
            http_idle: Duration::from_secs(60),
            tls_handshake: Duration::from_secs(10),
            keepalive: Duration::from_secs(60),
            user: Duration::from_secs(30),
            drain: Duration::from_secs(5),
        }
    }
}
