//! What no well-behaved client sends: a refusal or a clean close, no panic, nothing smuggled past, and
//! the next request is served.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;
use sidecar_tests::world::{Running, Settings, Workload, World, wait, workload::LIMIT};

use crate::peers;

const PORT: u16 = 8080;

#[derive(Debug, Deserialize)]
struct Answered {
    received: String,
    end: String,
}

/// Name, bytes, and whether the client half-closes after them.
fn malformed() -> Vec<(&'static str, Vec<u8>, bool)> {
    let post = |headers: &str, body: &str| {
        format!("POST /bad HTTP/1.1\r\nHost: b\r\n{headers}\r\n\r\n{body}").into_bytes()
    };
    let get =
        |line: &str, headers: &str| format!("{line}\r\nHost: b\r\n{headers}\r\n").into_bytes();
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: b\r\n\r\n";
    vec![
        (
            "no request line at all",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03garbage\r\n\r\n".to_vec(),
            true,
        ),
        ("an unknown version", get("GET /bad HTTP/9.9", ""), false),
        (
            "no version",
            b"GET /bad extra words\r\nHost: b\r\n\r\n".to_vec(),
            false,
        ),
        (
            "a space in the target",
            get("GET /b ad HTTP/1.1", ""),
            false,
        ),
        ("no host", b"GET /bad HTTP/1.1\r\n\r\n".to_vec(), false),
        ("two hosts", get("GET /bad HTTP/1.1", "Host: c\r\n"), false),
        (
            "a space before the colon",
            get("GET /bad HTTP/1.1", "X-Header : 1\r\n"),
            false,
        ),
        (
            "a header without colon",
            get("GET /bad HTTP/1.1", "nonsense\r\n"),
            false,
        ),
        (
            "a NUL in a value",
            get("GET /bad HTTP/1.1", "X-Header: a\0b\r\n"),
            false,
        ),
        ("bare LF", b"GET /bad HTTP/1.1\nHost: b\n\n".to_vec(), true),
        (
            "bare LF within the head",
            b"GET /bad HTTP/1.1\r\nHost: b\nX: y\r\n\r\n".to_vec(),
            true,
        ),
        (
            "bare CR in a value",
            get("GET /bad HTTP/1.1", "X: a\rb\r\n"),
            true,
        ),
        (
            "obs-fold",
            get("GET /bad HTTP/1.1", "X: a\r\n b\r\n"),
            false,
        ),
        (
            "length and chunked",
            post(
                "Content-Length: 5\r\nTransfer-Encoding: chunked",
                &format!("0\r\n\r\n{smuggled}"),
            ),
            true,
        ),
        (
            "chunked and length",
            post(
                "Transfer-Encoding: chunked\r\nContent-Length: 5",
                &format!("0\r\n\r\n{smuggled}"),
            ),
            true,
        ),
        (
            "two lengths",
            post("Content-Length: 5\r\nContent-Length: 6", "hello!"),
            true,
        ),
        (
            "a list of lengths",
            post("Content-Length: 5, 6", "hello!"),
            true,
        ),
        (
            "a length with a sign",
            post("Content-Length: +5", "hello"),
            true,
        ),
        (
            "a negative length",
            post("Content-Length: -5", "hello"),
            true,
        ),
        (
            "a length beyond counting",
            post("Content-Length: 99999999999999999999999", "hello"),
            true,
        ),
        (
            "an unknown coding",
            post(
                "Transfer-Encoding: xchunked",
                &format!("0\r\n\r\n{smuggled}"),
            ),
            true,
        ),
        (
            "chunked not last",
            post("Transfer-Encoding: chunked, identity", "0\r\n\r\n"),
            true,
        ),
        (
            "chunked twice",
            post(
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
                "0\r\n\r\n",
            ),
            true,
        ),
        (
            "a tab before chunked's colon",
            post(
                "Transfer-Encoding\t: chunked",
                &format!("0\r\n\r\n{smuggled}"),
            ),
            true,
        ),
        (
            "a chunk size that is none",
            post("Transfer-Encoding: chunked", "zz\r\nhello\r\n0\r\n\r\n"),
            true,
        ),
        (
            "a chunk size beyond counting",
            post("Transfer-Encoding: chunked", "fffffffffffffffff\r\nhello"),
            true,
        ),
        (
            "a chunk longer than it says",
            post("Transfer-Encoding: chunked", "3\r\nhello\r\n0\r\n\r\n"),
            true,
        ),
        (
            "a body cut short",
            post("Content-Length: 1000", "hello"),
            true,
        ),
        (
            "chunks cut short",
            post("Transfer-Encoding: chunked", "5\r\nhello\r\n"),
            true,
        ),
        (
            "a head cut short",
            b"GET /bad HTTP/1.1\r\nHost: b\r\nX-He".to_vec(),
            true,
        ),
        (
            "an oversized header",
            get(
                "GET /bad HTTP/1.1",
                &format!("X-Large: {}\r\n", "x".repeat(2 << 20)),
            ),
            true,
        ),
        (
            "an oversized target",
            get(&format!("GET /{} HTTP/1.1", "x".repeat(2 << 20)), ""),
            true,
        ),
        (
            "too many headers",
            get("GET /bad HTTP/1.1", &"X-Many: 1\r\n".repeat(20_000)),
            true,
        ),
    ]
}

/// nginx behind a sidecar whose port is declared as HTTP.
fn served<'w>(
    world: &'w World,
    directory: &std::path::Path,
    settings: Settings,
) -> Result<(Workload<'w>, Workload<'w>, Running)> {
    let settings = settings.protocol(PORT, "http");
    let (a, b) = (
        world.workload("a")?.with_sidecar(&settings)?,
        world.workload("b")?.with_sidecar(&settings)?,
    );
    std::fs::write(directory.join("page"), "hello")?;
    let nginx = peers::nginx(&b, b.v4(PORT), directory, "dav_methods PUT;")?;
    Ok((a, b, nginx))
}

/// RFC 9112 and 9110 ask for 501 and 505 where a coding or a version is unknown.
fn is_refusal(status: &str) -> bool {
    status.starts_with('4') || status == "501" || status == "505"
}

fn raw(
    workload: &Workload<'_>,
    to: &Workload<'_>,
    bytes: &[u8],
    more: &[&str],
) -> Result<Answered> {
    let to = to.v4(PORT).to_string();
    let mut program = workload.traffic("raw", &[&["raw", "--to", &to], more].concat())?;
    program.write(bytes)?;
    program.finish(LIMIT)?.success()?.account()
}

fn serves(workload: &Workload<'_>, to: &Workload<'_>) -> Result<()> {
    let page = format!("http://{}/page", to.v4(PORT));
    let finished = peers::curl(workload, &["-f", &page])?.success()?;
    ensure!(finished.stdout == "hello", "{finished:?}");
    Ok(())
}

#[test]
fn malformed_requests_are_refused_and_the_next_is_served() {
    World::play(|world| {
        let directory = tempfile::tempdir()?;
        let (a, b, nginx) = served(world, directory.path(), Settings::default())?;
        // One client with a sidecar of its own, one that meets the server's at first hand.
        let c = world.workload("c")?;
        let mut wrong = Vec::new();
        for client in [&a, &c] {
            for (name, bytes, half_close) in malformed() {
                let more = if half_close {
                    ["--half-close"].as_slice()
                } else {
                    &[]
                };
                let answered = raw(client, &b, &bytes, more)?;
                let status = answered
                    .received
                    .strip_prefix("HTTP/1.1 ")
                    .and_then(|rest| rest.get(..3));
                let refused = status.is_some_and(is_refusal);
                let closed = answered.received.is_empty() && answered.end != "open";
                if !refused && !closed {
                    let start: String = answered.received.chars().take(60).collect();
                    wrong.push(format!(
                        "{name}, from {}: «{start}», {}",
                        client.name(),
                        answered.end
                    ));
                }
                serves(client, &b)?;
            }
        }
        ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
        let log = nginx.stdout()?;
        ensure!(!log.contains("/smuggled"), "a request was smuggled:\n{log}");
        a.sidecar()?.expect_no_panic()?;
        b.sidecar()?.expect_no_panic()
    });
}

#[test]
fn a_reset_at_each_stage_of_a_request_does_no_harm() {
    World::play(|world| {
        let directory = tempfile::tempdir()?;
        let (a, b, _nginx) = served(world, directory.path(), Settings::default())?;
        let stages = [
            "",
            "GET /pa",
            "GET /page HTTP/1.1\r\nHost: b\r\n",
            "GET /page HTTP/1.1\r\nHost: b\r\n\r\n",
            "PUT /put HTTP/1.1\r\nHost: b\r\nContent-Length: 1000\r\n\r\nhello",
            "PUT /put HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        ];
        for stage in stages {
            for _ in 0..5 {
                raw(&a, &b, stage.as_bytes(), &["--reset"])?;
            }
            serves(&a, &b)?;
        }
        a.sidecar()?.expect_no_panic()?;
        b.sidecar()?.expect_no_panic()
    });
}

/// Those who send a byte now and then hold up nobody else.
#[test]
fn slow_clients_hold_nobody_up() {
    const SLOW: usize = 20;
    World::play(|world| {
        let directory = tempfile::tempdir()?;
        let settings = Settings::default().set("timeouts.requestHead", "2m");
        let (a, b, _nginx) = served(world, directory.path(), settings)?;
        let to = b.v4(PORT).to_string();
        let mut slow = Vec::new();
        for number in 0..SLOW {
            let arguments = ["raw", "--to", &to, "--byte-every-ms", "5000"];
            let mut client = a.traffic(&format!("slow{number}"), &arguments)?;
            client.write(b"GET /page HTTP/1.1\r\nHost: b\r\n\r\n")?;
            client.close_input();
            slow.push(client);
        }
        let outbound = ["direction=\"outbound\""];
        wait::until_true("the slow clients", LIMIT, || {
            let open = a.metrics()?.sum("sidecar_connections_open", &outbound);
            Ok(open >= SLOW as f64)
        })?;
        let started = std::time::Instant::now();
        serves(&a, &b)?;
        // They would take more than two minutes.
        ensure!(
            started.elapsed() < Duration::from_secs(30),
            "it took {:?}",
            started.elapsed()
        );
        let open = a.metrics()?.sum("sidecar_connections_open", &outbound);
        ensure!(open >= SLOW as f64, "the slow clients did not last: {open}");
        Ok(())
    });
}
