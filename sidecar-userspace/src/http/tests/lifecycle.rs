//! Failures on either side, timeouts, retries and the drain.

use std::{
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::Instant,
};

use super::*;

const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";

fn reset(client: Client) {
    socket2::SockRef::from(&client.tcp)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
}

#[test]
fn a_destination_that_refuses_is_named() {
    let gone = nobody();
    let proxy = Proxy::to(gone);
    let mut client = proxy.connect();
    client.send(GET);
    let head = client.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 503"), "{head}");
    let body = client.until("\n");
    assert!(body.starts_with("upstream connect error: "), "{body}");
    assert!(
        body.contains("refused") && body.contains(&gone.to_string()),
        "{body}"
    );
    // The client's connection goes on.
    client.send(GET);
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 503"));
    proxy.await_recorded("connect_refused", 2);
}

#[test]
fn grpc_clients_get_a_grpc_status() {
    let proxy = Proxy::to(nobody());
    let answer = proxy.exchange(
        "POST /a.B/C HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc+proto\r\n\
         Connection: close\r\nContent-Length: 0\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("grpc-status: 14\r\n"), "{answer}");
    assert!(
        answer.contains("grpc-message: upstream connect error"),
        "{answer}"
    );
}

#[test]
fn a_response_that_breaks_off_is_no_orderly_end() {
    for head in [
        "content-length: 10",
        "transfer-encoding: chunked",
        "x: until-the-end",
    ] {
        let (read, is_read) = signal();
        let address = upstream(move |_, mut client| {
            client.until("\r\n\r\n");
            let body = if head.starts_with("transfer") {
                "3\r\nabc\r\n"
            } else {
                "abc"
            };
            client.send(format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}"));
            // Not before the client has it: a reset overtakes what is on its way.
            await_signal(&is_read);
            reset(client);
        });
        let proxy = Proxy::to(address);
        for version in ["1.1", "1.0"] {
            let mut client = proxy.connect();
            client.send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"));
            client.until("abc");
            read.send(()).unwrap();
            let error = client.try_rest().expect_err("an orderly end");
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        }
        proxy.await_recorded("upstream_reset", 2);
    }
}

#[test]
fn a_destination_that_closes_without_an_answer() {
    let address = upstream(|_, mut client| {
        client.until("\r\n\r\n");
    });
    let proxy = Proxy::to(address);
    let answer = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    proxy.await_recorded("upstream_closed", 1);
}

/// A server that answers one request per connection, keeps it open, and closes it on the next request.
fn one_shot(requests: Arc<AtomicUsize>) -> SocketAddr {
    upstream(move |_, mut client| {
        client.until("\r\n\r\n");
        requests.fetch_add(1, Ordering::SeqCst);
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        client.until("\r\n\r\n");
        requests.fetch_add(1, Ordering::SeqCst);
    })
}

#[test]
fn a_stale_connection_costs_an_idempotent_request_nothing() {
    let requests = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::to(one_shot(requests.clone()));
    let mut client = proxy.connect();
    client.send(GET);
    client.until("ok");
    client.send(GET);
    assert!(client.until("ok").starts_with("HTTP/1.1 200"));
    assert_eq!(requests.load(Ordering::SeqCst), 3, "once, then twice");
    proxy.await_recorded("ok", 2);
}

#[test]
fn what_may_have_been_done_is_not_done_twice() {
    let requests = Arc::new(AtomicUsize::new(0));
    let proxy = Proxy::to(one_shot(requests.clone()));
    let mut client = proxy.connect();
    client.send(GET);
    client.until("ok");
    client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    let answer = client.until("\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert_eq!(requests.load(Ordering::SeqCst), 2, "sent twice");
}

#[test]
fn a_client_that_leaves_ends_the_request_upstream() {
    let (ended, end) = std::sync::mpsc::channel();
    let (arrived, arrival) = signal();
    let address = upstream(move |_, mut client| {
        client.until("\r\n\r\n");
        arrived.send(()).unwrap();
        let rest = client.try_rest();
        ended.send(rest.is_ok()).unwrap();
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    client.send(GET);
    await_signal(&arrival);
    drop(client);
    end.recv_timeout(PATIENCE).expect("upstream still waits");
    proxy.await_recorded("client_closed", 1);
}

#[test]
fn idle_connections_and_slow_heads_end() {
    let mut snapshot = Snapshot::builtin();
    snapshot.timeouts.http_idle = Duration::from_millis(1500);
    snapshot.timeouts.request_head = Duration::from_millis(500);
    let proxy = Proxy::start(snapshot, Direction::Outbound, Some(echo()));
    let started = Instant::now();
    let mut silent = proxy.connect();
    assert_eq!(silent.rest(), "");
    let mut kept = proxy.connect();
    kept.send(GET);
    let response = kept.rest();
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(started.elapsed() >= Duration::from_millis(2900));
    let mut slow = proxy.connect();
    slow.send("GET / HTTP/1.1\r\nHost:");
    let response = slow.rest();
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    // A head that is slow on a connection that was used before.
    let mut slow = proxy.connect();
    slow.send(GET);
    slow.until("\r\n\r\n");
    slow.until("\r\n\r\n");
    slow.send("GET / HTTP/1.1\r\nHost:");
    let response = slow.rest();
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    proxy.await_recorded("head_timeout", 2);
}

#[test]
fn a_slow_answer_is_not_idleness() {
    let mut snapshot = Snapshot::builtin();
    snapshot.timeouts.http_idle = Duration::from_millis(800);
    let address = upstream(|_, mut client| {
        client.until("\r\n\r\n");
        thread::sleep(Duration::from_millis(1600));
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n");
        thread::sleep(Duration::from_millis(1600));
        client.send("ok");
    });
    let proxy = Proxy::start(snapshot, Direction::Outbound, Some(address));
    assert!(proxy.exchange(GET).ends_with("\r\n\r\nok"));
}

#[test]
fn a_drain_lets_requests_finish() {
    let (arrived, arrival) = mpsc::channel();
    let address = upstream(move |_, mut client| {
        client.until("\r\n\r\n");
        arrived.send(()).unwrap();
        thread::sleep(Duration::from_millis(300));
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
    });
    let proxy = Proxy::to(address);
    let mut idle = proxy.connect();
    let mut busy = proxy.connect();
    busy.send(GET);
    arrival.recv_timeout(PATIENCE).unwrap();
    // Half of it is for those who come with another request.
    proxy.drain.send(PATIENCE).unwrap();
    assert_eq!(idle.rest(), "");
    let response = busy.rest();
    assert!(response.contains("connection: close\r\n"), "{response}");
    assert!(response.ends_with("ok"), "{response}");
    proxy.await_recorded("ok", 1);
}

/// What a client sends while it is told to go is served, be it the first request of a connection or a later one.
#[test]
fn a_drain_takes_one_more_request() {
    let proxy = Proxy::to(echo());
    let (mut kept, mut fresh) = (proxy.connect(), proxy.connect());
    kept.send(GET);
    kept.until("\r\n\r\n");
    kept.until("\r\n\r\n");
    proxy.drain.send(PATIENCE).unwrap();
    thread::sleep(Duration::from_millis(300));
    for client in [&mut kept, &mut fresh] {
        client.send(GET);
        let response = client.rest();
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
        assert!(response.contains("connection: close\r\n"), "{response}");
    }
    proxy.await_recorded("ok", 3);
}

#[test]
fn the_end_of_a_drain_resets() {
    let (arrived, arrival) = mpsc::channel();
    let address = upstream(move |_, mut client| {
        client.until("\r\n\r\n");
        arrived.send(()).unwrap();
        // Until the proxy gives it up.
        let _ = client.try_rest();
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    client.send(GET);
    arrival.recv_timeout(PATIENCE).unwrap();
    proxy.drain.send(Duration::from_millis(100)).unwrap();
    assert!(client.try_rest().is_err(), "an orderly end");
    proxy.await_recorded("drain_deadline", 1);
}
