//! What a handshake between two sidecars costs, both sides together, in memory: `cargo bench -p sidecar-userspace handshake`.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{path::Path, sync::Arc, time::Duration};

use divan::{Bencher, counter::ItemsCount};
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConfig, ServerConnection};
use sidecar_userspace::{
    identity::{Bundles, Material, ca::Ca},
    tls::{Carried, MinVersion, mesh::Mesh},
};

const CLIENT: &str = "spiffe://td/ns/default/sa/client";
const SERVER: &str = "spiffe://td/ns/default/sa/server";

fn main() {
    divan::main();
}

fn mesh(directory: &Path, id: &str) -> Mesh {
    let ca = Ca::load(directory).expect("the authority");
    let issued = ca.issue(&id.parse().expect("an id"), Duration::from_secs(3600));
    let svid = issued
        .and_then(|issued| Ok(issued.svid()?))
        .expect("a certificate");
    let mut bundles = Bundles::default();
    bundles
        .add(ca.trust_domain(), ca.roots().to_vec())
        .expect("the root");
    Mesh::new(Material { svid, bundles }, MinVersion::Tls13).expect("an identity")
}

/// What both sides are configured with.
fn sides() -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let directory = tempfile::tempdir().expect("a directory");
    let at = directory.path().join("ca");
    let domain = "td".parse().expect("a trust domain");
    Ca::init(&at, &domain, Duration::from_secs(3600)).expect("an authority");
    let identities = [SERVER.parse().expect("an id")];
    let client = mesh(&at, CLIENT).client(&identities, Carried::Bytes);
    (client.expect("a client"), mesh(&at, SERVER).server)
}

/// To the end, session tickets included; whether a session was taken up.
fn shake_hands(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> bool {
    let name = "server".try_into().expect("a name");
    let mut client = ClientConnection::new(client.clone(), name).expect("a client");
    let mut server = ServerConnection::new(server.clone()).expect("a server");
    let mut wire = Vec::new();
    while client.wants_write() || server.wants_write() {
        wire.clear();
        while client.wants_write() {
            client.write_tls(&mut wire).expect("memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            server.read_tls(&mut rest).expect("memory");
            server.process_new_packets().expect("a good client");
        }
        wire.clear();
        while server.wants_write() {
            server.write_tls(&mut wire).expect("memory");
        }
        let mut rest = wire.as_slice();
        while !rest.is_empty() {
            client.read_tls(&mut rest).expect("memory");
            client.process_new_packets().expect("a good server");
        }
    }
    assert!(!client.is_handshaking() && !server.is_handshaking());
    server.handshake_kind() == Some(HandshakeKind::Resumed)
}

#[divan::bench]
fn full(bencher: Bencher<'_, '_>) {
    let (client, server) = sides();
    let mut client = ClientConfig::clone(&client);
    client.resumption = rustls::client::Resumption::disabled();
    let client = Arc::new(client);
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| assert!(!shake_hands(&client, &server)));
}

#[divan::bench]
fn resumed(bencher: Bencher<'_, '_>) {
    let (client, server) = sides();
    shake_hands(&client, &server);
    bencher
        .counter(ItemsCount::new(1_usize))
        .bench_local(|| assert!(shake_hands(&client, &server)));
}
