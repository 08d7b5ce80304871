//! HTTP/2 on either side, by the `h2` crate's client and server.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, Request, Response, StatusCode};

use super::*;

type Incoming = (Request<RecvStream>, SendResponse<Bytes>);

/// A server with prior knowledge; `answer` runs for each request.
fn server<F>(max_streams: u32, answer: impl Fn(Incoming) -> F + Send + Sync + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    tokio::spawn(async move {
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let answer = answer.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                builder.max_concurrent_streams(max_streams);
                let Ok(mut connection) = builder.handshake::<_, Bytes>(tcp).await else {
                    return;
                };
                while let Some(Ok(incoming)) = connection.accept().await {
                    tokio::spawn(answer(incoming));
                }
            });
        }
    });
    address
}

async fn client(
    proxy: &Proxy,
) -> (
    SendRequest<Bytes>,
    tokio::task::JoinHandle<Result<(), h2::Error>>,
) {
    let tcp = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let (sender, connection) = h2::client::handshake(tcp).await.unwrap();
    (sender.ready().await.unwrap(), tokio::spawn(connection))
}

fn get() -> Request<()> {
    Request::get("http://a.example/x?y").body(()).unwrap()
}

async fn read(mut body: RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        all.extend_from_slice(&data);
    }
    Ok((all, body.trailers().await?))
}

async fn echo((mut request, mut respond): Incoming) {
    assert_eq!(request.uri(), "http://a.example/x?y");
    let mut stream = respond.send_response(Response::new(()), false).unwrap();
    while let Some(Ok(data)) = request.body_mut().data().await {
        request
            .body_mut()
            .flow_control()
            .release_capacity(data.len())
            .unwrap();
        send(&mut stream, data).await;
    }
    let trailers = request.body_mut().trailers().await.unwrap();
    stream.send_trailers(trailers.unwrap_or_default()).unwrap();
}

async fn send(stream: &mut SendStream<Bytes>, mut data: Bytes) {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        let granted = std::future::poll_fn(|cx| stream.poll_capacity(cx))
            .await
            .unwrap()
            .unwrap();
        stream.send_data(data.split_to(granted), false).unwrap();
    }
}

#[tokio::test]
async fn bodies_and_trailers_pass_both_ways() {
    let proxy = Proxy::to(server(100, echo));
    let (mut sender, _connection) = client(&proxy).await;
    let body = Bytes::from(vec![7; 3_000_000]);
    let (response, mut stream) = sender.send_request(get(), false).unwrap();
    let copy = body.clone();
    tokio::spawn(async move {
        send(&mut stream, copy).await;
        let trailers = [("x-sum".parse().unwrap(), "1".parse().unwrap())];
        stream
            .send_trailers(trailers.into_iter().collect())
            .unwrap();
    });
    let (back, trailers) = read(response.await.unwrap().into_body()).await.unwrap();
    assert!(back == body, "the body changed on its way");
    assert_eq!(trailers.unwrap()["x-sum"], "1");
    proxy.await_recorded("ok", 1);
}

#[tokio::test]
async fn many_requests_share_what_the_server_allows() {
    let (now, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let shared = (now, most.clone());
    let address = server(2, move |(_, mut respond)| {
        let (now, most) = shared.clone();
        async move {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_millis(20)).await;
            now.fetch_sub(1, Ordering::SeqCst);
            respond.send_response(Response::new(()), true).unwrap();
        }
    });
    let proxy = Proxy::to(address);
    let (mut sender, _connection) = client(&proxy).await;
    let mut responses = Vec::new();
    for _ in 0..60 {
        sender = sender.ready().await.unwrap();
        responses.push(sender.send_request(get(), true).unwrap().0);
    }
    for response in responses {
        assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    }
    // A few connections of two streams each.
    let most = most.load(Ordering::SeqCst);
    assert!((2..=8).contains(&most), "{most} at once");
}

#[tokio::test]
async fn a_reset_upstream_reaches_the_client_with_its_code() {
    let (read, is_read) = tokio::sync::watch::channel(false);
    let address = server(100, move |(_, mut respond)| {
        let mut is_read = is_read.clone();
        async move {
            let mut stream = respond.send_response(Response::new(()), false).unwrap();
            send(&mut stream, Bytes::from_static(b"abc")).await;
            // Not before the client has it: a reset overtakes what is on its way.
            is_read.wait_for(|read| *read).await.unwrap();
            stream.send_reset(Reason::ENHANCE_YOUR_CALM);
        }
    });
    let proxy = Proxy::to(address);
    let (mut sender, _connection) = client(&proxy).await;
    let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
    let mut body = response.into_body();
    assert_eq!(body.data().await.unwrap().unwrap(), "abc");
    read.send_replace(true);
    let error = self::read(body).await.expect_err("an orderly end");
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));
    proxy.await_recorded("upstream_reset", 1);
}

/// Messages of a few bytes, each a frame, that wait for a client which does not read yet: h2 counts what it takes to hold
/// them, and must not take it for an attack.
#[tokio::test]
async fn small_messages_wait_for_a_slow_reader() {
    const MESSAGES: usize = 5000;
    const STREAMS: usize = 4;
    let address = server(100, |(_, mut respond)| async move {
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        for _ in 0..MESSAGES {
            send(&mut stream, Bytes::from_static(b"message")).await;
            tokio::task::yield_now().await;
        }
        stream.send_trailers(HeaderMap::new()).unwrap();
    });
    let proxy = Proxy::to(address);
    let tcp = tokio::net::TcpStream::connect(proxy.address).await.unwrap();
    let mut builder = h2::client::Builder::new();
    // The proxy may send a little, and then has to wait. The test's own h2 holds what comes.
    builder
        .initial_window_size(10_000)
        .data_frame_budget(1 << 30);
    let (sender, connection) = builder.handshake::<_, Bytes>(tcp).await.unwrap();
    tokio::spawn(connection);
    let mut sender = sender.ready().await.unwrap();
    let mut bodies = Vec::new();
    for _ in 0..STREAMS {
        let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
        bodies.push(response.into_body());
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    for body in bodies {
        let (body, _) = read(body).await.unwrap();
        assert_eq!(body.len(), MESSAGES * b"message".len());
    }
    proxy.await_recorded("ok", STREAMS as u64);
}

/// Calls that are all cancelled before the proxy has looked at them, and one that is not.
#[tokio::test]
async fn many_calls_are_cancelled_at_once() {
    let address = server(1000, |(_, mut respond)| async move {
        // Fails for those that are gone.
        let _ = respond.send_response(Response::new(()), true);
    });
    let proxy = Proxy::to(address);
    let (mut sender, _connection) = client(&proxy).await;
    // The connection's task does not run meanwhile, so that one write has them all.
    for _ in 0..200 {
        let (_, mut stream) = sender.send_request(get(), false).unwrap();
        stream.send_reset(Reason::CANCEL);
    }
    let (response, _) = sender.send_request(get(), true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
}

#[tokio::test]
async fn a_client_that_resets_ends_the_request_upstream() {
    let (ended, mut end) = tokio::sync::mpsc::channel(1);
    let (arrived, mut arrival) = tokio::sync::mpsc::channel(1);
    let address = server(100, move |(_, mut respond)| {
        let (ended, arrived) = (ended.clone(), arrived.clone());
        async move {
            arrived.send(()).await.unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
            ended.send(reason.unwrap()).await.unwrap();
        }
    });
    let proxy = Proxy::to(address);
    let (mut sender, _connection) = client(&proxy).await;
    let (response, mut stream) = sender.send_request(get(), true).unwrap();
    arrival.recv().await.unwrap();
    stream.send_reset(Reason::CANCEL);
    let reason = tokio::time::timeout(PATIENCE, end.recv())
        .await
        .expect("upstream still waits");
    assert_eq!(reason, Some(Reason::CANCEL));
    drop(response);
    proxy.await_recorded("client_closed", 1);
}

#[tokio::test]
async fn an_http1_client_of_an_http2_service() {
    let address = server(100, |(request, mut respond)| async move {
        assert_eq!(request.uri(), "http://b.example/x");
        for name in [
            "host",
            "connection",
            "keep-alive",
            "x-hop",
            "transfer-encoding",
        ] {
            assert!(!request.headers().contains_key(name), "{name}");
        }
        let body = read(request.into_body()).await.unwrap().0;
        let mut stream = respond.send_response(Response::new(()), false).unwrap();
        send(&mut stream, body.into()).await;
        stream.send_trailers(HeaderMap::new()).unwrap();
    });
    let service = service("b", address, Protocol::Http2);
    let snapshot = Snapshot::builtin().with_services(vec![service], vec![]);
    let proxy = Proxy::start(snapshot, Direction::Outbound, Some(nobody()));
    let request = "POST /x HTTP/1.1\r\nHost: b.example\r\nConnection: x-hop, close\r\nX-Hop: 1\r\n\
                   Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
    let mut stream = proxy.connect();
    stream.send(request);
    let answer = tokio::task::spawn_blocking(move || stream.rest())
        .await
        .unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(
        answer.contains("transfer-encoding: chunked\r\n"),
        "{answer}"
    );
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    let letters: String = body.chars().filter(|c| ('a'..='e').contains(c)).collect();
    assert_eq!(letters, "abcde", "{answer}");
    assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn connect_is_for_http1() {
    let proxy = Proxy::to(server(100, echo));
    let (mut sender, _connection) = client(&proxy).await;
    // Clients that would open a WebSocket (RFC 8441) see that they have to use HTTP/1.1.
    let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(!sender.is_extended_connect_protocol_enabled());
    let request = Request::connect("a.example:443").body(()).unwrap();
    let (response, _stream) = sender.send_request(request, false).unwrap();
    assert_eq!(
        response.await.unwrap().status(),
        StatusCode::NOT_IMPLEMENTED
    );
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let address = server(100, move |(_, mut respond)| {
        let number = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            if number == 1 {
                respond.send_reset(Reason::REFUSED_STREAM);
            } else {
                respond.send_response(Response::new(()), true).unwrap();
            }
        }
    });
    let proxy = Proxy::to(address);
    let (mut sender, _connection) = client(&proxy).await;
    for _ in 0..2 {
        let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn idle_connections_end_and_a_drain_lets_requests_finish() {
    let (arrived, mut arrival) = tokio::sync::mpsc::channel(2);
    let address = server(100, move |(_, mut respond)| {
        let arrived = arrived.clone();
        async move {
            arrived.send(()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1600)).await;
            respond.send_response(Response::new(()), true).unwrap();
        }
    });
    let mut snapshot = Snapshot::builtin();
    snapshot.timeouts.http_idle = Duration::from_millis(800);
    let proxy = Proxy::start(snapshot, Direction::Outbound, Some(address));
    let (mut sender, connection) = client(&proxy).await;
    // Longer than the idle time, and not idle.
    let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    arrival.recv().await.unwrap();
    tokio::time::timeout(PATIENCE, connection)
        .await
        .expect("idle and open")
        .unwrap()
        .unwrap();

    let (mut sender, connection) = client(&proxy).await;
    let (response, _) = sender.send_request(get(), true).unwrap();
    arrival.recv().await.unwrap();
    proxy.drain.send(PATIENCE).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);
    tokio::time::timeout(PATIENCE, connection)
        .await
        .expect("drained and open")
        .unwrap()
        .unwrap();
    proxy.await_recorded("ok", 2);
}

#[tokio::test]
async fn refusals_and_large_heads() {
    let proxy = Proxy::to(nobody());
    let (mut sender, _connection) = client(&proxy).await;
    let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    let (text, _) = read(response.into_body()).await.unwrap();
    assert!(String::from_utf8(text).unwrap().contains("refused"));
    let mut request = get();
    for number in 0..30 {
        let name: http::HeaderName = format!("x-{number}").parse().unwrap();
        request
            .headers_mut()
            .insert(name, "y".repeat(4000).parse().unwrap());
    }
    let response = sender.send_request(request, true).unwrap().0.await;
    assert!(
        response
            .as_ref()
            .map_or(true, |response| response.status() == 431),
        "{response:?}"
    );
    // The connection and the others on it go on.
    let (mut sender, _connection) = client(&proxy).await;
    let response = sender.send_request(get(), true).unwrap().0.await.unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
}
