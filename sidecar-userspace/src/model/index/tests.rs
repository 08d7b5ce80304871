//! The index against scans with the precedence that its methods promise, on small alphabets so that
//! collisions are the rule.

use std::{cmp::Reverse, time::Duration};

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::*;
use crate::model::{Backend, Endpoint, Protocol, RouteRule, ServicePort, Snapshot};

const PORTS: [u16; 3] = [80, 443, 8080];
const ADDRESSES: [&str; 6] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "11.0.0.1",
    "fd00::1",
    "::ffff:10.0.0.1",
];
const RANGES: [&str; 7] = [
    "10.0.0.1/32",
    "10.0.0.0/24",
    "10.0.0.0/8",
    "0.0.0.0/0",
    "fd00::1/128",
    "fd00::/8",
    "::/0",
];
const HOSTS: [&str; 7] = ["a", "b.c", "a.b.c", "x.a.b.c", ".b.c", "c", ""];
const SUFFIXES: [&str; 3] = [".c", ".b.c", ".a.b.c"];
const PATHS: [&str; 10] = [
    "/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "*", "", "//", "/é",
];

fn service(name: usize) -> impl Strategy<Value = Arc<Service>> {
    let endpoint =
        (select(&ADDRESSES[..5]), option::of(select(&PORTS[..]))).prop_map(|(address, port)| {
            Endpoint {
                address: EndpointAddress::Ip(address.parse().unwrap()),
                port,
                weight: 1,
            }
        });
    (
        vec(select(&HOSTS[..]), 0..3),
        vec(select(&RANGES[..]), 0..3),
        vec(select(&PORTS[..]), 0..3),
        vec(endpoint, 0..3),
    )
        .prop_map(move |(hosts, ranges, ports, endpoints)| {
            Arc::new(Service {
                name: name.to_string().into(),
                hosts: hosts.into_iter().map(str::to_owned).collect(),
                addresses: ranges.iter().map(|range| range.parse().unwrap()).collect(),
                ports: ports
                    .into_iter()
                    .map(|port| ServicePort {
                        port,
                        protocol: Protocol::Auto,
                    })
                    .collect(),
                endpoints,
                tls: None,
                connect_timeout: Duration::from_secs(1),
            })
        })
}

fn services() -> impl Strategy<Value = Vec<Arc<Service>>> {
    [service(0), service(1), service(2), service(3)].prop_map(Vec::from)
}

fn route() -> impl Strategy<Value = Route> {
    let host = prop_oneof![
        select(&HOSTS[..]).prop_map(|host| HostMatch::Exact(host.to_owned())),
        select(&SUFFIXES[..]).prop_map(|suffix| HostMatch::Suffix(suffix.to_owned())),
    ];
    let path = prop_oneof![
        select(&PATHS[..]).prop_map(|path| PathMatch::Exact(path.to_owned())),
        select(&PATHS[..]).prop_map(|path| PathMatch::Prefix(path.to_owned())),
    ];
    let rule = path.prop_map(|path| RouteRule {
        path,
        backends: Vec::<Backend>::new(),
        request_timeout: None,
    });
    (vec(host, 0..3), vec(rule, 0..4)).prop_map(|(hosts, rules)| Route {
        name: "".into(),
        hosts,
        rules,
    })
}

fn scan_service_at(services: &[Arc<Service>], destination: SocketAddr) -> Option<&Arc<Service>> {
    let longest = |service: &Arc<Service>| {
        let ranges = service.addresses.iter();
        let around = ranges.filter(|range| range.contains(destination.ip()));
        let listed = service.ports.iter().any(|p| p.port == destination.port());
        around.map(Cidr::prefix_bits).max().filter(|_| listed)
    };
    services
        .iter()
        .filter(|service| service.claims(destination))
        // `None`, an endpoint's own address, is less than any prefix length; the first of equals.
        .min_by_key(|service| Reverse(longest(service)))
}

fn scan_route(routes: &[Route], host: &str, path: &str) -> Option<RuleIndex> {
    let host_rank = |matcher: &HostMatch| match matcher {
        HostMatch::Exact(_) => usize::MAX,
        HostMatch::Suffix(suffix) => suffix.len(),
    };
    let path_rank = |matcher: &PathMatch| match matcher {
        PathMatch::Exact(_) => usize::MAX,
        PathMatch::Prefix(prefix) => PathMatch::segments(prefix).len(),
    };
    let mut found = Vec::new();
    for (position, route) in routes.iter().enumerate() {
        let matching = route.hosts.iter().filter(|m| m.matches(host));
        let every = route.hosts.is_empty().then_some(0);
        let Some(rank) = matching.map(host_rank).max().or(every) else {
            continue;
        };
        for (rule_position, rule) in route.rules.iter().enumerate() {
            if rule.path.matches(path) {
                found.push((rank, path_rank(&rule.path), (position, rule_position)));
            }
        }
    }
    let best = found
        .iter()
        .min_by_key(|(host, path, _)| Reverse((*host, *path)));
    best.map(|(_, _, position)| *position)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn services_are_found_as_a_scan_finds_them(services in services()) {
        let snapshot = Snapshot::builtin().with_services(services.clone(), Vec::new());
        for (address, port) in ADDRESSES.iter().flat_map(|a| PORTS.map(|port| (*a, port))) {
            let destination = SocketAddr::new(address.parse().unwrap(), port);
            prop_assert_eq!(
                snapshot.service_at(destination).map(|s| &s.name),
                scan_service_at(&services, destination).map(|s| &s.name)
            );
        }
        for host in HOSTS {
            let scan = services.iter().find(|s| s.hosts.iter().any(|name| name == host));
            prop_assert_eq!(snapshot.service_of_host(host), scan);
        }
        for service in &services {
            prop_assert_eq!(snapshot.service_named(&service.name), Some(service));
        }
        prop_assert_eq!(snapshot.service_named("none"), None);
    }

    #[test]
    fn rules_are_found_as_a_scan_finds_them(routes in vec(route(), 0..5)) {
        let index = Index::new(&[], &routes);
        for (host, path) in HOSTS.iter().flat_map(|host| PATHS.map(|path| (*host, path))) {
            prop_assert_eq!(index.rule(host, path), scan_route(&routes, host, path), "{} {}", host, path);
        }
    }
}

#[test]
fn a_route_in_the_middle_of_a_character_is_no_panic() {
    let rule = |prefix: &str| RouteRule {
        path: PathMatch::Prefix(prefix.to_owned()),
        backends: Vec::new(),
        request_timeout: None,
    };
    let route = Route {
        name: "".into(),
        hosts: vec![HostMatch::Suffix(".c".to_owned())],
        rules: vec![rule("/a")],
    };
    let index = Index::new(&[], &[route]);
    assert_eq!(index.rule("x.c", "/é"), None);
    assert_eq!(index.rule("xé", "/a"), None);
}
