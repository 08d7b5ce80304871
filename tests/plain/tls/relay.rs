//! Between two sidecars: every byte arrives, ends are ends and breaks are breaks, and the log says who called.

use std::{
    io::{Read, Write},
    net::Shutdown,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::{
    authority::Authority,
    pair::{CLIENT, Pair, SERVER},
};
use crate::proxy::world::{PATIENCE, echo, expect_reset, ping, reset, server, wait_until};

/// Bytes that differ from place to place.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8 | 0x80).collect()
}

#[test]
fn the_log_says_who_called_and_how_it_was_encrypted() {
    let pair = Pair::new(&Authority::new(), echo());
    ping(&mut pair.client.connect(), b"\x01ping");
    wait_until("it is recorded", || pair.server.recorded() == 1);
    let security = ["mutual_tls"];
    assert_eq!(
        pair.server
            .metric("sidecar_inbound_security_total", &security),
        1.0
    );
    let inbound = pair.server.finish_with_one();
    assert_eq!(inbound["reason"], "ok", "{inbound}");
    assert_eq!(inbound["client_identity"], CLIENT);
    assert_eq!(inbound["client_tls"], "TLSv1.3");
    let outbound = pair.client.finish_with_one();
    assert_eq!(outbound["reason"], "ok", "{outbound}");
    assert_eq!(outbound["upstream_identity"], SERVER);
    assert_eq!(outbound["upstream_tls"], "TLSv1.3");
    assert!(outbound.get("client_identity").is_none());
}

#[test]
fn bulk_arrives_both_ways_and_half_close_is_carried_over() {
    const BYTES: usize = 20_000_000;
    // Answers only once the client has ended.
    let application = server(|mut socket| {
        let mut all = Vec::new();
        socket.read_to_end(&mut all).unwrap();
        socket.write_all(&all).unwrap();
    });
    let pair = Pair::new(&Authority::new(), application);
    let mut client = pair.client.connect();
    let sent = pattern(BYTES);
    client.write_all(&sent).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut back = Vec::new();
    client.read_to_end(&mut back).unwrap();
    assert!(back == sent, "{} bytes of {BYTES} came back", back.len());
    let line = pair.server.finish_with_one();
    assert_eq!(
        (&line["client_bytes"], &line["upstream_bytes"]),
        (&BYTES.into(), &BYTES.into())
    );
    assert_eq!(line["reason"], "ok");
    assert_eq!(pair.client.finish_with_one()["reason"], "ok");
}

#[test]
fn a_reset_passes_both_sidecars_either_way() {
    let (saw, seen) = mpsc::channel();
    let application = server(move |mut socket| {
        let mut first = [0; 4];
        socket.read_exact(&mut first).unwrap();
        if &first == b"\x01srv" {
            socket.write_all(b"part").unwrap();
            thread::sleep(Duration::from_millis(200));
            return reset(socket);
        }
        let mut rest = Vec::new();
        saw.send(socket.read_to_end(&mut rest).map_err(|error| error.kind()))
            .unwrap();
    });
    let pair = Pair::new(&Authority::new(), application);
    let mut client = pair.client.connect();
    client.write_all(b"\x01srv").unwrap();
    let mut part = [0; 4];
    client.read_exact(&mut part).unwrap();
    expect_reset(&mut client);
    let mut client = pair.client.connect();
    client.write_all(b"\x01clt").unwrap();
    thread::sleep(Duration::from_millis(200));
    reset(client);
    let seen = seen.recv_timeout(PATIENCE).unwrap();
    assert_eq!(seen, Err(std::io::ErrorKind::ConnectionReset));
    let reasons = |lines: Vec<serde_json::Value>| {
        let mut all: Vec<_> = lines
            .iter()
            .map(|line| line["reason"].to_string())
            .collect();
        all.sort();
        all
    };
    let expected = ["\"client_reset\"", "\"upstream_reset\""];
    assert_eq!(reasons(pair.server.finish()), expected);
    assert_eq!(reasons(pair.client.finish()), expected);
}

#[test]
fn a_receiver_that_does_not_read_holds_the_sender_back() {
    let (hold, held) = mpsc::channel();
    let application = server(move |socket| hold.send(socket).unwrap());
    let pair = Pair::new(&Authority::new(), application);
    let mut client = pair.client.connect();
    client
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut sent = 0;
    while let Ok(written) = client.write(&[7; 64 * 1024]) {
        sent += written;
        assert!(sent < 64 << 20, "{sent} bytes were taken, and nobody reads");
    }
    let mut socket = held.recv_timeout(PATIENCE).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    socket.read_to_end(&mut received).unwrap();
    // What the last, failed write had put into the socket is unknown to us.
    assert!(received.len() >= sent && received.iter().all(|byte| *byte == 7));
    drop((socket, client));
}

#[test]
fn a_server_that_speaks_first_is_heard_through_both() {
    let application = server(|mut socket| {
        socket.write_all(b"220 ready\r\n").unwrap();
        let mut writer = socket.try_clone().unwrap();
        let _ = std::io::copy(&mut socket, &mut writer);
    });
    let pair = Pair::new(&Authority::new(), application);
    for _ in 0..4 {
        let start = Instant::now();
        let mut client = pair.client.connect();
        let mut greeting = [0; 11];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting, b"220 ready\r\n");
        assert!(
            start.elapsed() < Duration::from_millis(280),
            "{:?}",
            start.elapsed()
        );
        ping(&mut client, b"GET / is only text here\r\n");
    }
}

#[test]
fn requests_share_connections() {
    let application = server(|mut socket| {
        let mut request = [0; 1024];
        while let Ok(1..) = socket.read(&mut request) {
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
            socket.write_all(answer).unwrap();
        }
    });
    let pair = Pair::with(&Authority::new(), application, SERVER, |snapshot| {
        snapshot.workers = std::num::NonZeroUsize::MIN;
    });
    for _ in 0..5 {
        let mut client = pair.client.connect();
        for _ in 0..4 {
            client
                .write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n")
                .unwrap();
            let mut answer = vec![0; 1024];
            let mut read = 0;
            while !answer[..read].ends_with(b"hi") {
                let more = client.read(&mut answer[read..]).unwrap();
                assert!(more > 0);
                read += more;
            }
            assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"));
        }
    }
    let handshakes = |labels: &[&str]| pair.client.metric("sidecar_tls_handshakes_total", labels);
    assert_eq!(handshakes(&["\"ok\""]), 1.0, "20 requests, one handshake");
    let outbound = pair.client.finish();
    assert_eq!(outbound.len(), 20, "{outbound:#?}");
    // Those on a kept connection, too.
    assert!(
        outbound
            .iter()
            .all(|line| line["upstream_identity"] == SERVER && line["upstream_tls"] == "TLSv1.3"),
        "{outbound:#?}"
    );
    let lines = pair.server.finish();
    let requests: Vec<_> = lines
        .iter()
        .filter(|line| line["kind"] == "request")
        .collect();
    assert_eq!(requests.len(), 20);
    assert!(
        requests
            .iter()
            .all(|line| line["client_identity"] == CLIENT && line["status"] == 200)
    );
}

#[test]
fn opaque_connections_take_up_sessions() {
    let pair = Pair::with(&Authority::new(), echo(), SERVER, |snapshot| {
        snapshot.workers = std::num::NonZeroUsize::MIN;
    });
    for _ in 0..6 {
        ping(&mut pair.client.connect(), b"\x01ping");
    }
    for world in [&pair.client, &pair.server] {
        let resumed = ["\"ok\"", "resumed=\"true\""];
        assert_eq!(world.metric("sidecar_tls_handshakes_total", &resumed), 5.0);
    }
    let lines = pair.server.finish();
    assert!(
        lines.iter().all(|line| line["client_identity"] == CLIENT),
        "{lines:#?}"
    );
}

#[test]
fn another_server_than_the_expected_one_gets_nothing() {
    let (saw, seen) = mpsc::channel();
    let application = server(move |mut socket| {
        let mut first = [0; 1];
        saw.send(socket.read(&mut first).is_ok_and(|read| read > 0))
            .unwrap();
    });
    let other = "spiffe://td/ns/default/sa/other";
    let pair = Pair::with(&Authority::new(), application, other, |_| ());
    let mut client = pair.client.connect();
    // The sidecar may have refused already.
    let _ = client.write_all(b"\x01secret");
    expect_reset(&mut client);
    let line = pair.client.finish_with_one();
    assert_eq!(line["reason"], "tls_wrong_identity", "{line}");
    assert!(line["detail"].as_str().unwrap().contains(SERVER), "{line}");
    let line = pair.server.finish_with_one();
    assert_ne!(line["reason"], "ok", "{line}");
    assert!(
        seen.try_iter().all(|reached| !reached),
        "the application was told something"
    );
}
