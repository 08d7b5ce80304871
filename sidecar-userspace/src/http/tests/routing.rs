//! Where requests go: hosts, routes, the explicit proxy, CONNECT, inbound.

use super::*;
use crate::model::{Backend, HostMatch, PathMatch, Route, RouteRule, UnknownDestination};

/// A server that answers with its name.
fn named(name: &'static str) -> SocketAddr {
    upstream(move |_, mut client| {
        while let Some(head) = client.try_until_head() {
            let body = format!("{name} {head}");
            let length = body.len();
            client.send(format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}"
            ));
        }
    })
}

fn route(service: &Arc<Service>, host: &str, path: &str) -> Route {
    Route {
        name: "r".into(),
        hosts: vec![HostMatch::Exact(host.into())],
        rules: vec![RouteRule {
            path: PathMatch::Prefix(path.into()),
            backends: vec![Backend {
                service: service.clone(),
                port: None,
                weight: 1,
            }],
            request_timeout: Some(Duration::from_secs(2)),
        }],
    }
}

fn snapshot() -> Snapshot {
    let (a, b) = (named("a"), named("b"));
    let (a, b) = (
        service("a", a, Protocol::Http),
        service("b", b, Protocol::Http),
    );
    let routes = vec![route(&b, "a.example", "/to-b")];
    Snapshot::builtin().with_services(vec![a, b], routes)
}

fn get(proxy: &Proxy, target: &str, host: &str) -> String {
    proxy.exchange(&format!(
        "GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    ))
}

#[test]
fn hosts_and_routes_decide_before_the_address() {
    let proxy = Proxy::start(snapshot(), Direction::Outbound, Some(named("asked")));
    assert!(get(&proxy, "/", "A.Example.:80").contains("\r\n\r\na GET / "));
    assert!(get(&proxy, "/to-b/x?y", "a.example").contains("\r\n\r\nb GET /to-b/x?y "));
    assert!(get(&proxy, "/to-bc", "a.example").contains("\r\n\r\na GET "));
    assert!(get(&proxy, "/", "other.example").contains("\r\n\r\nasked GET "));
}

#[test]
fn inbound_always_goes_to_the_workload() {
    let proxy = Proxy::start(snapshot(), Direction::Inbound, Some(named("workload")));
    assert!(get(&proxy, "/to-b", "a.example").contains("\r\n\r\nworkload GET /to-b "));
}

#[test]
fn the_explicit_proxy() {
    let proxy = Proxy::start(snapshot(), Direction::Outbound, None);
    let answer = get(&proxy, "/proxy/b/x/y?z=1", "localhost:15001");
    assert!(
        answer.contains("\r\n\r\nb GET /x/y?z=1 HTTP/1.1\r\n"),
        "{answer}"
    );
    assert!(answer.contains("host: b.example\r\n"), "{answer}");
    assert!(get(&proxy, "/proxy/b", "localhost").contains("\r\n\r\nb GET / "));
    let unknown = get(&proxy, "/proxy/none/", "localhost");
    assert!(unknown.starts_with("HTTP/1.1 404"), "{unknown}");
    assert!(unknown.contains("services: a, b"), "{unknown}");
    assert!(get(&proxy, "/", "localhost").starts_with("HTTP/1.1 404"));
    // Absolute-form: a service by its host, and any address.
    let absolute = get(&proxy, "http://a.example/x", "ignored");
    assert!(absolute.contains("\r\n\r\na GET /x "), "{absolute}");
    assert!(absolute.contains("host: a.example\r\n"), "{absolute}");
    let other = named("other");
    assert!(get(&proxy, &format!("http://{other}/x"), "ignored").contains("\r\n\r\nother GET /x "));
    let port = other.port();
    let by_name = get(&proxy, &format!("http://localhost:{port}/"), "ignored");
    assert!(by_name.contains("\r\n\r\nother GET / "), "{by_name}");
    assert!(get(&proxy, "https://a.example/", "a").starts_with("HTTP/1.1 400"));
}

#[test]
fn unknown_destinations_can_be_refused() {
    let mut snapshot = snapshot();
    snapshot.outbound.unknown = UnknownDestination::RegistryOnly;
    let proxy = Proxy::start(snapshot, Direction::Outbound, None);
    let other = named("other");
    let answer = get(&proxy, &format!("http://{other}/x"), "ignored");
    assert!(answer.starts_with("HTTP/1.1 403"), "{answer}");
    assert!(get(&proxy, "http://a.example/", "a").contains("\r\n\r\na GET "));
    proxy.await_recorded("destination_refused", 1);
}

#[test]
fn connect_tunnels() {
    let address = upstream(|_, mut client| {
        client.send("server first\n");
        let all = client.rest();
        client.send(format!("got {all:?}"));
    });
    let proxy = Proxy::start(snapshot(), Direction::Outbound, None);
    let mut client = proxy.connect();
    client.send(format!(
        "CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n"
    ));
    let head = client.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(!head.contains("content-length"), "{head}");
    client.until("server first\n");
    client.send("\0not http\n");
    client.shut();
    assert_eq!(client.rest(), "got \"\\0not http\\n\"");
    proxy.await_recorded("ok", 1);
    let gone = nobody();
    let refused = proxy.exchange(&format!(
        "CONNECT {gone} HTTP/1.1\r\nHost: {gone}\r\nConnection: close\r\n\r\n"
    ));
    assert!(refused.starts_with("HTTP/1.1 503"), "{refused}");
}

#[test]
fn requests_to_another_proxy_keep_their_form() {
    let proxy = Proxy::to(named("squid"));
    let answer = get(&proxy, "http://far.example/x", "far.example");
    assert!(
        answer.contains("squid GET http://far.example/x HTTP/1.1\r\n"),
        "{answer}"
    );
}

#[test]
fn a_request_has_the_routes_time() {
    let slow = upstream(|_, mut client| {
        let head = client.until("\r\n\r\n");
        if head.starts_with("GET /to-b/body") {
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
        }
        client.rest();
    });
    let b = service("b", slow, Protocol::Http);
    let routes = vec![route(&b, "a.example", "/to-b")];
    let snapshot = Snapshot::builtin().with_services(vec![b], routes);
    let proxy = Proxy::start(snapshot, Direction::Outbound, Some(nobody()));
    let answer = get(&proxy, "/to-b/head", "a.example");
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    let mut client = proxy.connect();
    client.send("GET /to-b/body HTTP/1.1\r\nHost: a.example\r\n\r\n");
    client.until("abc");
    assert!(client.try_rest().is_err(), "an orderly end of half a body");
    proxy.await_recorded("request_timeout", 2);
}
