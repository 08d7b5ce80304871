//! TLS to servers outside the mesh: openssl's server, its name, its roots, and a client certificate.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::Arc,
};

use rcgen::{CertificateParams, DnType, KeyPair, SanType};
use sidecar_userspace::model::{Origin, Protocol, ServiceTls};

use super::{
    authority::Authority,
    pair::service,
    programs::{Papers, workload},
};
use crate::proxy::world::{World, expect_reset, snapshot, wait_until};

/// `openssl s_server -www` whose certificate names `server.example`; asks for a client's certificate.
struct Server {
    child: Child,
    address: SocketAddr,
    papers: Papers,
}

impl Server {
    fn start() -> Self {
        let authority = Authority::new();
        let papers = Papers::of(&authority.sign(&workload()));
        std::fs::write(papers.path("root.crt"), &authority.root_pem).unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "server");
        params.subject_alt_names = vec![SanType::DnsName("server.example".try_into().unwrap())];
        let certificate = authority.sign_params(params, &key);
        std::fs::write(papers.path("server.key"), key.serialize_pem()).unwrap();
        std::fs::write(papers.path("server.crt"), certificate).unwrap();
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let child = Command::new("openssl")
            .args(["s_server", "-www", "-Verify", "1", "-verify_return_error"])
            .args(["-accept", &address.to_string()])
            .arg("-cert")
            .arg(papers.path("server.crt"))
            .arg("-key")
            .arg(papers.path("server.key"))
            .arg("-CAfile")
            .arg(papers.path("root.crt"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("openssl is installed");
        wait_until("s_server listens", || {
            std::net::TcpStream::connect(address).is_ok()
        });
        Self {
            child,
            address,
            papers,
        }
    }

    /// A sidecar whose service is this server, encrypted like `origin`.
    fn behind(&self, origin: Origin) -> World {
        let mut service = service(self.address, "spiffe://unused/a");
        service.tls = Some(Arc::new(ServiceTls::Origin(origin)));
        service.ports[0].protocol = Protocol::Http;
        let snapshot = snapshot().with_services(vec![Arc::new(service)], vec![]);
        World::with(snapshot, self.address)
    }

    fn roots(&self) -> Option<PathBuf> {
        Some(self.papers.path("root.crt"))
    }

    fn client(&self) -> Option<(PathBuf, PathBuf)> {
        Some((
            self.papers.path("client.crt"),
            self.papers.path("client.key"),
        ))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The application speaks plain HTTP; what it is answered.
fn get(world: &World) -> String {
    let mut client = world.connect();
    let request = b"GET / HTTP/1.1\r\nHost: server\r\nConnection: close\r\n\r\n";
    client.write_all(request).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn a_server_that_is_what_it_says_is_reached_with_our_certificate() {
    let server = Server::start();
    let sni = Some("server.example".to_owned());
    let (roots, client) = (server.roots(), server.client());
    let world = server.behind(Origin { sni, roots, client });
    let answer = get(&world);
    assert!(
        answer.starts_with("HTTP/1.0 200") || answer.starts_with("HTTP/1.1 200"),
        "{answer}"
    );
    assert!(
        answer.contains("Client certificate") && answer.contains("TLSv1.3"),
        "{answer}"
    );
}

#[test]
fn another_name_other_roots_and_missing_files_are_refused() {
    let server = Server::start();
    let named = |sni: &str| Some(sni.to_owned());
    for (origin, reason) in [
        (
            Origin {
                sni: named("other.example"),
                roots: server.roots(),
                client: server.client(),
            },
            "tls_wrong_identity",
        ),
        // The public roots.
        (
            Origin {
                sni: named("server.example"),
                roots: None,
                client: server.client(),
            },
            "tls_unknown_issuer",
        ),
        (
            Origin {
                sni: named("server.example"),
                roots: Some("/nonexistent/roots.crt".into()),
                client: None,
            },
            "tls_files",
        ),
    ] {
        let world = server.behind(origin);
        let answer = get(&world);
        assert!(answer.starts_with("HTTP/1.1 503"), "{reason}: {answer}");
        let line = world.finish_with_one();
        assert_eq!(line["reason"], reason, "{line}");
    }
}

#[test]
fn opaque_bytes_to_a_server_that_is_not_believed_are_reset() {
    let server = Server::start();
    let mut service = service(server.address, "spiffe://unused/a");
    service.tls = Some(Arc::new(ServiceTls::Origin(Origin::default())));
    let snapshot = snapshot().with_services(vec![Arc::new(service)], vec![]);
    let world = World::with(snapshot, server.address);
    let mut client = world.connect();
    // The sidecar may have refused already.
    let _ = client.write_all(b"\x01secret");
    expect_reset(&mut client);
    assert_eq!(world.finish_with_one()["reason"], "tls_unknown_issuer");
}
