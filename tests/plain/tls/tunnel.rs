//! Connections that share tunnels: none notices, and each has its own ends, breaks, limits and record.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use sidecar_userspace::{
    config,
    model::{Mtls, Snapshot},
    tls::MinVersion,
};

use super::{
    authority::Authority,
    pair::{CLIENT, Pair, SERVER},
};
use crate::proxy::world::{
    PATIENCE, World, echo, expect_reset, ping, refusing, reset, server, snapshot, wait_until,
};

fn one_worker(snapshot: &mut Snapshot) {
    snapshot.workers = NonZeroUsize::MIN;
}

fn handshakes(world: &World) -> f64 {
    world.metric("sidecar_tls_handshakes_total", &["\"ok\""])
}

/// Of connections, as opposed to tunnels.
fn ended(world: &World) -> f64 {
    world.metric("sidecar_connections_total{", &["protocol=\"tcp\""])
}

fn reasons(lines: &[Value]) -> Vec<&str> {
    let mut all: Vec<_> = lines
        .iter()
        .filter_map(|line| line["reason"].as_str())
        .collect();
    all.sort_unstable();
    all
}

/// A sequence that looks random and is the same for the same seed.
struct Dice(u64);

impl Dice {
    fn next(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below
    }
}

/// Sends and gets back bytes in pieces of random sizes, with pauses; both ways at once, ended by a half-close.
fn exchange(stream: TcpStream, seed: u64) {
    let mut dice = Dice(seed * 0x9e37_79b9_7f4a_7c15 + 1);
    let total = match dice.next(4) {
        0 => dice.next(100),
        1 => dice.next(100_000),
        _ => dice.next(1_000_000),
    };
    let sent: Vec<u8> = (0..total)
        .map(|at| (at ^ (at >> 8) ^ seed) as u8 | 0x80)
        .collect();
    let (copy, mut writer) = (sent.clone(), stream.try_clone().unwrap());
    let writing = thread::spawn(move || {
        let mut rest = copy.as_slice();
        while !rest.is_empty() {
            let most = [1, 300, 5_000, 70_000][dice.next(4) as usize];
            let (now, later) = rest.split_at(rest.len().min(1 + dice.next(most) as usize));
            writer.write_all(now).unwrap();
            rest = later;
            if dice.next(4) == 0 {
                thread::sleep(Duration::from_micros(dice.next(3000)));
            }
        }
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    (&stream).read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    assert!(back == sent, "{} of {total} bytes, seed {seed}", back.len());
}

#[test]
fn many_connections_share_few_handshakes_and_mix_no_byte() {
    const THREADS: u64 = 24;
    const EACH: u64 = 10;
    let pair = Arc::new(Pair::opaque(&Authority::new(), echo(), |_| ()));
    let threads: Vec<_> = (0..THREADS)
        .map(|number| {
            let pair = pair.clone();
            thread::spawn(move || {
                for turn in 0..EACH {
                    exchange(pair.client.connect(), number * EACH + turn);
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let all = (THREADS * EACH) as f64;
    wait_until("all are recorded", || {
        ended(&pair.server) == all && ended(&pair.client) == all
    });
    let made = handshakes(&pair.client);
    assert!(made <= 2.0, "{made} handshakes of two workers");
    let Ok(pair) = Arc::try_unwrap(pair) else {
        panic!("a thread still has the pair");
    };
    for lines in [pair.client.finish(), pair.server.finish()] {
        assert_eq!(lines.len() as f64, all);
        assert!(
            lines.iter().all(|line| line["reason"] == "ok"),
            "{lines:#?}"
        );
        assert!(
            lines
                .iter()
                .all(|line| line["client_bytes"] == line["upstream_bytes"])
        );
    }
}

#[test]
fn each_connection_has_a_record_with_bytes_and_identities() {
    let application = server(|mut socket| {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        socket.write_all(b"answer").unwrap();
    });
    let pair = Pair::opaque(&Authority::new(), application, one_worker);
    let mut ports = Vec::new();
    for length in [10_usize, 2000, 30_000] {
        let mut client = pair.client.connect();
        ports.push(client.local_addr().unwrap().to_string());
        client.write_all(&vec![1; length]).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"answer");
    }
    wait_until("all are recorded", || {
        ended(&pair.server) == 3.0 && ended(&pair.client) == 3.0
    });
    let secured = pair
        .server
        .metric("sidecar_inbound_security_total", &["mutual_tls"]);
    assert_eq!(secured, 3.0);
    let outbound = pair.client.finish();
    for line in &outbound {
        assert_eq!(line["upstream_identity"], SERVER, "{line}");
        assert_eq!(line["upstream_tls"], "TLSv1.3", "{line}");
    }
    let inbound = pair.server.finish();
    let facts = inbound.iter().map(|line| {
        let bytes = (
            line["client_bytes"].as_u64().unwrap(),
            line["upstream_bytes"].as_u64(),
        );
        assert_eq!(line["client_identity"], CLIENT, "{line}");
        assert_eq!(
            (&line["reason"], bytes.1),
            (&"ok".into(), Some(6)),
            "{line}"
        );
        bytes.0
    });
    assert_eq!(facts.collect::<Vec<_>>(), [10, 2000, 30_000]);
    // The client itself, not the other end of the tunnel.
    let text = format!("{inbound:?}");
    assert!(
        ports.iter().all(|port| text.contains(port)),
        "{ports:?} in {text}"
    );
}

#[test]
fn half_close_and_bulk() {
    const BYTES: usize = 20_000_000;
    let application = server(|mut socket| {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        socket.write_all(&all).unwrap();
    });
    let pair = Pair::opaque(&Authority::new(), application, |_| ());
    let mut client = pair.client.connect();
    let sent: Vec<u8> = (0..BYTES).map(|at| (at % 251) as u8 | 0x80).collect();
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == sent, "{} bytes of {BYTES} came back", back.len());
    drop(client);
    let line = pair.server.finish_with_one();
    assert_eq!(line["reason"], "ok", "{line}");
    assert_eq!(
        (&line["client_bytes"], &line["upstream_bytes"]),
        (&BYTES.into(), &BYTES.into())
    );
    assert_eq!(pair.client.finish_with_one()["reason"], "ok");
}

#[test]
fn a_reset_is_one_connections_own_either_way() {
    let (saw, seen) = mpsc::channel();
    let application = server(move |mut socket| {
        let mut first = [0; 4];
        socket.read_exact(&mut first).unwrap();
        match &first {
            b"\x01srv" => {
                socket.write_all(b"part").unwrap();
                thread::sleep(Duration::from_millis(100));
                reset(socket);
            }
            b"\x01clt" => {
                let mut rest = Vec::new();
                let end = socket.read_to_end(&mut rest).map_err(|error| error.kind());
                saw.send(end).unwrap();
            }
            _ => {
                socket.write_all(&first).unwrap();
                let mut writer = socket.try_clone().unwrap();
                let _ = std::io::copy(&mut socket, &mut writer);
            }
        }
    });
    let pair = Pair::opaque(&Authority::new(), application, one_worker);
    let mut other = pair.client.connect();
    ping(&mut other, b"\x01oth");
    let mut client = pair.client.connect();
    client.write_all(b"\x01srv").unwrap();
    let mut part = [0; 4];
    client.read_exact(&mut part).unwrap();
    expect_reset(&mut client);
    let mut client = pair.client.connect();
    client.write_all(b"\x01clt").unwrap();
    thread::sleep(Duration::from_millis(100));
    reset(client);
    let seen = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, Err(std::io::ErrorKind::ConnectionReset));
    // One that has ended its own direction hears of it, too.
    let mut client = pair.client.connect();
    client.write_all(b"\x01srv").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    expect_reset(&mut client);
    ping(&mut other, b"\x01still there");
    drop(other);
    wait_until("all are recorded", || {
        ended(&pair.server) == 4.0 && ended(&pair.client) == 4.0
    });
    assert_eq!(handshakes(&pair.client), 1.0);
    let expected = ["client_reset", "ok", "upstream_reset", "upstream_reset"];
    assert_eq!(reasons(&pair.server.finish()), expected);
    assert_eq!(reasons(&pair.client.finish()), expected);
}

#[test]
fn who_does_not_read_holds_only_its_own_sender_back() {
    const HELD: usize = 8;
    let (hold, held) = mpsc::channel();
    let application = server(move |mut socket| {
        let mut first = [0; 1];
        socket.read_exact(&mut first).unwrap();
        if first == [b'h'] {
            return hold.send(socket).unwrap();
        }
        socket.write_all(&first).unwrap();
        let mut writer = socket.try_clone().unwrap();
        let _ = std::io::copy(&mut socket, &mut writer);
    });
    let pair = Pair::opaque(&Authority::new(), application, one_worker);
    let mut clients = Vec::new();
    for number in 0..HELD {
        let mut client = pair.client.connect();
        let most = Some(Duration::from_millis(300));
        client.set_write_timeout(most).unwrap();
        client.write_all(b"h").unwrap();
        // Half of them in pieces of a byte, which take much more memory than they say.
        let piece = if number % 2 == 0 { 64 * 1024 } else { 1 };
        let (mut sent, start) = (0, Instant::now());
        while let Ok(written) = client.write(&vec![7; piece]) {
            sent += written;
            assert!(sent < 32 << 20, "{sent} bytes were taken, and nobody reads");
            if piece == 1 && start.elapsed() > Duration::from_secs(1) {
                break;
            }
        }
        clients.push((client, sent));
        // All others go on.
        let mut other = pair.client.connect();
        ping(&mut other, b"\x01four");
    }
    exchange(pair.client.connect(), 3);
    for (client, sent) in clients {
        client.shutdown(Shutdown::Write).unwrap();
        let mut socket = held.recv_timeout(PATIENCE).unwrap();
        let mut received = Vec::new();
        socket.read_to_end(&mut received).unwrap();
        // What the last, failed write had put into the socket is unknown to us.
        assert!(received.len() >= sent && received.iter().all(|byte| *byte == 7));
    }
    assert_eq!(handshakes(&pair.client), 1.0);
}

#[test]
fn a_server_that_speaks_first_is_heard() {
    let application = server(|mut socket| {
        socket.write_all(b"220 ready\r\n").unwrap();
        let mut writer = socket.try_clone().unwrap();
        let _ = std::io::copy(&mut socket, &mut writer);
    });
    let pair = Pair::opaque(&Authority::new(), application, |_| ());
    for _ in 0..4 {
        let start = Instant::now();
        let mut client = pair.client.connect();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        let took = start.elapsed();
        assert!(took < Duration::from_millis(280), "{took:?}");
        ping(&mut client, b"GET / is only text here\r\n");
    }
}

#[test]
fn requests_may_come_in_a_tunnel() {
    let application = server(|mut socket| {
        let mut request = [0; 1024];
        while let Ok(1..) = socket.read(&mut request) {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
            socket.write_all(answer).unwrap();
        }
    });
    let pair = Pair::opaque(&Authority::new(), application, one_worker);
    let mut client = pair.client.connect();
    for _ in 0..2 {
        client
            .write_all(b"GET /there HTTP/1.1\r\nHost: server\r\n\r\n")
            .unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hi") {
            let mut part = [0; 512];
            let read = client.read(&mut part).unwrap();
            assert!(read > 0, "{answer:?}");
            answer.extend_from_slice(&part[..read]);
        }
        assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
    }
    drop(client);
    wait_until("it is recorded", || ended(&pair.client) == 1.0);
    let lines = pair.server.finish();
    assert_eq!(lines.len(), 2, "{lines:#?}");
    assert!(
        lines
            .iter()
            .all(|line| line["path"] == "/there" && line["client_identity"] == CLIENT)
    );
}

#[test]
fn what_cannot_be_reached_or_may_not_is_refused_by_itself() {
    let pair = Pair::opaque(&Authority::new(), refusing(), one_worker);
    pair.client.expect_refusal();
    pair.client.expect_refusal();
    wait_until("both are recorded", || {
        ended(&pair.server) == 2.0 && ended(&pair.client) == 2.0
    });
    assert_eq!(handshakes(&pair.client), 1.0);
    assert_eq!(reasons(&pair.server.finish()), ["connect_refused"; 2]);
    assert_eq!(reasons(&pair.client.finish()), ["upstream_reset"; 2]);

    let policies = "authorization: { inbound: { default: allow, policies: [{ name: not-him, action: DENY, rules: [{ from: [{ source: { principals: [td/ns/default/sa/client] } }] }] }] } }";
    let authorization = config::parse("policies", policies).unwrap().authorization;
    let pair = Pair::opaque(&Authority::new(), echo(), |snapshot| {
        snapshot.authorization = authorization.clone();
    });
    pair.client.expect_refusal();
    wait_until("it is recorded", || ended(&pair.server) == 1.0);
    let line = pair.server.finish_with_one();
    assert_eq!(line["reason"], "policy_denied", "{line}");
    assert_eq!(
        (&line["policy"], &line["rule"]),
        (&"not-him".into(), &0.into()),
        "{line}"
    );
    assert_eq!(line["client_identity"], CLIENT);
}

#[test]
fn connections_in_a_tunnel_count_for_the_limit() {
    let authority = Authority::new();
    let pair = Pair::opaque(&authority, echo(), |snapshot| {
        one_worker(snapshot);
        // The tunnel is one itself.
        snapshot.limits.connections = Some(3);
    });
    let mut kept: Vec<_> = (0..2).map(|_| pair.client.connect()).collect();
    kept.iter_mut().for_each(|client| ping(client, b"\x01four"));
    // The client's own sidecar has the same limit, without a tunnel in it.
    pair.client.expect_refusal();
    drop(kept);
    wait_until("all are recorded", || ended(&pair.server) == 3.0);
    let expected = ["connection_limit", "ok", "ok"];
    assert_eq!(reasons(&pair.server.finish()), expected);
}

#[test]
fn more_connections_than_a_tunnel_takes_make_another_one() {
    let pair = Pair::opaque(&Authority::new(), echo(), one_worker);
    let mut clients: Vec<_> = (0..300).map(|_| pair.client.connect()).collect();
    clients
        .iter_mut()
        .for_each(|client| ping(client, b"\x01four"));
    assert_eq!(handshakes(&pair.client), 2.0);
    drop(clients);
    wait_until("all are recorded", || ended(&pair.server) == 300.0);
    assert_eq!(reasons(&pair.server.finish()), ["ok"; 300]);
}

#[test]
fn an_idle_tunnel_goes_and_the_next_connection_makes_one() {
    let pair = Pair::opaque(&Authority::new(), echo(), |snapshot| {
        one_worker(snapshot);
        snapshot.timeouts.http_idle = Duration::from_millis(200);
    });
    ping(&mut pair.client.connect(), b"\x01four");
    let tunnels = || {
        let labels = ["protocol=\"tunnel\"", "reason=\"ok\""];
        pair.server.metric("sidecar_connections_total{", &labels)
    };
    wait_until("the tunnel is gone", || tunnels() == 1.0);
    ping(&mut pair.client.connect(), b"\x01four");
    assert_eq!(handshakes(&pair.client), 2.0);
    assert_eq!(reasons(&pair.server.finish()), ["ok"; 2]);
}

#[test]
fn a_sidecar_that_dies_resets_its_connections_and_its_successor_takes_the_next() {
    let authority = Authority::new();
    let pair = Pair::opaque(&authority, echo(), one_worker);
    let mut clients: Vec<_> = (0..5).map(|_| pair.client.connect()).collect();
    clients
        .iter_mut()
        .for_each(|client| ping(client, b"\x01four"));
    let mut next = snapshot();
    next.inbound.mtls = Mtls::Strict;
    next.listeners.inbound = pair.server.handle.ports().inbound;
    pair.server.handle.end_now();
    clients.iter_mut().for_each(expect_reset);
    // The tunnel failed as well.
    assert_eq!(reasons(&pair.server.finish()), ["drain_deadline"; 6]);
    let _successor = World::secured(next, echo(), pair.server_mesh.clone());
    ping(&mut pair.client.connect(), b"\x01four");
    wait_until("all are recorded", || ended(&pair.client) == 6.0);
    let expected = [["ok"].as_slice(), &["upstream_reset"; 5]].concat();
    assert_eq!(reasons(&pair.client.finish()), expected);
}

#[test]
fn a_drain_lets_connections_end_and_still_takes_new_ones() {
    let pair = Pair::opaque(&Authority::new(), echo(), |snapshot| {
        one_worker(snapshot);
        snapshot.timeouts.drain = Duration::from_secs(20);
    });
    let mut client = pair.client.connect();
    ping(&mut client, b"\x01four");
    pair.server.handle.drain();
    thread::sleep(Duration::from_millis(200));
    ping(&mut client, b"\x01still there");
    ping(&mut pair.client.connect(), b"\x01late");
    ping(&mut client, b"\x01still there");
    drop(client);
    let start = Instant::now();
    let lines = pair.server.finish();
    assert!(
        start.elapsed() < Duration::from_secs(10),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(reasons(&lines), ["ok"; 2], "{lines:#?}");
}

#[test]
fn identities_are_replaced_under_load_and_no_connection_is_lost() {
    let (old, new) = (Authority::new(), Authority::new());
    let pair = Arc::new(Pair::opaque(&old, echo(), |_| ()));
    let stop = Arc::new(AtomicBool::new(false));
    let made = Arc::new(AtomicUsize::new(0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (pair, stop, made) = (pair.clone(), stop.clone(), made.clone());
            thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    ping(&mut pair.client.connect(), b"\x01fresh");
                    made.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(1));
                }
            })
        })
        .collect();
    let mut long = pair.client.connect();
    ping(&mut long, b"\x01still there?");
    let before = handshakes(&pair.client);
    let steps: [(&Authority, &[&Authority]); 5] = [
        (&old, &[&old]),
        (&old, &[&old, &new]),
        (&new, &[&old, &new]),
        (&new, &[&new]),
        (&new, &[&new]),
    ];
    for (signer, roots) in steps {
        for (mesh, id) in [(&pair.client_mesh, CLIENT), (&pair.server_mesh, SERVER)] {
            let material = signer.material(id, roots);
            mesh.replace(material, MinVersion::Tls13).unwrap();
            thread::sleep(Duration::from_millis(150));
        }
    }
    stop.store(true, Ordering::Relaxed);
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    ping(&mut long, b"\x01still there!");
    let after = handshakes(&pair.client);
    let all = pair.client.metric("sidecar_tls_handshakes_total", &[]);
    println!("{made:?} connections, {} handshakes", after - before);
    assert!(after - before >= 10.0, "{before} and {after} handshakes");
    assert_eq!(after, all, "a handshake failed");
    drop(long);
    let Ok(pair) = Arc::try_unwrap(pair) else {
        panic!("a thread still has the pair");
    };
    for lines in [pair.client.finish(), pair.server.finish()] {
        assert!(
            lines.iter().all(|line| line["reason"] == "ok"),
            "{lines:#?}"
        );
    }
}
