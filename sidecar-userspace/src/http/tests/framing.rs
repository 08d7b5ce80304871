//! Malformed requests: an answer that says what is wrong, an orderly close, and nothing of them upstream.

use proptest::prelude::*;

use super::*;

#[test]
fn each_shape_is_answered_and_the_next_connection_served() {
    let proxy = Proxy::to(echo());
    let huge = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nx: {}\r\n\r\n",
        "y".repeat(70_000)
    );
    let many = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "x: y\r\n".repeat(101)
    );
    let table = [
        ("GET / HTTP/1.1\nHost: a\n\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\rb\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: a\r\n b\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost : a\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nx: \0\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\n\r\n", "400"),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "400"),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", "505"),
        ("\x16\x03\x01\x02\0\x01", "400"),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde",
            "400",
        ),
        (
            "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\n\r\nabcde",
            "400",
        ),
        (
            "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            "400",
        ),
        (&huge, "431"),
        (&many, "431"),
    ];
    for (number, (request, status)) in (1..).zip(table) {
        let response = proxy.exchange(request);
        assert!(
            response.starts_with(&format!("HTTP/1.1 {status} ")),
            "{request:?}: {response:?}"
        );
        assert!(response.contains("connection: close\r\n"), "{response}");
        let good = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(
            good.starts_with("HTTP/1.1 200"),
            "after {request:?}: {good}"
        );
        proxy.await_recorded("ok", number);
    }
    assert_eq!(proxy.recorded("bad_request"), 13);
    assert_eq!(proxy.recorded("head_too_large"), 2);
}

#[test]
fn requests_before_a_malformed_one_are_answered() {
    let proxy = Proxy::to(echo());
    let good = "GET /good HTTP/1.1\r\nHost: a\r\n\r\n";
    let response = proxy.exchange(&format!("{good}{good}GET / HTTP/1.1\nHost: a\n\n{good}"));
    let statuses: Vec<&str> = response
        .lines()
        .filter(|line| line.starts_with("HTTP/1.1 "))
        .collect();
    assert_eq!(
        statuses,
        [
            "HTTP/1.1 200 OK",
            "HTTP/1.1 200 OK",
            "HTTP/1.1 400 Bad Request"
        ],
        "{response}"
    );
    assert!(
        response.ends_with("a line ends in LF without CR\n"),
        "{response}"
    );
}

#[test]
fn malformed_chunks_break_the_request_off() {
    for chunks in [
        "5\nhello\r\n0\r\n\r\n",
        "5\r\nhelloX\r\n0\r\n\r\n",
        "zz\r\n",
        "5\r\nhello\r\n0\r\nhost: b\r\n\r\n",
    ] {
        let address = upstream(|_, mut client| {
            client.until("\r\n\r\n");
            // It must not look complete.
            let body = client.try_rest().unwrap_or_default();
            assert!(!body.ends_with("0\r\n\r\n"), "{body:?}");
        });
        let proxy = Proxy::to(address);
        let request =
            format!("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}");
        let response = proxy.exchange(&request);
        assert!(
            response.starts_with("HTTP/1.1 400"),
            "{chunks:?}: {response:?}"
        );
        proxy.await_recorded("bad_request", 1);
    }
}

#[test]
fn heads_may_come_byte_by_byte() {
    let proxy = Proxy::to(echo());
    let mut client = proxy.connect();
    client.tcp.set_nodelay(true).unwrap();
    for byte in b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\n" {
        client.send([*byte]);
    }
    client.until("\r\n\r\n");
    assert!(client.until("\r\n\r\n").starts_with("GET /slow "));
}

#[test]
fn a_truncated_head_is_answered() {
    let proxy = Proxy::to(echo());
    let mut client = proxy.connect();
    client.send("GET / HTTP/1.1\r\nHost: a\r\n");
    client.shut();
    assert!(client.rest().starts_with("HTTP/1.1 400"));
    proxy.await_recorded("bad_request", 1);
}

#[test]
fn ambiguous_responses_are_not_passed_on() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nabcd",
        "HTTP/1.1 200 OK\r\nx : y\r\n\r\n",
        "SSH-2.0-OpenSSH\r\n",
    ] {
        let address = upstream(move |_, mut client| {
            client.until("\r\n\r\n");
            client.send(head);
        });
        let proxy = Proxy::to(address);
        let response = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(
            response.starts_with("HTTP/1.1 502"),
            "{head:?}: {response:?}"
        );
        proxy.await_recorded("upstream_protocol", 1);
    }
}

/// Bytes that look enough like HTTP to reach every part of the relay.
fn nearly_http() -> impl Strategy<Value = Vec<u8>> {
    let snippets = vec![
        "GET / HTTP/1.1\r\n",
        "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "GET http://b.example/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "Connection: upgrade\r\nUpgrade: x\r\n",
        "Expect: 100-continue\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "\0\0\x12\x04\0\0\0\0\0",
        "Host: a\r\n",
        "\r\n",
        "\n",
        "3\r\n",
        "abc",
        "0\r\n\r\n",
        "TE: trailers\r\n",
    ];
    let piece = prop_oneof![
        6 => prop::sample::select(snippets).prop_map(|piece| piece.as_bytes().to_vec()),
        1 => prop::collection::vec(any::<u8>(), 1..8),
    ];
    prop::collection::vec(piece, 1..12).prop_map(|pieces| pieces.concat())
}

#[test]
fn whatever_a_client_sends_ends_and_the_next_is_served() {
    let address = upstream(|_, mut client| {
        while client.try_until_head().is_some() {
            client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        }
    });
    let proxy = Proxy::to(address);
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    proptest!(config, |(bytes in nearly_http())| {
        let mut client = proxy.connect();
        // The proxy may have closed already, with an answer or without.
        let _ = client.tcp.write_all(&bytes);
        let _ = client.tcp.shutdown(Shutdown::Write);
        let started = std::time::Instant::now();
        if let Err(error) = client.try_rest() {
            prop_assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still open");
        }
        prop_assert!(started.elapsed() < PATIENCE);
        let good = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        prop_assert!(good.ends_with("\r\n\r\nok"), "{}", good);
    });
    assert_eq!(proxy.recorded("abandoned"), 0);
}
