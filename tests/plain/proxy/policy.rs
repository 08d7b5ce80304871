//! Authorization on real sockets: what is refused gets nothing through, and the log says which rule refused.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpListener},
    path::Path,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use sidecar_userspace::{config, model::Snapshot};

use super::world::{World, echo, expect_reset, ping, server, snapshot, wait_until};
use crate::http::programs::{curl, nginx};

/// What `text` says of authorization, on free ports.
fn with_policies(text: &str) -> Snapshot {
    let mut snapshot = snapshot();
    snapshot.authorization = config::parse("policies", text).unwrap().authorization;
    snapshot
}

fn inbound(policies: &str) -> Snapshot {
    with_policies(&format!("authorization: {{ inbound: {policies} }}"))
}

/// Status of a request that curl makes to the inbound side.
fn status(world: &World, path: &str, more: &[&str]) -> u16 {
    let url = format!("http://127.0.0.1:{}{path}", world.handle.ports().inbound);
    let common = [
        "--path-as-is",
        "--output",
        "/dev/null",
        "--write-out",
        "%{http_code}",
        &url,
    ];
    curl(&[more, &common].concat()).parse().unwrap()
}

/// The one line for `path`.
fn line<'a>(lines: &'a [Value], path: &str) -> &'a Value {
    let mut found = lines.iter().filter(|line| line["path"] == path);
    let first = found
        .next()
        .unwrap_or_else(|| panic!("no {path} in {lines:#?}"));
    assert!(found.next().is_none(), "two lines for {path}");
    first
}

#[test]
fn the_example_allows_denies_and_notes_with_curl_and_nginx() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/examples/policy.yaml");
    let text = std::fs::read_to_string(file).unwrap();
    let nginx = nginx("");
    let world = World::with(with_policies(&text), nginx.address);
    assert_eq!(status(&world, "/1k", &[]), 200);
    assert_eq!(
        status(&world, "/1k?by=method", &["--request", "DELETE"]),
        403
    );
    assert_eq!(status(&world, "/internal/x", &[]), 403);
    assert_eq!(
        status(&world, "/orders/7/export", &[]),
        404,
        "noted, and nginx has no such file"
    );
    let body = curl(&[&format!(
        "http://127.0.0.1:{}/internal",
        world.handle.ports().inbound
    )]);
    assert_eq!(
        body, "an authorization policy refuses it\n",
        "no name, no rule"
    );

    let denied = world.metric(
        "sidecar_policy_matches_total{",
        &["\"deny\"", "\"internal\""],
    );
    assert_eq!(denied, 2.0);
    let by_default = world.metric(
        "sidecar_policy_matches_total{",
        &["\"deny\"", "\"default\""],
    );
    assert_eq!(by_default, 1.0);
    assert_eq!(
        world.metric("sidecar_policy_matches_total{", &["\"audit\""]),
        1.0
    );

    let lines = world.finish();
    assert_eq!(line(&lines, "/1k")["reason"], "ok");
    assert!(line(&lines, "/1k")["policy"].is_null());
    let by_method = line(&lines, "/1k?by=method");
    assert_eq!(
        (&by_method["policy"], by_method["status"].as_u64()),
        (&"default".into(), Some(403))
    );
    assert!(
        by_method["upstream"].is_null(),
        "nothing was sent: {by_method}"
    );
    let by_path = line(&lines, "/internal/x");
    assert_eq!(
        (&by_path["policy"], &by_path["rule"]),
        (&"internal".into(), &0.into())
    );
    assert_eq!(by_path["reason"], "policy_denied");
    let noted = line(&lines, "/orders/7/export");
    assert_eq!(
        noted["audit"],
        serde_json::json!(["watch-exports rules[0]"])
    );
    assert_eq!(noted["reason"], "ok");
}

#[test]
fn an_address_range_decides_with_curl() {
    let nginx = nginx("");
    let policies = "{ default: allow, policies: [{ name: far, action: DENY, rules: [{}, { from: [{ source: { ipBlocks: [127.0.0.0/8] } }] }] }] }";
    let near = policies.replace("{}, ", "");
    let world = World::with(inbound(&near), nginx.address);
    assert_eq!(status(&world, "/1k", &[]), 403);
    let line = &world.finish()[0];
    assert_eq!(
        (&line["policy"], &line["rule"]),
        (&"far".into(), &0.into()),
        "{line}"
    );
    let other = near.replace("127.0.0.0/8", "10.0.0.0/8");
    let world = World::with(inbound(&other), nginx.address);
    assert_eq!(status(&world, "/1k", &[]), 200);
    world.finish();
    // The second rule would match too: the first is named.
    let world = World::with(inbound(policies), nginx.address);
    assert_eq!(status(&world, "/1k", &[]), 403);
    assert_eq!(world.finish()[0]["rule"], 0);
}

#[test]
fn no_spelling_of_a_path_passes() {
    let (sender, paths) = mpsc::channel();
    // Tells which paths arrive.
    let application = server(move |mut stream| {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) > 0 {
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
        sender.send(path).unwrap();
        let _ =
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    });
    let policies = "{ default: allow, policies: [{ name: d, action: DENY, rules: [{ to: [{ operation: { paths: [/admin, /admin/*] } }] }] }] }";
    let world = World::with(inbound(policies), application);
    for denied in [
        "/admin",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%2e/admin",
        "/x/%2E%2e/admin",
        "/%61dmin",
        "/x\\..\\admin",
        "/admin/",
        "/admin//x?y=1",
    ] {
        assert_eq!(status(&world, denied, &[]), 403, "{denied}");
    }
    for refused in [
        "/x%2f..%2fadmin",
        "/admin%5cx",
        "/admin;x=y",
        "/x/..;/admin",
        "/admin%00",
        "/%2561dmin",
        "/a%zz",
    ] {
        assert_eq!(status(&world, refused, &[]), 400, "{refused}");
    }
    let http2 = ["--http2-prior-knowledge"];
    assert_eq!(status(&world, "/x/..//admin", &http2), 403);
    assert!(
        paths.try_recv().is_err(),
        "something reached the application"
    );
    for (asked, forwarded) in [
        ("/a/../b//c?d=/../e", "/b/c?d=/../e"),
        ("/%41%2d", "/A-"),
        ("/plain/%c3%a9", "/plain/%C3%A9"),
        ("/", "/"),
    ] {
        assert_eq!(status(&world, asked, &[]), 200);
        assert_eq!(
            paths.recv().unwrap(),
            forwarded,
            "the application gets what was compared"
        );
    }
    let lines = world.finish();
    assert_eq!(line(&lines, "/x%2f..%2fadmin")["reason"], "path_refused");
}

#[test]
fn without_policies_about_paths_none_is_changed() {
    let nginx = nginx("");
    let policies = "{ default: allow, policies: [{ name: d, action: DENY, rules: [{ to: [{ operation: { methods: [PUT] } }] }] }] }";
    let world = World::with(inbound(policies), nginx.address);
    // nginx resolves this itself.
    assert_eq!(status(&world, "/x%2f../1k", &[]), 200);
    assert_eq!(status(&world, "/x//../1k", &[]), 200);
    let lines = world.finish();
    assert_eq!(line(&lines, "/x%2f../1k")["reason"], "ok");
}

/// A destination that counts the connections that reach it.
fn counting() -> (SocketAddr, mpsc::Receiver<IpAddr>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, reached) = mpsc::channel();
    thread::spawn(move || {
        while let Ok((_stream, peer)) = listener.accept() {
            let _ = sender.send(peer.ip());
        }
    });
    (address, reached)
}

#[test]
fn a_refused_tcp_connection_reaches_nobody() {
    let policies = "{ default: deny, policies: [{ name: near, rules: [{ from: [{ source: { ipBlocks: [10.0.0.0/8] } }] }] }] }";
    for protocol in ["auto", "tcp"] {
        let (application, reached) = counting();
        let mut snapshot = inbound(policies);
        let declared = format!(
            "inbound: {{ ports: [{{ port: {}, protocol: {protocol} }}] }}",
            application.port()
        );
        snapshot.inbound = config::parse("ports", &declared).unwrap().inbound;
        let world = World::with(snapshot, application);
        let mut client = world.connect_inbound();
        // A client that waits for the server to speak is refused as well, at once.
        let start = Instant::now();
        expect_reset(&mut client);
        assert!(start.elapsed() < Duration::from_secs(2), "{protocol}");
        let line = world.finish_with_one();
        assert_eq!(
            (&line["reason"], &line["policy"]),
            (&"policy_denied".into(), &"default".into()),
            "{line}"
        );
        assert!(
            reached.try_recv().is_err(),
            "{protocol}: the application was dialled"
        );
    }
}

#[test]
fn where_only_requests_may_pass_other_bytes_are_refused_and_requests_judged() {
    let policies = "{ default: deny, policies: [{ name: reads, rules: [{ to: [{ operation: { methods: [GET] } }] }] }] }";
    let (application, reached) = counting();
    let world = World::with(inbound(policies), application);
    let mut client = world.connect_inbound();
    client.write_all(b"\x16\x03\x01 no request").unwrap();
    expect_reset(&mut client);
    wait_until("it is recorded", || world.recorded() == 1);
    let url = format!("http://127.0.0.1:{}/", world.handle.ports().inbound);
    let answer = curl(&["--data", "x", "--write-out", "%{http_code}", &url]);
    assert!(answer.ends_with("403"), "{answer}");
    assert!(reached.try_recv().is_err(), "the application was dialled");
    let nginx = nginx("");
    world.retarget(nginx.address);
    assert_eq!(status(&world, "/1k", &[]), 200);
    let lines = world.finish();
    assert_eq!(lines[0]["policy"], "default", "{lines:#?}");
}

#[test]
fn a_tcp_connection_that_may_pass_does() {
    let policies = "{ default: deny, policies: [{ name: near, rules: [{ from: [{ source: { ipBlocks: [127.0.0.0/8] } }] }] }, { name: all, action: AUDIT, rules: [{}] }] }";
    let world = World::with(inbound(policies), echo());
    let mut client = world.connect_inbound();
    ping(&mut client, b"\x01four");
    drop(client);
    wait_until("it is recorded", || world.recorded() == 1);
    let line = world.finish_with_one();
    assert_eq!(
        (&line["reason"], &line["audit"]),
        (&"ok".into(), &serde_json::json!(["all rules[0]"])),
        "{line}"
    );
}

#[test]
fn the_workloads_own_requests_are_judged_too() {
    let nginx = nginx("");
    let policies = "authorization: { outbound: { default: allow, policies: [{ name: no-writes, action: DENY, rules: [{ to: [{ operation: { notMethods: [GET] } }] }] }] } }";
    let world = World::with(with_policies(policies), nginx.address);
    let url = format!("http://127.0.0.1:{}/1k", world.handle.ports().outbound);
    let ask = |method: &str| {
        curl(&[
            "--request",
            method,
            "--output",
            "/dev/null",
            "--write-out",
            "%{http_code}",
            &url,
        ])
    };
    assert_eq!(
        (ask("GET"), ask("PUT")),
        ("200".to_owned(), "403".to_owned())
    );
    let lines = world.finish();
    assert_eq!(lines[1]["policy"], "no-writes", "{lines:#?}");
}

#[test]
fn grpc_clients_get_a_status_of_their_own() {
    let policies = "{ default: deny }";
    let world = World::with(inbound(policies), echo());
    let url = format!(
        "http://127.0.0.1:{}/shop.Orders/Get",
        world.handle.ports().inbound
    );
    let grpc = [
        "--http2-prior-knowledge",
        "--header",
        "content-type: application/grpc",
        "--dump-header",
        "-",
        "--data",
        "",
        &url,
    ];
    let answer = curl(&grpc);
    assert!(
        answer.starts_with("HTTP/2 200") && answer.contains("grpc-status: 7"),
        "{answer}"
    );
    world.finish();
}

/// Of the issuer below, signed with EdDSA, valid until the year 2100: alice of the staff, bob of nothing; and one that
/// has expired.
const JWKS: &str = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"k","x":"pTbfJPymcZ3-3BBPeey1lskUU6UHaaBX9lAbbesYcnY"}]}"#;
const ALICE: &str = "eyJhbGciOiAiRWREU0EiLCAia2lkIjogImsifQ.eyJpc3MiOiAiaHR0cHM6Ly9pc3N1ZXIudGVzdCIsICJzdWIiOiAiYWxpY2UiLCAiZXhwIjogNDEwMjQ0NDgwMCwgImdyb3VwcyI6IFsic3RhZmYiXX0.uWDZOxiZton9txritO-dI1nm3jJHb5NWYSb6_lFiuaxajo5qt0FatL-_3TjOcWsQSzUJk3L2l0Q6VnuWuXtnBQ";
const BOB: &str = "eyJhbGciOiAiRWREU0EiLCAia2lkIjogImsifQ.eyJpc3MiOiAiaHR0cHM6Ly9pc3N1ZXIudGVzdCIsICJzdWIiOiAiYm9iIiwgImV4cCI6IDQxMDI0NDQ4MDB9.H-vnLiPL7ZWeKpycsFC2IQ1-2CzAfXnOptDvezDkM19A7UjGFXNdI7TVvNrMQg7a1iRkMq_nkpOct2t-CoTIAA";
const EXPIRED: &str = "eyJhbGciOiAiRWREU0EiLCAia2lkIjogImsifQ.eyJpc3MiOiAiaHR0cHM6Ly9pc3N1ZXIudGVzdCIsICJzdWIiOiAiYWxpY2UiLCAiZXhwIjogMTAwMDAwMDAwMH0._qKqwr0F19_KJ90p2I2eFOxZHyjYEvlSpLofSe7shiP_g0I9G5Mf_q78yRFmv-sPKYajUU_qlHuySipoofoUCg";

#[test]
fn tokens_decide_with_curl() {
    let text = format!(
        "authorization:\n  inbound:\n    default: deny\n    policies:\n      - name: staff\n        rules:\n          \
         - from: [{{ source: {{ requestPrincipals: ['https://issuer.test/*'] }} }}]\n            \
         when: [{{ key: 'request.auth.claims[groups]', values: [staff] }}]\n\
         requestAuthentication: {{ jwtRules: [{{ issuer: 'https://issuer.test', jwks: '{JWKS}' }}] }}\n"
    );
    let mut snapshot = with_policies(&text);
    let parsed = config::parse("tokens", &text).unwrap();
    snapshot.request_authentication = parsed.request_authentication;
    let nginx = nginx("");
    let world = World::with(snapshot, nginx.address);
    let with = |path: &str, token: &str| {
        let header = format!("Authorization: Bearer {token}");
        status(&world, path, &["--header", &header])
    };
    assert_eq!(with("/1k?alice", ALICE), 200);
    assert_eq!(with("/1k?bob", BOB), 403);
    assert_eq!(with("/1k?expired", EXPIRED), 401);
    let forged = ALICE.replacen(
        "eyJhbGciOiAiRWREU0EiLCAia2lkIjogImsifQ",
        "eyJhbGciOiJub25lIn0",
        1,
    );
    assert_eq!(with("/1k?none", &forged), 401);
    assert_eq!(status(&world, "/1k?nobody", &[]), 403);
    assert_eq!(
        status(&world, &format!("/1k?access_token={ALICE}"), &[]),
        200
    );
    let url = format!("http://127.0.0.1:{}/1k", world.handle.ports().inbound);
    let expired = format!("Authorization: Bearer {EXPIRED}");
    let answer = curl(&["--dump-header", "-", "--header", &expired, &url]);
    assert!(
        answer.contains("www-authenticate: Bearer error=\"invalid_token\""),
        "{answer}"
    );
    let lines = world.finish();
    assert_eq!(line(&lines, "/1k?expired")["reason"], "token_refused");
    assert_eq!(
        line(&lines, "/1k?expired")["detail"],
        "the token has expired"
    );
    assert_eq!(line(&lines, "/1k?bob")["policy"], "default");
    assert_eq!(line(&lines, "/1k?nobody")["policy"], "default");
    let log = format!("{lines:?}");
    assert!(!log.contains(ALICE), "a token is in the log");
}
