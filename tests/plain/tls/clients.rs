//! Each mode of an inbound port, with openssl and curl as clients.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use sidecar_userspace::{model::Mtls, tls::MinVersion};

use super::{
    authority::Authority,
    pair::SERVER,
    programs::{Papers, curl, s_client, text, workload},
};
use crate::proxy::world::{World, ping, server, snapshot, wait_until};

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";

/// Answers every request with `hi`.
fn web() -> SocketAddr {
    server(|mut socket| {
        let mut request = [0; 4096];
        while let Ok(1..) = socket.read(&mut request) {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
            if socket.write_all(answer).is_err() {
                return;
            }
        }
    })
}

fn sidecar(authority: &Authority, mode: Mtls, application: SocketAddr) -> World {
    let mut snapshot = snapshot();
    snapshot.inbound.mtls = mode;
    World::secured(snapshot, application, authority.mesh(SERVER))
}

fn counted(world: &World, security: &str) -> f64 {
    world.metric("sidecar_inbound_security_total", &[security])
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

#[test]
fn a_strict_port_serves_clients_with_a_certificate_only() {
    let authority = Authority::new();
    let papers = Papers::of(&authority.sign(&workload()));
    let world = sidecar(&authority, Mtls::Strict, web());
    let port = world.handle.ports().inbound;
    let answered = s_client(port, &papers.for_openssl(), GET);
    assert!(
        text(&answered.stdout).ends_with("\r\n\r\nhi"),
        "{answered:?}"
    );
    for version in ["--http1.1", "--http2"] {
        let options = [papers.for_curl(), strings(&[version])].concat();
        let answered = curl(&options, &format!("https://127.0.0.1:{port}/"));
        assert_eq!(text(&answered.stdout), "hi", "{answered:?}");
    }
    let refused = curl(&[], &format!("http://127.0.0.1:{port}/"));
    assert!(!refused.status.success(), "{refused:?}");
    assert_eq!(
        (counted(&world, "mutual_tls"), counted(&world, "none")),
        (3.0, 0.0)
    );
    let lines = world.finish();
    let served = lines.iter().filter(|line| line["status"] == 200).count();
    assert_eq!((lines.len(), served), (4, 3), "{lines:#?}");
    assert!(
        lines
            .iter()
            .any(|line| line["reason"] == "tls_plaintext_refused")
    );
}

#[test]
fn a_permissive_port_tells_its_clients_apart_and_counts_both() {
    let authority = Authority::new();
    let papers = Papers::of(&authority.sign(&workload()));
    let world = sidecar(&authority, Mtls::Permissive, web());
    let port = world.handle.ports().inbound;
    let plain = curl(&[], &format!("http://127.0.0.1:{port}/"));
    assert_eq!(text(&plain.stdout), "hi", "{plain:?}");
    for alpn in ["sidecar", "sidecar-http/1.1"] {
        let options = [papers.for_openssl(), strings(&["-alpn", alpn])].concat();
        let answered = s_client(port, &options, GET);
        assert!(
            text(&answered.stdout).ends_with("\r\n\r\nhi"),
            "{answered:?}"
        );
    }
    assert_eq!(
        (counted(&world, "mutual_tls"), counted(&world, "none")),
        (2.0, 1.0)
    );
    let lines = world.finish();
    let identified = |line: &&serde_json::Value| line.get("client_identity").is_some();
    assert_eq!(lines.iter().filter(identified).count(), 2, "{lines:#?}");
}

#[test]
fn a_disabled_port_is_plain_to_curl() {
    let world = sidecar(&Authority::new(), Mtls::Disable, web());
    let port = world.handle.ports().inbound;
    let plain = curl(&[], &format!("http://127.0.0.1:{port}/"));
    assert_eq!(text(&plain.stdout), "hi", "{plain:?}");
    // The application speaks no TLS, and nobody does it for it.
    let encrypted = curl(&[], &format!("https://127.0.0.1:{port}/"));
    assert!(!encrypted.status.success(), "{encrypted:?}");
    assert_eq!(counted(&world, "mutual_tls"), 0.0);
}

/// `openssl s_server`, ended with the test.
struct Application(Child, SocketAddr);

impl Application {
    fn with_its_own_tls(papers: &Papers) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let mut command = Command::new("openssl");
        command
            .args(["s_server", "-www", "-accept", &address.to_string()])
            .args(papers.for_openssl())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().expect("openssl is installed");
        wait_until("s_server listens", || TcpStream::connect(address).is_ok());
        Self(child, address)
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_applications_own_tls_passes_permissive_and_disabled_ports_untouched() {
    let (authority, other) = (Authority::new(), Authority::new());
    let papers = Papers::of(&other.sign(&workload()));
    std::fs::write(papers.path("root.crt"), &other.root_pem).unwrap();
    let application = Application::with_its_own_tls(&papers);
    let root = papers.path("root.crt").display().to_string();
    for mode in [Mtls::Permissive, Mtls::Disable] {
        let world = sidecar(&authority, mode, application.1);
        let options = strings(&["-CAfile", &root, "-verify_return_error"]);
        let answered = s_client(world.handle.ports().inbound, &options, GET);
        assert!(
            text(&answered.stdout).contains("s_server"),
            "{mode:?} {answered:?}"
        );
        let line = world.finish_with_one();
        assert_eq!(
            (&line["reason"], &line["protocol"]),
            (&"ok".into(), &"tcp".into())
        );
    }
}

#[test]
fn a_server_that_speaks_first_is_heard_on_a_permissive_port() {
    let application = server(|mut socket| {
        socket.write_all(b"220 ready\r\n").unwrap();
        let mut writer = socket.try_clone().unwrap();
        let _ = std::io::copy(&mut socket, &mut writer);
    });
    let world = sidecar(&Authority::new(), Mtls::Permissive, application);
    let start = Instant::now();
    let mut client = world.connect_inbound();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    assert!(
        start.elapsed() < Duration::from_secs(1),
        "{:?}",
        start.elapsed()
    );
    ping(&mut client, b"HELO there\r\n");
    // Whoever speaks at once is not kept waiting.
    let start = Instant::now();
    ping(
        &mut {
            let mut client = world.connect_inbound();
            client.write_all(b"x").unwrap();
            client.read_exact(&mut greeting).unwrap();
            client.read_exact(&mut [0; 1]).unwrap();
            client
        },
        b"HELO there\r\n",
    );
    assert!(
        start.elapsed() < Duration::from_millis(280),
        "{:?}",
        start.elapsed()
    );
    drop(client);
    assert_eq!(counted(&world, "none"), 2.0);
}

#[test]
fn tls_12_is_spoken_where_it_is_configured() {
    let authority = Authority::new();
    let papers = Papers::of(&authority.sign(&workload()));
    let options = [papers.for_openssl(), strings(&["-tls1_2"])].concat();
    let mut snapshot = snapshot();
    snapshot.inbound.mtls = Mtls::Strict;
    let mesh = authority.mesh_from(SERVER, MinVersion::Tls12);
    let world = World::secured(snapshot, web(), mesh);
    let answered = s_client(world.handle.ports().inbound, &options, GET);
    assert!(
        text(&answered.stdout).ends_with("\r\n\r\nhi"),
        "{answered:?}"
    );
    assert_eq!(world.finish_with_one()["client_tls"], "TLSv1.2");
    let world = sidecar(&authority, Mtls::Strict, web());
    let refused = s_client(world.handle.ports().inbound, &options, GET);
    assert!(
        text(&refused.stderr).contains("alert number 70"),
        "{refused:?}"
    );
    assert_eq!(world.finish_with_one()["reason"], "tls_version");
}

#[test]
fn the_admin_endpoint_shows_certificates_and_no_key() {
    let world = sidecar(&Authority::new(), Mtls::Strict, web());
    let ask = |path: &str| {
        let url = format!("http://{}{path}", world.handle.ports().admin);
        text(&curl(&[], &url).stdout)
    };
    let said = ask("/certs");
    let certs: serde_json::Value = serde_json::from_str(&said).unwrap();
    let own = &certs["certificates"][0];
    assert_eq!(own["trust_domain"], "td");
    let leaf = &own["cert_chain"][0];
    assert_eq!(leaf["subject_alt_names"][0]["uri"], SERVER);
    assert_eq!(leaf["days_until_expiration"], "0");
    assert_eq!(own["ca_cert"].as_array().map(Vec::len), Some(1));
    for path in ["/certs", "/config_dump", "/stats"] {
        assert!(!ask(path).contains("PRIVATE"), "{path}");
    }
    let gauge = "sidecar_certificate_expiry_timestamp_seconds{kind=\"leaf\",trust_domain=\"td\"} ";
    let stats = ask("/stats");
    let line = stats.lines().find_map(|line| line.strip_prefix(gauge));
    let expiry: f64 = line.expect("the leaf's expiry").parse().unwrap();
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs_f64();
    assert!((3000.0..3700.0).contains(&(expiry - now)), "{expiry}");
}
