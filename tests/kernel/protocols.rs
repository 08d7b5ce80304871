//! Real protocols, most of them without declaring the port: servers that speak first, WebSocket, gRPC, gigabytes. For
//! databases see `databases.rs`.

use std::{
    fs,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use sidecar_tests::world::{Settings, Workload, World, programs::packaged, workload::LIMIT};

use crate::peers::{self, text};

/// A server that speaks first must not wait for a client that does not: who waits for the client's first bytes does so for
/// 10 s or more.
const STALL_LIMIT: Duration = Duration::from_secs(8);
const GIB: u64 = 1 << 30;
/// What a sidecar may grow by while gigabytes go through it.
const MEMORY_LIMIT_BYTES: u64 = 24 << 20;

fn pods<'w>(world: &'w World, settings: &Settings) -> Result<(Workload<'w>, Workload<'w>)> {
    Ok((
        world.workload("a")?.with_sidecar(settings)?,
        world.workload("b")?.with_sidecar(settings)?,
    ))
}

fn no_panic(workloads: [&Workload<'_>; 2]) -> Result<()> {
    workloads
        .iter()
        .try_for_each(|workload| workload.sidecar()?.expect_no_panic())
}

#[derive(Debug, Deserialize)]
struct Called {
    received: String,
    first_byte_us: Option<f64>,
}

#[test]
fn a_banner_comes_at_once() {
    World::play(|world| {
        let (a, b) = pods(world, &Settings::default())?;
        for to in [b.v4(2525), b.v6(2525), a.v4(2525)] {
            let server = if to == a.v4(2525) { &a } else { &b };
            let banner = server.serving("banner", &["banner", "--listen", &to.to_string()])?;
            let called: Called = a
                .run_traffic("call", &["call", "--to", &to.to_string()])?
                .account()?;
            ensure!(called.received == "220 ready\r\n", "{called:?}");
            let first_byte_us = called.first_byte_us.context("nothing came")?;
            println!("{to}: banner after {first_byte_us:.0} µs");
            ensure!(first_byte_us < STALL_LIMIT.as_micros() as f64, "{called:?}");
            banner.stop(LIMIT)?;
        }
        Ok(())
    });
}

#[test]
fn redis() {
    World::play(|world| {
        let (a, b) = pods(world, &Settings::default())?;
        let address = b.v4(6379).ip().to_string();
        let arguments = [
            "--bind",
            &address,
            "--port",
            "6379",
            "--save",
            "",
            "--protected-mode",
            "no",
        ];
        let _server = b.start(
            "redis-server",
            packaged("redis-server", "redis-server")?,
            &arguments,
        )?;
        peers::listens(&b, b.v4(6379))?;
        let cli = packaged("redis-cli", "redis-tools")?;
        let asked = a.run("cli", &cli, &["-h", &address, "set", "key", "value"])?;
        ensure!(asked.stdout.trim() == "OK", "{asked:?}");
        let asked = a.run("cli", &cli, &["-h", &address, "get", "key"])?;
        ensure!(asked.stdout.trim() == "value", "{asked:?}");
        // The server pushes to a client that is silent.
        let mut subscriber = a.start("subscriber", &cli, &["-h", &address, "subscribe", "news"])?;
        subscriber.line("1")?;
        a.run(
            "publish",
            &cli,
            &["-h", &address, "publish", "news", "hello"],
        )?;
        subscriber.line("hello")?;
        let benchmark = packaged("redis-benchmark", "redis-tools")?;
        let arguments = [
            "-h",
            &address,
            "-q",
            "-n",
            "20000",
            "-c",
            "32",
            "-P",
            "16",
            "-d",
            "512",
            "-t",
            "set,get,lrange_100",
        ];
        let finished = a.run("benchmark", benchmark, &arguments)?;
        println!(
            "{}",
            finished
                .stdout
                .replace('\r', "\n")
                .lines()
                .filter(|line| line.contains("p50"))
                .collect::<String>()
        );
        no_panic([&a, &b])
    });
}

fn websocket(settings: &Settings) {
    World::play(|world| {
        let (a, b) = pods(world, settings)?;
        for to in [b.v4(8765), b.v6(8765)] {
            let (address, port) = (to.ip().to_string(), to.port().to_string());
            let server = peers::python(&b, "websocket_server.py", &[&address, &port])?;
            peers::listens(&b, to)?;
            let client = peers::python(&a, "websocket_client.py", &[&format!("ws://{to}/")])?;
            client.finish(LIMIT)?.success()?;
            server.stop(LIMIT)?;
        }
        no_panic([&a, &b])
    });
}

#[test]
fn websocket_undeclared() {
    websocket(&Settings::default());
}

#[test]
fn websocket_on_a_port_declared_http() {
    websocket(&Settings::default().protocol(8765, "http"));
}

fn grpc(settings: &Settings) {
    World::play(|world| {
        let (a, b) = pods(world, settings)?;
        for to in [b.v4(50051), b.v6(50051)] {
            let mut server = peers::python(&b, "grpc_server.py", &[&to.to_string()])?;
            server.line("listening")?;
            let target = if to.is_ipv4() {
                format!("ipv4:{to}")
            } else {
                format!("ipv6:{to}")
            };
            peers::python(&a, "grpc_client.py", &[&target])?
                .finish(LIMIT)?
                .success()?;
            server.stop(LIMIT)?;
        }
        no_panic([&a, &b])
    });
}

#[test]
fn grpc_undeclared() {
    grpc(&Settings::default());
}

#[test]
fn grpc_on_a_port_declared_http2() {
    grpc(&Settings::default().protocol(50051, "http2"));
}

/// 1 GiB up and 1 GiB down between curl and nginx, compared byte by byte, in memory that does not grow with it.
fn gigabytes(settings: &Settings) {
    World::play(|world| {
        let (a, b) = pods(world, settings)?;
        // On disk: /run and /tmp are memory on many machines.
        let directory = tempfile::Builder::new()
            .prefix("sidecar-tests-")
            .tempdir_in("/var/tmp")?;
        let content = directory.path().join("content");
        let keyed = Command::new(sidecar_tests::world::programs::traffic()?)
            .args(["keyed", "--seed", "1", "--bytes", &GIB.to_string()])
            .stdout(fs::File::create(&content)?)
            .status()?;
        ensure!(keyed.success(), "no content");
        let to = b.v4(8080);
        let _nginx = peers::nginx(
            &b,
            to,
            directory.path(),
            "dav_methods PUT; dav_access user:rw;",
        )?;
        let path = |name: &str| directory.path().join(name);
        let memory = |workload: &Workload<'_>| workload.sidecar()?.memory_bytes();
        a.sidecar()?.forget_peak_memory()?;
        b.sidecar()?.forget_peak_memory()?;
        let before = [memory(&a)?.0, memory(&b)?.0];

        // A copy that was compared is removed at once: a gigabyte on a disk that may be small.
        let compared = |name: &str| -> Result<()> {
            let compared = Command::new("cmp").args([&content, &path(name)]).output()?;
            let said = String::from_utf8_lossy(&compared.stdout);
            ensure!(compared.status.success(), "{name}: {said}");
            Ok(fs::remove_file(path(name))?)
        };
        let started = Instant::now();
        let downloaded = path("downloaded");
        peers::curl(
            &a,
            &[
                "-f",
                "-o",
                text(&downloaded)?,
                &format!("http://{to}/content"),
            ],
        )?
        .success()?;
        let down = started.elapsed();
        compared("downloaded")?;
        let started = Instant::now();
        peers::curl(
            &a,
            &[
                "-f",
                "-T",
                text(&content)?,
                &format!("http://{to}/uploaded"),
            ],
        )?
        .success()?;
        let up = started.elapsed();
        compared("uploaded")?;
        println!("down {down:?}, up {up:?}");
        for (workload, before) in [&a, &b].into_iter().zip(before) {
            let peak = memory(workload)?.1;
            println!(
                "{}: {} KiB before, {} KiB at most",
                workload.name(),
                before >> 10,
                peak >> 10
            );
            ensure!(
                peak < before + MEMORY_LIMIT_BYTES,
                "{} grew from {before} to {peak} bytes",
                workload.name()
            );
        }
        no_panic([&a, &b])
    });
}

#[test]
fn gigabytes_over_http() {
    gigabytes(&Settings::default().protocol(8080, "http"));
}

#[test]
fn gigabytes_undeclared() {
    gigabytes(&Settings::default());
}

#[derive(Debug, Deserialize)]
struct Answered {
    answer: String,
    error: Option<String>,
    elapsed_seconds: f64,
}

/// The question is half-closed; its answer comes after 90 s of silence.
#[test]
fn a_half_closed_connection_idle_for_ninety_seconds_still_works() {
    World::play_idle(|world| {
        let (a, b) = pods(world, &Settings::default())?;
        let to = b.v4(7000).to_string();
        let mut server = b.serving(
            "late-serve",
            &["late-serve", "--listen", &to, "--seconds", "90"],
        )?;
        let client = a.traffic("late-ask", &["late-ask", "--to", &to])?;
        server.line("half-closed")?;
        let answered: Answered = client.finish(LIMIT)?.success()?.account()?;
        ensure!(
            answered.answer == "answer to question" && answered.error.is_none(),
            "{answered:?}"
        );
        ensure!(answered.elapsed_seconds >= 90.0, "{answered:?}");
        Ok(())
    });
}

/// A process that is stopped for a while finds everything where it was.
#[test]
fn a_sidecar_that_stands_still_loses_nothing() {
    World::play(|world| {
        let (a, b) = pods(world, &Settings::default())?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let mut client = a.traffic(
            "ping-pong",
            &[
                "ping-pong",
                "--to",
                &to,
                "--rounds",
                "20000",
                "--message-bytes",
                "3000",
            ],
        )?;
        for _ in 0..10 {
            a.sidecar()?.signal(Signal::STOP)?;
            std::thread::sleep(Duration::from_millis(50));
            a.sidecar()?.signal(Signal::CONT)?;
            std::thread::sleep(Duration::from_millis(20));
            if client.ended()?.is_some() {
                break;
            }
        }
        client.finish(LIMIT)?.success()?;
        Ok(())
    });
}
