//! A peer that vanished is noticed, with data under way and behind a closed window; one that is only slow is not cut off.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Settings, Workload, World, programs, wait};
use sidecar_userspace::sys::sockopt;

/// The built-in `timeouts.user` is 30 s.
const LEAST: Duration = Duration::from_secs(15);
const SLOW_SECONDS: &str = "50";

/// A kernel before Linux 6.15 needs two minutes.
fn most() -> Result<Duration> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let knows_bounds = sockopt::longest_retransmission(&listener).is_ok();
    Ok(Duration::from_secs(if knows_bounds { 90 } else { 240 }))
}

/// From now on nothing reaches `pod`, and nobody is told.
fn cut_off(pod: &Workload<'_>) -> Result<()> {
    let iptables = programs::packaged("iptables", "iptables")?;
    pod.run(
        "drop",
        iptables,
        &["-A", "INPUT", "-p", "tcp", "-j", "DROP"],
    )?;
    Ok(())
}

/// How long it takes until the log of `client`'s sidecar tells that the destination is lost.
fn lost_after(client: &Workload<'_>) -> Result<Duration> {
    let started = Instant::now();
    wait::until_true("the loss to be noticed", most()?, || {
        Ok(client.sidecar()?.log()?.contains("upstream_lost"))
    })?;
    Ok(started.elapsed())
}

#[test]
fn a_dead_peer_is_noticed() {
    World::play_idle(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let mut hoard = b.serving("hoard", &["hoard", "--listen", &to])?;
        let arguments = ["raw", "--to", &to, "--byte-every-ms", "1000"];
        let mut client = a.traffic("raw", &arguments)?;
        client.write(&[1; 400])?;
        client.close_input();
        hoard.line("accepted")?;
        cut_off(&b)?;
        let took = lost_after(&a)?;
        println!("noticed after {took:?}");
        ensure!(took > LEAST, "given up after {took:?}");
        let ended = client.finish(Duration::from_secs(60))?.success()?;
        ensure!(ended.stdout.contains("reset"), "{ended:?}");
        Ok(())
    });
}

/// Nobody reads for longer than the time after which a silent peer is given up. Then the peer vanishes.
#[test]
fn a_slow_peer_is_left_alone_until_it_is_dead() {
    World::play_idle(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _hoard = b.serving("hoard", &["hoard", "--listen", &to])?;
        let mut flood = a.traffic("flood", &["flood", "--to", &to, "--seconds", SLOW_SECONDS])?;
        let account = flood.line_within("{", Duration::from_secs(150))?;
        ensure!(account.contains("\"error\":null"), "cut off: {account}");
        let account: serde_json::Value = serde_json::from_str(&account)?;
        let late_bytes = account["late_bytes"].as_u64().context("no late_bytes")?;
        ensure!(late_bytes == 0, "somebody read: {account}");
        let log = a.sidecar()?.log()?;
        ensure!(!log.contains("upstream_lost"), "cut off: {log}");
        cut_off(&b)?;
        let took = lost_after(&a)?;
        println!("left alone for {SLOW_SECONDS} s, its death noticed after {took:?}");
        ensure!(took > LEAST, "given up after {took:?}");
        Ok(())
    });
}
