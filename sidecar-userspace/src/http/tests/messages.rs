//! Messages of every shape pass unchanged.

use super::*;

const GET: &str = "GET /a?b=c HTTP/1.1\r\nHost: a.example\r\n\r\n";

#[test]
fn connections_are_kept_on_both_sides() {
    let proxy = Proxy::to(echo());
    let mut client = proxy.connect();
    for _ in 0..3 {
        client.send(GET);
        let head = client.until("\r\n\r\n");
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(
            head.contains("x-connection: 0\r\n"),
            "not the same connection: {head}"
        );
        let body = client.until("\r\n\r\n");
        assert!(body.starts_with("GET /a?b=c HTTP/1.1\r\n"), "{body}");
        assert!(body.contains("host: a.example\r\n"), "{body}");
        assert!(body.contains("x-request-id: "), "{body}");
    }
    // Another client's request takes the connection that is idle.
    let mut other = proxy.connect();
    other.send(GET);
    assert!(other.until("\r\n\r\n").contains("x-connection: 0\r\n"));
    proxy.await_recorded("ok", 4);
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let proxy = Proxy::to(echo());
    let mut client = proxy.connect();
    let requests: String = (0..20)
        .map(|number| format!("GET /{number} HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    client.send(requests);
    for number in 0..20 {
        client.until("\r\n\r\n");
        let body = client.until("\r\n\r\n");
        assert!(body.starts_with(&format!("GET /{number} ")), "{body}");
    }
    proxy.await_recorded("ok", 20);
}

#[test]
fn chunks_and_trailers_pass_both_ways() {
    let address = upstream(|_, mut client| {
        let request = client.until("x-sum: 1\r\n\r\n");
        assert!(
            request.contains("transfer-encoding: chunked\r\n"),
            "{request}"
        );
        assert!(request.contains("hello"), "{request}");
        assert!(request.contains("te: trailers\r\n"), "{request}");
        client.send(
            "HTTP/1.1 200 OK\r\ntrailer: x-md5\r\ntransfer-encoding: chunked\r\n\r\n\
             3\r\nabc\r\n0\r\nx-md5: 7\r\n\r\n",
        );
        client.until("\0");
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    client.send(
        "POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nTrailer: x-sum\r\n\
         Transfer-Encoding: chunked\r\n\r\n5;ext=1\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
    );
    let response = client.until("x-md5: 7\r\n\r\n");
    assert!(response.contains("3\r\nabc\r\n0\r\n"), "{response}");
    proxy.await_recorded("ok", 1);
}

#[test]
fn a_body_waits_for_the_destinations_leave() {
    let address = upstream(|_, mut client| {
        let head = client.until("\r\n\r\n");
        assert!(head.contains("expect: 100-continue\r\n"), "{head}");
        assert!(client.read.is_empty(), "the body came without leave");
        client
            .tcp
            .set_read_timeout(Some(Duration::from_millis(200)))
            .unwrap();
        let mut byte = [0];
        assert!(
            client.tcp.peek(&mut byte).is_err(),
            "the body came without leave"
        );
        client.tcp.set_read_timeout(Some(PATIENCE)).unwrap();
        client.send("HTTP/1.1 100 Continue\r\n\r\n");
        client.until("body!");
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert_eq!(client.until("\r\n\r\n"), "HTTP/1.1 100 Continue\r\n\r\n");
    client.send("body!");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 200"));
}

/// Nothing but 100 can be passed on; the response that follows is the client's.
#[test]
fn other_informational_responses_are_dropped() {
    let address = upstream(|_, mut client| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 102 Processing\r\n\r\n");
        client.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n");
        client.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        client.rest();
    });
    let proxy = Proxy::to(address);
    let answer = proxy.exchange("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nok"), "{answer}");
    proxy.await_recorded("ok", 1);
}

#[test]
fn a_refused_expectation_needs_no_body() {
    let address = upstream(|_, mut client| {
        client.until("\r\n\r\n");
        client.send("HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n");
        assert!(client.rest().is_empty(), "a body that nobody sent");
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    client.send("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n");
    assert!(client.until("\r\n\r\n").starts_with("HTTP/1.1 417"));
}

#[test]
fn responses_without_body() {
    let address = upstream(|_, mut client| {
        while let Some(head) = client.try_until_head() {
            client.send(match head.split(' ').nth(1) {
                Some("/head") => "HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n",
                Some("/chunked") => "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
                Some("/204") => "HTTP/1.1 204 No Content\r\n\r\n",
                _ => "HTTP/1.1 304 Not Modified\r\netag: \"a\"\r\n\r\n",
            });
        }
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    let mut ask = |method: &str, path: &str| {
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: a\r\n\r\n"));
        client.until("\r\n\r\n")
    };
    for _ in 0..2 {
        let head = ask("HEAD", "/head");
        assert!(head.contains("content-length: 1234\r\n"), "{head}");
        let chunked = ask("HEAD", "/chunked");
        assert!(!chunked.contains("content-length"), "{chunked}");
        let none = ask("GET", "/204");
        assert!(none.starts_with("HTTP/1.1 204 No Content\r\n"), "{none}");
        assert!(!none.contains("content-length"), "{none}");
        assert!(ask("GET", "/304").contains("etag: \"a\"\r\n"));
    }
    proxy.await_recorded("ok", 8);
}

#[test]
fn old_clients_and_old_servers() {
    let address = upstream(|_, mut client| {
        let head = client.until("\r\n\r\n");
        assert!(head.starts_with("GET / HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: 127.0.0.1:"), "{head}");
        client.send("HTTP/1.0 200 OK\r\n\r\nuntil the end");
    });
    let proxy = Proxy::to(address);
    let response = proxy.exchange("GET / HTTP/1.0\r\n\r\n");
    assert!(response.ends_with("\r\n\r\nuntil the end"), "{response}");
    let response =
        proxy.exchange("GET / HTTP/1.1\r\nHost: 127.0.0.1:1\r\nConnection: close\r\n\r\n");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    assert!(
        response.contains("D\r\nuntil the end\r\n0\r\n\r\n"),
        "{response}"
    );
}

#[test]
fn old_clients_may_keep_their_connection() {
    let proxy = Proxy::to(echo());
    let mut client = proxy.connect();
    for _ in 0..2 {
        client.send("GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
        let head = client.until("\r\n\r\n");
        assert!(head.contains("connection: keep-alive\r\n"), "{head}");
        client.until("\r\n\r\n");
    }
}

#[test]
fn an_upgrade_becomes_bytes_with_half_close() {
    let address = upstream(|_, mut client| {
        let head = client.until("\r\n\r\n");
        assert!(head.contains("connection: upgrade\r\n"), "{head}");
        assert!(head.contains("upgrade: echo\r\n"), "{head}");
        // The first bytes of the new protocol come with the response.
        client.send(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhi",
        );
        let all = client.rest();
        client.send(format!("{all} and bye"));
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    client
        .send("GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n\0early\n");
    let head = client.until("\r\n\r\n");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("upgrade: echo\r\n"), "{head}");
    client.until("hi");
    client.send("\0more\n");
    client.shut();
    assert_eq!(client.rest(), "\0early\n\0more\n and bye");
    proxy.await_recorded("ok", 1);
}

#[test]
fn a_refused_upgrade_is_an_ordinary_exchange() {
    let proxy = Proxy::to(echo());
    let mut client = proxy.connect();
    // The second request waits behind the first, whose answer decides how it is to be read.
    let upgrade = "GET /1 HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n";
    client.send(format!("{upgrade}GET /2 HTTP/1.1\r\nHost: a\r\n\r\n"));
    for path in ["/1", "/2"] {
        client.until("\r\n\r\n");
        let body = client.until("\r\n\r\n");
        assert!(body.starts_with(&format!("GET {path} ")), "{body}");
    }
}

#[test]
fn an_answer_before_the_end_of_the_request() {
    let address = upstream(|_, mut client| {
        client.until("\r\n\r\n");
        client.send(
            "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig",
        );
        // Closed with unread data: a reset follows the answer.
    });
    let proxy = Proxy::to(address);
    for _ in 0..20 {
        let mut client = proxy.connect();
        client.send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n");
        let chunk = [b'x'; 65536];
        for _ in 0..32 {
            if client.tcp.write_all(&chunk).is_err() {
                break;
            }
        }
        let answer = client.until("big");
        assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    }
}

#[test]
fn large_bodies_arrive_whole() {
    const SIZE: usize = 20_000_000;
    let address = upstream(|_, mut client| {
        client.until("\r\n\r\n");
        let mut body = std::mem::take(&mut client.read);
        let mut rest = vec![0; SIZE - body.len()];
        client.tcp.read_exact(&mut rest).unwrap();
        body.extend(rest);
        client.send(format!("HTTP/1.1 200 OK\r\ncontent-length: {SIZE}\r\n\r\n"));
        client.send(body);
    });
    let proxy = Proxy::to(address);
    let mut client = proxy.connect();
    let body: Vec<u8> = (0..SIZE).map(|at| ((at * 31) >> 7) as u8).collect();
    let mut sender = client.tcp.try_clone().unwrap();
    let copy = body.clone();
    let sending = thread::spawn(move || {
        let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n");
        sender.write_all(head.as_bytes()).unwrap();
        sender.write_all(&copy).unwrap();
    });
    client.until("\r\n\r\n");
    let mut back = std::mem::take(&mut client.read);
    let mut rest = vec![0; SIZE - back.len()];
    client.tcp.read_exact(&mut rest).unwrap();
    back.extend(rest);
    assert!(back == body, "the body changed on its way");
    sending.join().unwrap();
}
