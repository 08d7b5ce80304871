//! Look-ups that do not grow with the number of services and routes.
//!
//! Built once with the snapshot. Everything here answers exactly what a scan over the services and routes
//! with the precedence written at each method would (the tests compare the two).

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use super::{Cidr, EndpointAddress, HostMatch, PathMatch, Route, RouteRule, Service};

/// Position of a service in the file's order.
type ServiceIndex = usize;
/// Position of a route, and of a rule in it.
type RuleIndex = (usize, usize);

#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Index {
    by_name: HashMap<Arc<str>, ServiceIndex>,
    by_host: HashMap<String, ServiceIndex>,
    virtual_addresses: HashMap<(Cidr, u16), ServiceIndex>,
    /// Prefix lengths among `virtual_addresses`, whatever the family.
    prefix_bits: BTreeSet<u8>,
    endpoints: HashMap<(IpAddr, u16), ServiceIndex>,
    exact_hosts: HashMap<String, Paths>,
    host_suffixes: HashMap<String, Paths>,
    /// Lengths in bytes of the keys of `host_suffixes`.
    suffix_bytes: BTreeSet<usize>,
    every_host: Paths,
}

/// The rules of all routes for one host.
#[derive(Debug, Clone, Default, PartialEq)]
struct Paths {
    exact: HashMap<Arc<str>, RuleIndex>,
    /// Without the trailing slash, so that `/` is the empty string.
    prefixes: HashMap<Arc<str>, RuleIndex>,
    /// Lengths in bytes of the keys of `prefixes`.
    prefix_bytes: BTreeSet<usize>,
}

impl Index {
    pub(super) fn new(services: &[Arc<Service>], routes: &[Route]) -> Self {
        let mut index = Self::default();
        for (position, service) in services.iter().enumerate() {
            index.add_service(position, service);
        }
        for (position, route) in routes.iter().enumerate() {
            index.add_route(position, route);
        }
        index
    }

    // Everywhere below the first in the file wins: `or_insert` never replaces.

    fn add_service(&mut self, position: ServiceIndex, service: &Service) {
        self.by_name.entry(service.name.clone()).or_insert(position);
        for host in &service.hosts {
            self.by_host.entry(host.clone()).or_insert(position);
        }
        for cidr in &service.addresses {
            self.prefix_bits.insert(cidr.prefix_bits());
            for port in &service.ports {
                self.virtual_addresses
                    .entry((*cidr, port.port))
                    .or_insert(position);
            }
        }
        for endpoint in &service.endpoints {
            let EndpointAddress::Ip(address) = endpoint.address else {
                continue;
            };
            let mut claim = |port| {
                self.endpoints.entry((address, port)).or_insert(position);
            };
            match endpoint.port {
                Some(port) => claim(port),
                None => service.ports.iter().for_each(|port| claim(port.port)),
            }
        }
    }

    fn add_route(&mut self, position: usize, route: &Route) {
        let paths = Path::of_rules(route);
        if route.hosts.is_empty() {
            self.every_host.add(position, &paths);
        }
        for host in &route.hosts {
            match host {
                HostMatch::Exact(name) => self.exact_hosts.entry(name.clone()).or_default(),
                HostMatch::Suffix(suffix) => {
                    self.suffix_bytes.insert(suffix.len());
                    self.host_suffixes.entry(suffix.clone()).or_default()
                }
            }
            .add(position, &paths);
        }
    }

    pub(super) fn service_named(&self, name: &str) -> Option<ServiceIndex> {
        self.by_name.get(name).copied()
    }

    pub(super) fn service_of_host(&self, host: &str) -> Option<ServiceIndex> {
        self.by_host.get(host).copied()
    }

    /// Virtual addresses before endpoints, the longest prefix first.
    pub(super) fn service_at(&self, destination: SocketAddr) -> Option<ServiceIndex> {
        let (address, port) = (destination.ip().to_canonical(), destination.port());
        let claimed = |bits: &u8| {
            let range = Cidr::around(address, *bits)?;
            self.virtual_addresses.get(&(range, port)).copied()
        };
        let by_address = self.prefix_bits.iter().rev().find_map(claimed);
        by_address.or_else(|| self.endpoints.get(&(address, port)).copied())
    }

    /// The exact host before wildcards, longer wildcards before shorter, routes for every host last.
    pub(super) fn rule(&self, host: &str, path: &str) -> Option<RuleIndex> {
        let suffix = |bytes: &usize| {
            // At least one byte of a label stands before the suffix.
            let start = host.len().checked_sub(*bytes).filter(|start| *start > 0)?;
            self.host_suffixes.get(host.get(start..)?)?.rule(path)
        };
        let exact = self.exact_hosts.get(host);
        exact
            .and_then(|paths| paths.rule(path))
            .or_else(|| self.suffix_bytes.iter().rev().find_map(suffix))
            .or_else(|| self.every_host.rule(path))
    }
}

/// A rule's path as a key that its route's hosts share.
enum Path {
    Exact(Arc<str>),
    Prefix(Arc<str>),
}

impl Path {
    fn of_rules(route: &Route) -> Vec<Self> {
        let key = |rule: &RouteRule| match &rule.path {
            PathMatch::Exact(path) => Self::Exact(path.as_str().into()),
            PathMatch::Prefix(prefix) => Self::Prefix(PathMatch::segments(prefix).into()),
        };
        route.rules.iter().map(key).collect()
    }
}

impl Paths {
    fn add(&mut self, route_position: usize, paths: &[Path]) {
        for (position, path) in paths.iter().enumerate() {
            match path {
                Path::Exact(path) => self.exact.entry(path.clone()),
                Path::Prefix(prefix) => {
                    self.prefix_bytes.insert(prefix.len());
                    self.prefixes.entry(prefix.clone())
                }
            }
            .or_insert((route_position, position));
        }
    }

    /// Exact before prefix, longer prefixes before shorter. The cost is bounded by the lengths that the
    /// configuration uses, however many slashes the request has.
    fn rule(&self, path: &str) -> Option<RuleIndex> {
        let prefix = |bytes: &usize| {
            let whole_segments = matches!(path.as_bytes().get(*bytes), None | Some(b'/'));
            let prefix = path.get(..*bytes).filter(|_| whole_segments)?;
            self.prefixes.get(prefix).copied()
        };
        let exact = self.exact.get(path).copied();
        exact.or_else(|| self.prefix_bytes.iter().rev().find_map(prefix))
    }
}

#[cfg(test)]
mod tests;
