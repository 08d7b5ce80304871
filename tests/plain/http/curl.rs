//! curl against nginx.

use std::{io::Write, net::SocketAddr, sync::Arc, time::Duration};

use sidecar_userspace::model::{
    Endpoint, EndpointAddress, Protocol, Service, ServicePort, Snapshot,
};

use super::programs::{curl, nginx};
use crate::proxy::world::{World, snapshot};

fn url(world: &World, path: &str) -> String {
    format!("http://127.0.0.1:{}{path}", world.handle.ports().outbound)
}

fn service(name: &str, endpoint: SocketAddr, protocol: Protocol) -> Arc<Service> {
    Arc::new(Service {
        name: name.into(),
        hosts: vec![format!("{name}.example")],
        addresses: vec![],
        ports: vec![ServicePort { port: 80, protocol }],
        endpoints: vec![Endpoint {
            address: EndpointAddress::Ip(endpoint.ip()),
            port: Some(endpoint.port()),
            weight: 1,
        }],
        connect_timeout: Duration::from_secs(20),
        tls: None,
    })
}

fn with_service(endpoint: SocketAddr, protocol: Protocol) -> Snapshot {
    snapshot().with_services(vec![service("web", endpoint, protocol)], vec![])
}

#[test]
fn one_connection_for_many_requests_and_one_line_for_each() {
    let server = nginx("");
    let world = World::new(server.address);
    let target = url(&world, "/1k");
    let format = "%{http_code} %{size_download} %{num_connects}\n";
    let mut arguments = vec!["--write-out", format];
    for _ in 0..5 {
        arguments.extend(["--output", "/dev/null", &target]);
    }
    assert_eq!(
        curl(&arguments),
        "200 1024 1\n".to_owned() + &"200 1024 0\n".repeat(4)
    );
    let lines = world.finish();
    let requests: Vec<_> = lines.iter().filter(|line| line["path"] == "/1k").collect();
    assert_eq!(requests.len(), 5, "{lines:#?}");
    for line in requests {
        assert_eq!(line["method"], "GET", "{line:#}");
        assert_eq!(line["status"], 200, "{line:#}");
        assert_eq!(line["reason"], "ok", "{line:#}");
        assert_eq!(line["upstream"], server.address.to_string(), "{line:#}");
    }
}

#[test]
fn heads_ranges_and_old_versions() {
    let server = nginx("");
    let world = World::new(server.address);
    let target = url(&world, "/1k");
    let head = curl(&["--head", &target]).to_lowercase();
    assert!(head.contains("content-length: 1024\r\n"), "{head}");
    assert_eq!(curl(&["--range", "0-9", &target]), "x".repeat(10));
    assert_eq!(curl(&["--http1.0", &target]).len(), 1024);
    let etag = head
        .lines()
        .find_map(|line| line.strip_prefix("etag: "))
        .unwrap();
    let condition = format!("If-None-Match: {etag}");
    let status = [
        "--write-out",
        "%{http_code}",
        "--header",
        &condition,
        &target,
    ];
    assert_eq!(curl(&status), "304");
    let missing = url(&world, "/none");
    assert_eq!(
        curl(&[
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            &missing
        ]),
        "404"
    );
}

#[test]
fn uploads_by_length_by_chunks_and_with_expect() {
    let server = nginx("");
    let world = World::new(server.address);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let body: Vec<u8> = (0..3_000_000_u32).map(|at| (at / 7) as u8).collect();
    file.write_all(&body).unwrap();
    let path = file.path().to_str().unwrap();
    for (name, options) in [
        ("length", &["--header", "Expect:"][..]),
        ("expect", &["--header", "Expect: 100-continue"]),
        ("chunks", &["--header", "Transfer-Encoding: chunked"]),
        ("old", &["--http1.0"]),
    ] {
        let target = url(&world, &format!("/up/{name}"));
        let common = [
            "--write-out",
            "%{http_code}",
            "--upload-file",
            path,
            &target,
        ];
        assert_eq!(curl(&[options, &common].concat()), "201", "{name}");
        assert!(server.uploaded(name) == body, "{name}: the body changed");
    }
}

#[test]
fn http2_with_prior_knowledge() {
    let server = nginx("http2");
    let world = World::new(server.address);
    let target = url(&world, "/1k");
    let options = [
        "--http2-prior-knowledge",
        "--dump-header",
        "-",
        "--output",
        "/dev/null",
    ];
    let head = curl(&[&options[..], &[&target]].concat());
    assert!(head.starts_with("HTTP/2 200"), "{head}");
    assert!(head.contains("x-protocol: HTTP/2.0"), "{head}");
    // One request for each connection: curl 7.88 cannot use one twice with prior knowledge. gRPC's tests do.
    let options = ["--http2-prior-knowledge", "--write-out", "%{http_version}"];
    for _ in 0..4 {
        let answer = curl(&[&options[..], &[&target]].concat());
        assert_eq!(answer, "x".repeat(1024) + "2");
    }
    let lines = world.finish();
    assert_eq!(lines.iter().filter(|line| line["status"] == 200).count(), 5);
}

#[test]
fn http1_clients_of_an_http2_service() {
    let server = nginx("http2");
    let world = World::explicit(with_service(server.address, Protocol::Http2));
    let head = curl(&["--http1.1", "--head", &url(&world, "/proxy/web/1k")]).to_lowercase();
    assert!(head.starts_with("http/1.1 200"), "{head}");
    assert!(head.contains("x-protocol: http/2.0"), "{head}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(&[7; 300_000]).unwrap();
    let path = file.path().to_str().unwrap();
    let target = url(&world, "/proxy/web/up/h2");
    assert_eq!(
        curl(&[
            "--write-out",
            "%{http_code}",
            "--upload-file",
            path,
            &target
        ]),
        "201"
    );
    assert!(server.uploaded("h2") == [7; 300_000]);
}

#[test]
fn the_explicit_proxy_in_its_three_forms() {
    let server = nginx("");
    let world = World::explicit(with_service(server.address, Protocol::Http));
    let proxy = url(&world, "");
    assert_eq!(curl(&[&url(&world, "/proxy/web/1k")]).len(), 1024);
    assert_eq!(
        curl(&["--proxy", &proxy, "http://web.example/1k"]).len(),
        1024
    );
    let direct = format!("http://{}/1k", server.address);
    assert_eq!(curl(&["--proxy", &proxy, &direct]).len(), 1024);
    assert_eq!(
        curl(&["--proxy", &proxy, "--proxytunnel", &direct]).len(),
        1024
    );
    let unknown = curl(&["--write-out", "%{http_code}", &url(&world, "/proxy/none/")]);
    assert!(
        unknown.contains("services: web") && unknown.ends_with("404"),
        "{unknown}"
    );
}
