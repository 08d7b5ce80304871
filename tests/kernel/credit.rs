//! Nobody reads: what is held for one connection stays within the credit and the buffers of TCP.

use std::time::Duration;

use anyhow::{Result, ensure};
use serde::Deserialize;
use sidecar_tests::world::{Settings, Workload, World};

/// Per socket and direction; small, so that the bound is sharp.
const TCP_BUFFER_BYTES: u64 = 1 << 20;
const CREDIT_BYTES: u64 = 256 << 10;
const RELAY_BUFFER_BYTES: u64 = 256 << 10;
/// Application to sidecar, sidecar to sidecar, sidecar to application.
const HOPS: u64 = 3;
/// Of every hop the two buffers of TCP and the credit, of either sidecar one buffer; and a message in flight.
const BOUND_BYTES: u64 =
    HOPS * (2 * TCP_BUFFER_BYTES + CREDIT_BYTES) + 2 * RELAY_BUFFER_BYTES + (64 << 10);

#[derive(Debug, Deserialize)]
struct Accepted {
    accepted_bytes: u64,
    late_bytes: u64,
    writes_refused: u64,
    error: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Found {
    received_bytes: u64,
    corruption: Option<String>,
}

fn pods<'w>(world: &'w World, settings: &Settings) -> Result<(Workload<'w>, Workload<'w>)> {
    let settings = settings
        .clone()
        .set("redirect.credit", "256KiB")
        .set("limits.bufferBytes", "256KiB");
    let pod = |name| {
        let pod = world.workload(name)?;
        let buffers = |least, usual| format!("{least} {usual} {TCP_BUFFER_BYTES}");
        pod.namespace()
            .sysctl("net.ipv4.tcp_wmem", &buffers(4096, 16384))?;
        pod.namespace()
            .sysctl("net.ipv4.tcp_rmem", &buffers(4096, 131_072))?;
        pod.with_sidecar(&settings)
    };
    Ok((pod("a")?, pod("b")?))
}

/// Developers may wait less: SIDECAR_NO_READER_SECONDS.
fn seconds() -> String {
    std::env::var("SIDECAR_NO_READER_SECONDS").unwrap_or_else(|_| "60".to_owned())
}

/// Writes to somebody who does not read; then he reads after all, and nothing may be missing.
fn no_reader(client: &Workload<'_>, server: &Workload<'_>) -> Result<()> {
    let to = server.v4(7000).to_string();
    let mut hoard = server.serving("hoard", &["hoard", "--listen", &to])?;
    let memory_before = client.sidecar()?.memory_bytes()?.0;
    let mut flood = client.traffic("flood", &["flood", "--to", &to, "--seconds", &seconds()])?;
    flood.line_within("{", Duration::from_secs(180))?;
    let memory_grown = client
        .sidecar()?
        .memory_bytes()?
        .0
        .saturating_sub(memory_before);
    hoard.write(b"read\n")?;
    let found: Found = hoard
        .finish(Duration::from_secs(90))?
        .success()?
        .account()?;
    let accepted: Accepted = flood
        .finish(Duration::from_secs(90))?
        .success()?
        .account()?;
    println!(
        "{accepted:?}, {found:?}, of at most {BOUND_BYTES}; the sidecar grew by {memory_grown}"
    );

    ensure!(
        accepted.error.is_none() && accepted.writes_refused > 0,
        "{accepted:?}"
    );
    ensure!(
        accepted.accepted_bytes <= BOUND_BYTES,
        "{accepted:?} is more than {BOUND_BYTES}"
    );
    ensure!(
        accepted.late_bytes == 0,
        "still growing in the second half of the time: {accepted:?}"
    );
    ensure!(
        memory_grown < 4 << 20,
        "the sidecar grew by {memory_grown} bytes for one connection"
    );
    ensure!(found.corruption.is_none(), "{found:?}");
    ensure!(
        found.received_bytes == accepted.accepted_bytes,
        "{found:?} of {accepted:?}"
    );
    let metrics = client.metrics()?;
    let left_to_tcp =
        metrics.kernel_events("fallback_credit") + metrics.kernel_events("fallback_bulk");
    let between_proxies = client.cgroup() != server.cgroup();
    ensure!(
        (left_to_tcp > 0) == between_proxies,
        "TCP never had to take over, or there was something to take over from within a pod: {metrics}"
    );
    Ok(())
}

#[test]
fn without_a_reader_memory_stays_bounded_between_pods() {
    World::play_idle(|world| {
        let (a, b) = pods(world, &Settings::default())?;
        no_reader(&a, &b)
    });
}

#[test]
fn without_a_reader_memory_stays_bounded_within_a_pod() {
    World::play_idle(|world| {
        let (a, _) = pods(world, &Settings::default())?;
        no_reader(&a, &a)
    });
}

/// The fault switch: without credit the bound is broken, and this test would see it.
#[test]
fn naive_redirect_exceeds_the_bound() {
    World::play(|world| {
        let (a, b) = pods(world, &Settings::default().naive())?;
        let to = b.v4(7000).to_string();
        let _hoard = b.serving("hoard", &["hoard", "--listen", &to])?;
        let stop = (4 * BOUND_BYTES).to_string();
        let mut flood = a.traffic(
            "flood",
            &[
                "flood",
                "--to",
                &to,
                "--seconds",
                "60",
                "--stop-bytes",
                &stop,
            ],
        )?;
        let account: Accepted =
            serde_json::from_str(&flood.line_within("{", Duration::from_secs(120))?)?;
        println!("{account:?} against a bound of {BOUND_BYTES}");
        ensure!(
            account.accepted_bytes > 2 * BOUND_BYTES,
            "{account:?} is within {BOUND_BYTES}"
        );
        Ok(())
    });
}
