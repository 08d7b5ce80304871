//! Tunnels and peers that are not what they should be: strangers to tunnels, addresses of somebody else's, and clients that
//! ask for more than the workload.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use rustls::{ServerConnection, StreamOwned};
use sidecar_userspace::{model::Mtls, tls::Carried};
use tokio_rustls::TlsConnector;

use super::{
    authority::Authority,
    pair::{CLIENT, Pair, SERVER, opaque},
};
use crate::proxy::world::{PATIENCE, World, echo, ping, server, snapshot, wait_until};

fn client_of(authority: &Authority, at: SocketAddr) -> World {
    let mut outbound = snapshot();
    outbound.workers = NonZeroUsize::MIN;
    let outbound = outbound.with_services(vec![Arc::new(opaque(at))], vec![]);
    World::secured(outbound, at, authority.mesh(CLIENT))
}

fn handshakes(world: &World) -> f64 {
    world.metric("sidecar_tls_handshakes_total", &["\"ok\""])
}

#[test]
fn a_sidecar_that_knows_no_tunnels_gets_connections() {
    let authority = Authority::new();
    let mesh = authority.mesh(SERVER).load().unwrap();
    let mut config = (*mesh.server).clone();
    config.alpn_protocols = [Carried::Http2, Carried::Http1, Carried::Bytes]
        .map(|carried| carried.alpn().to_vec())
        .into();
    let config = Arc::new(config);
    let older = server(move |socket| {
        let tls = ServerConnection::new(config.clone()).unwrap();
        let mut stream = StreamOwned::new(tls, socket);
        let mut said = [0; 64];
        while let Ok(read @ 1..) = stream.read(&mut said) {
            stream.write_all(&said[..read]).unwrap();
        }
    });
    let world = client_of(&authority, older);
    let mut clients: Vec<_> = (0..3).map(|_| world.connect()).collect();
    for client in &mut clients {
        ping(client, b"\x01four");
        ping(client, b"\x01five");
    }
    assert_eq!(handshakes(&world), 3.0);
}

/// Passes connections on to `to`, as a balancer of connections on the way does.
fn forwarder(to: SocketAddr) -> SocketAddr {
    server(move |mut from| {
        let mut there = TcpStream::connect(to).unwrap();
        let (mut from_too, mut there_too) = (from.try_clone().unwrap(), there.try_clone().unwrap());
        let back = thread::spawn(move || io::copy(&mut there_too, &mut from_too));
        let _ = io::copy(&mut from, &mut there);
        let _ = there.shutdown(std::net::Shutdown::Write);
        let _ = back.join();
    })
}

#[test]
fn where_something_spreads_connections_each_is_made() {
    let authority = Authority::new();
    let mut inbound = snapshot();
    inbound.inbound.mtls = Mtls::Strict;
    let behind = World::secured(inbound, echo(), authority.mesh(SERVER));
    let inbound = SocketAddr::from(([127, 0, 0, 1], behind.handle.ports().inbound));
    let world = client_of(&authority, forwarder(inbound));
    for _ in 0..3 {
        ping(&mut world.connect(), b"\x01four");
    }
    // One for the question.
    assert_eq!(handshakes(&world), 4.0);
    wait_until("all are recorded", || behind.recorded() == 4);
    let lines = behind.finish();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(
        lines.iter().all(|line| line["reason"] == "ok"),
        "{lines:#?}"
    );
}

#[test]
fn tunnels_can_be_switched_off() {
    let authority = Authority::new();
    let pair = Pair::opaque(&authority, echo(), |_| ());
    let at = SocketAddr::from(([127, 0, 0, 1], pair.server.handle.ports().inbound));
    let mut service = opaque(at);
    service.tls = Some(Arc::new(sidecar_userspace::model::ServiceTls::Mesh {
        identities: vec![SERVER.parse().unwrap()],
        tunnel: false,
    }));
    let outbound = snapshot().with_services(vec![Arc::new(service)], vec![]);
    let world = World::secured(outbound, at, authority.mesh(CLIENT));
    for _ in 0..3 {
        ping(&mut world.connect(), b"\x01four");
    }
    assert_eq!(handshakes(&world), 3.0);
}

/// A tunnel as a client that is up to something makes it.
async fn tunnel(authority: &Authority, to: SocketAddr) -> SendRequest<Bytes> {
    let mesh = authority.mesh(CLIENT).load().unwrap();
    let config = mesh
        .client(&[SERVER.parse().unwrap()], Carried::Tunnel)
        .unwrap();
    let tcp = tokio::net::TcpStream::connect(to).await.unwrap();
    let name = rustls::pki_types::ServerName::from(to.ip());
    let tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    sender.ready().await.unwrap()
}

fn asks(method: Method, uri: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

#[tokio::test]
async fn a_tunnel_leads_to_the_workload_and_nowhere_else() {
    let authority = Authority::new();
    let mut inbound = snapshot();
    inbound.inbound.mtls = Mtls::Strict;
    let world = World::secured(inbound, echo(), authority.mesh(SERVER));
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let other = server(move |_| {
        count.fetch_add(1, Ordering::SeqCst);
    });
    let at = SocketAddr::from(([127, 0, 0, 1], world.handle.ports().inbound));
    let mut sender = tunnel(&authority, at).await;
    let status = async |sender: &mut SendRequest<Bytes>, request| {
        let (response, _send) = sender.send_request(request, false).unwrap();
        response.await.map(|response| response.status())
    };
    let elsewhere = [
        asks(Method::CONNECT, &other.to_string()),
        asks(Method::CONNECT, "localhost:22"),
        asks(
            Method::CONNECT,
            &format!("127.0.0.1:{}", world.handle.ports().admin.port()),
        ),
        asks(Method::CONNECT, &format!("127.0.0.2:{}", at.port())),
        asks(Method::GET, &format!("http://{other}/")),
        asks(Method::GET, &format!("http://{at}/")),
    ];
    let refused = elsewhere.len();
    for request in elsewhere {
        let answer = status(&mut sender, request).await.unwrap();
        assert_eq!(answer, StatusCode::MISDIRECTED_REQUEST);
    }
    let probe = asks(Method::OPTIONS, &format!("https://{other}/"));
    let answer = status(&mut sender, probe).await.unwrap();
    assert_eq!(answer, StatusCode::MISDIRECTED_REQUEST);
    // It is none the worse for that, and leads where it leads.
    let (response, mut send) = sender
        .send_request(asks(Method::CONNECT, &at.to_string()), false)
        .unwrap();
    send.send_data(Bytes::from_static(b"\x01four"), true)
        .unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let back = response.into_body().data().await.unwrap().unwrap();
    assert_eq!(back, b"\x01four"[..]);
    wait_until("all are recorded", || world.recorded() == refused + 1);
    let lines = world.finish();
    let refusals = lines
        .iter()
        .filter(|line| line["reason"] == "tunnel_refused");
    assert_eq!(refusals.clone().count(), refused, "{lines:#?}");
    assert!(
        refusals
            .clone()
            .all(|line| line["client_identity"] == CLIENT),
        "{lines:#?}"
    );
    assert!(
        refusals
            .clone()
            .any(|line| line["detail"].as_str().unwrap().contains("localhost:22")),
        "{lines:#?}"
    );
    assert_eq!(
        calls.load(Ordering::SeqCst),
        0,
        "the other server was called"
    );
}

#[tokio::test]
async fn streams_that_are_taken_back_have_a_record_and_do_no_harm() {
    const ROUNDS: usize = 20;
    const EACH: usize = 100;
    let authority = Authority::new();
    let mut inbound = snapshot();
    inbound.inbound.mtls = Mtls::Strict;
    let world = World::secured(inbound, echo(), authority.mesh(SERVER));
    let at = SocketAddr::from(([127, 0, 0, 1], world.handle.ports().inbound));
    let mut sender = tunnel(&authority, at).await;
    for _ in 0..ROUNDS {
        let streams: Vec<_> = (0..EACH)
            .map(|_| {
                let request = asks(Method::CONNECT, &at.to_string());
                sender.send_request(request, false).unwrap()
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(10)).await;
        // Dropping them resets them.
        drop(streams);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let start = Instant::now();
    while world.recorded() < ROUNDS * EACH && start.elapsed() < PATIENCE {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(world.recorded(), ROUNDS * EACH);
    let request = asks(Method::CONNECT, &at.to_string());
    let (response, mut send) = sender.send_request(request, false).unwrap();
    send.send_data(Bytes::from_static(b"\x01four"), true)
        .unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), b"\x01four"[..]);
    drop((sender, body));
}
