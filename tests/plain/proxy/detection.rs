//! Protocols are found out, and nobody who speaks first is kept waiting.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::world::{SOON, World, ping, server, snapshot, wait_until};

/// Nobody waited for anything. The fastest of several is asked: a busy machine may hold up the others.
const AT_ONCE: Duration = Duration::from_millis(500);

/// Greets, then echoes.
fn greeter() -> std::net::SocketAddr {
    server(|mut socket| {
        socket.write_all(b"220 ready\r\n").unwrap();
        let mut writer = socket.try_clone().unwrap();
        let _ = std::io::copy(&mut socket, &mut writer);
    })
}

#[test]
fn a_server_that_speaks_first_is_heard_at_once() {
    let world = World::new(greeter());
    let mut fastest = Duration::MAX;
    for _ in 0..6 {
        let start = Instant::now();
        let mut client = world.connect();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        fastest = fastest.min(start.elapsed());
        ping(&mut client, b"GET / is only text here\r\n");
    }
    assert!(fastest < AT_ONCE, "{fastest:?}");
    let found = |result: &str| world.metric("sidecar_detections_total", &[result]);
    // Each of the two workers learns once.
    assert!(found("\"server_first\"") >= 1.0 && found("\"server_first\"") <= 2.0);
    assert_eq!(
        found("\"server_first\"") + found("\"known_server_first\""),
        6.0
    );
    assert!(
        world
            .finish()
            .iter()
            .all(|line| line["reason"] == "ok" && line["protocol"] == "tcp")
    );
}

#[test]
fn a_client_that_stops_within_a_verb_is_not_kept_waiting() {
    // The server needs three bytes, which could be the beginning of an HTTP request.
    let address = server(|mut socket| {
        let mut verb = [0; 3];
        socket.read_exact(&mut verb).unwrap();
        socket.write_all(b"+OK").unwrap();
    });
    let world = World::new(address);
    let mut client = world.connect();
    let start = Instant::now();
    client.write_all(b"GET").unwrap();
    let mut answer = [0; 3];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"+OK");
    assert!(start.elapsed() < SOON);
    drop(client);
    assert_eq!(
        world.metric("sidecar_detections_total", &["\"incomplete\""]),
        1.0
    );
}

#[test]
fn opaque_clients_are_relayed_at_once() {
    let world = World::new(super::world::echo());
    let mut fastest = Duration::MAX;
    for first in [
        &b"\x16\x03\x01\x00\x05hello"[..],
        b"*1\r\n$4\r\nPING\r\n",
        b"GET key\r\n",
    ] {
        let start = Instant::now();
        ping(&mut world.connect(), first);
        fastest = fastest.min(start.elapsed());
    }
    assert!(fastest < AT_ONCE, "{fastest:?}");
    assert_eq!(
        world.metric("sidecar_detections_total", &["\"client_first\""]),
        3.0
    );
}

#[test]
fn the_server_is_heard_while_the_client_dawdles() {
    let world = World::new(greeter());
    let mut client = world.connect();
    // A request that never ends: the greeting decides.
    client.write_all(b"GE").unwrap();
    let mut greeting = [0; 11];
    client.read_exact(&mut greeting).unwrap();
    thread::sleep(Duration::from_millis(10));
    let mut echoed = [0; 2];
    client.read_exact(&mut echoed).unwrap();
    assert_eq!(&echoed, b"GE");
}

#[test]
fn http_is_recognised_and_its_dial_is_used() {
    // A dial that is not done when the request comes is given up for one of the pool's: right as well, but not what is
    // shown here. On a busy machine it may take a few attempts.
    let dials: Vec<_> = (0..10).map(|_| dials_for_three_requests()).collect();
    assert!(
        dials.contains(&1),
        "the first dial is not handed over and pooled: {dials:?} dials for three requests"
    );
}

fn dials_for_three_requests() -> usize {
    let dials = Arc::new(AtomicUsize::new(0));
    let dialled = dials.clone();
    let address = server(move |mut socket| {
        dialled.fetch_add(1, Ordering::SeqCst);
        let mut request = [0; 1024];
        while let Ok(1..) = socket.read(&mut request) {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
            if socket.write_all(answer).is_err() {
                break;
            }
        }
    });
    let mut snapshot = snapshot();
    snapshot.workers = std::num::NonZeroUsize::MIN;
    let world = World::with(snapshot, address);
    for round in 1..=3 {
        let mut client = world.connect();
        if round == 1 {
            // Later HTTP is known, and the dial waits for the request.
            wait_until("the dial is done", || dials.load(Ordering::SeqCst) == 1);
            thread::sleep(Duration::from_millis(10));
        }
        client
            .write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            .unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(
            answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("hi"),
            "{answer}"
        );
        assert_eq!(
            world.metric("sidecar_detections_total", &["\"http\""]),
            f64::from(round)
        );
    }
    let lines = world.finish();
    assert_eq!(lines.len(), 3, "{lines:#?}");
    assert!(
        lines
            .iter()
            .all(|line| line["kind"] == "request" && line["status"] == 200)
    );
    dials.load(Ordering::SeqCst)
}
