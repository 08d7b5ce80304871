//! What the steps of a request cost that do no input or output: `cargo bench -p sidecar-userspace --bench steps`. Together they
//! should stay far below the system calls of the same request, of which each costs some hundred nanoseconds.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use divan::{Bencher, black_box};
use futures_util::FutureExt as _;
use sidecar_userspace::{
    config::watch::SnapshotHandle,
    connection::{
        Direction, Outcome, Shared, Worker,
        accept::Places,
        balance::candidates,
        origin::{KernelOrigin, OwnPorts},
        route::Target,
    },
    http::framing::{Auditor, Limits},
    lifecycle::{drain::Drain, memory::MemoryPlan},
    model::{
        self, AccessLogFormat, Backend, Endpoint, EndpointAddress, HostMatch, PathMatch, Protocol,
        Route, RouteRule, Service, ServicePort, Snapshot,
    },
    telemetry::{access_log::AccessLog, metrics::Metrics},
};

/// Services and routes of a large installation.
const SERVICES: u16 = 1000;
const ENDPOINTS: u8 = 10;

fn main() {
    divan::main();
}

/// As a browser or a client library sends it.
const REQUEST: &[u8] = b"GET /api/v1/orders/1234?page=2 HTTP/1.1\r\nHost: orders.example.org\r\nUser-Agent: client/1.0\r\n\
    Accept: application/json\r\nAccept-Encoding: gzip, br\r\nAuthorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789\r\n\
    X-Request-Id: 3a3f3dd0-94f8-4a3a-a5c0-4a1c6f6f2a11\r\nTraceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\n\r\n";

/// Parse: the audit of one request's head, before hyper reads it.
#[divan::bench]
fn parse(bencher: Bencher) {
    let limits = Limits {
        head_bytes: 64 * 1024,
        fields: 100,
    };
    let mut auditor = Auditor::new(limits);
    bencher.bench_local(|| {
        let good = auditor.audit(black_box(REQUEST)).unwrap();
        assert_eq!(good, REQUEST.len());
    });
}

/// Route, of a connection: the service of an original destination.
#[divan::bench]
fn route_by_address(bencher: Bencher) {
    let snapshot = snapshot();
    let destination: SocketAddr = "10.1.200.7:8080".parse().unwrap();
    bencher.bench_local(|| {
        let target = Target::of_destination(&snapshot, black_box(destination));
        assert!(target.service.is_some());
        target
    });
}

/// Route, of a request: the rule by host and path.
#[divan::bench]
fn route_by_host_and_path(bencher: Bencher) {
    let snapshot = snapshot();
    bencher.bench_local(|| {
        let found = snapshot.route(
            black_box("s700.example.org"),
            black_box("/api/v1/orders/1234"),
        );
        assert!(found.is_some());
    });
}

/// Balance: the best of ten endpoints, and its load counted.
#[divan::bench]
fn balance(bencher: Bencher) {
    let worker = worker();
    let snapshot = snapshot();
    let target = Target::of_destination(&snapshot, "10.1.200.7:8080".parse().unwrap());
    bencher.bench_local(|| {
        let mut found = candidates(&worker, &target);
        // Endpoints with addresses need no name to be resolved: there is nothing to wait for.
        let chosen = found.next().now_or_never().unwrap();
        assert!(chosen.unwrap().is_some());
    });
}

/// Record: a request's counters and histogram, without an access log.
#[divan::bench]
fn record_request(bencher: Bencher) {
    let worker = worker();
    let service: Arc<str> = "orders".into();
    let peer: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    bencher.bench_local(|| {
        let mut record = worker.recorder.request(Direction::Outbound, peer);
        record.service = Some(service.clone());
        record.status = 200;
        record.end(Outcome::Success);
    });
}

/// Record: a connection's counters, without an access log.
#[divan::bench]
fn record_connection(bencher: Bencher) {
    let worker = worker();
    let service: Arc<str> = "orders".into();
    let peer: SocketAddr = "192.0.2.1:4000".parse().unwrap();
    bencher.bench_local(|| {
        let mut record = worker.recorder.connection(Direction::Outbound, peer);
        record.service = Some(service.clone());
        record.end(Outcome::Success);
    });
}

fn snapshot() -> Snapshot {
    let service = |number: u16| {
        let [high, low] = number.to_be_bytes();
        let endpoint = |last: u8| Endpoint {
            address: EndpointAddress::Ip([10, 128 + high, low, last].into()),
            port: None,
            weight: 1,
        };
        Arc::new(Service {
            name: format!("s{number}").into(),
            hosts: vec![],
            addresses: vec![format!("10.{}.{low}.0/24", 1 + high).parse().unwrap()],
            ports: vec![ServicePort {
                port: 8080,
                protocol: Protocol::Http,
            }],
            endpoints: (1..=ENDPOINTS).map(endpoint).collect(),
            connect_timeout: Duration::from_secs(1),
            tls: None,
        })
    };
    let services: Vec<_> = (0..SERVICES).map(service).collect();
    let routes = services.iter().map(|service| Route {
        name: service.name.clone(),
        hosts: vec![HostMatch::Exact(format!("{}.example.org", service.name))],
        // The most specific first, as the configuration sorts them.
        rules: ["/api/v1", "/api", "/"]
            .map(|prefix| RouteRule {
                path: PathMatch::Prefix(prefix.to_owned()),
                backends: vec![Backend {
                    service: service.clone(),
                    port: None,
                    weight: 1,
                }],
                request_timeout: None,
            })
            .into(),
    });
    let routes = routes.collect();
    Snapshot::builtin().with_services(services, routes)
}

fn worker() -> Worker {
    let metrics = Arc::new(Metrics::new().unwrap());
    let silent = model::AccessLog {
        format: AccessLogFormat::None,
        path: "/dev/null".into(),
    };
    let (log, _writer) = AccessLog::start(&silent, &metrics).unwrap();
    let own_ports = OwnPorts {
        outbound: 0,
        steered: 0,
        inbound: 0,
    };
    let shared = Shared {
        metrics,
        log,
        drain: Drain::default().signal(),
        snapshot: SnapshotHandle::new(Snapshot::builtin(), None),
        origin: Arc::new(KernelOrigin { own_ports }),
        own_ports,
        places: Places::new(1024, 1024),
        memory: MemoryPlan::of(None),
        mesh: None,
    };
    Worker::new(0, shared)
}
