//! The start of a connection: data that is sent before the peer is in the map, in the SYN, or answered by a cookie.

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Running, Settings, Workload, World, programs};

use crate::integrity::{Ends, exchange};

/// Fast Open for clients and servers, without cookie, for all listeners.
const FAST_OPEN_ALWAYS: &str = "1543";

fn exact(
    client: &Workload<'_>,
    server: &Workload<'_>,
    mode: &str,
    serve: &[&str],
    drive: &[&str],
) -> Result<()> {
    for address in [server.v4(7000), server.v6(7000)] {
        let ends = Ends {
            client,
            server,
            listen: address,
            to: address,
        };
        let (client, server) = exchange(&ends, mode, &["--connections", "400"], serve, drive)?;
        client.expect_exact(400)?;
        server.expect_exact(400)?;
    }
    Ok(())
}

/// A counter of `TcpExt` in /proc/net/netstat.
fn tcp_counter(workload: &Workload<'_>, name: &str) -> Result<u64> {
    let netstat = workload.namespace().proc_net("netstat")?;
    let mut lines = netstat.lines().filter(|line| line.starts_with("TcpExt:"));
    let (names, values) = (
        lines.next().context("no names")?,
        lines.next().context("no values")?,
    );
    let position = names
        .split(' ')
        .position(|word| word == name)
        .with_context(|| format!("no counter {name}"))?;
    Ok(values
        .split(' ')
        .nth(position)
        .context("no value")?
        .parse()?)
}

/// A slow link out of `pod`, and somebody who fills its queue: packets of TCP take some 80 ms, redirected messages do
/// not. The last packet of a handshake is as late as the first data. What is returned keeps the queue full.
pub fn congest<'w>(world: &'w World, pod: &Workload<'w>) -> Result<Congestion<'w>> {
    pod.namespace().throttle("50mbit", "16kb", "512kb")?;
    let sink = world.workload("sink")?;
    let to = sink.v4(7100).to_string();
    let ends = [
        "--connections",
        "1000000",
        "--mode",
        "nonblocking",
        "--deadline-seconds",
        "300",
    ];
    let _reader = sink.serving(
        "bulk",
        &[&["serve", "--listen", &to], ends.as_slice()].concat(),
    )?;
    let drive = [
        &[
            "drive",
            "--to",
            &to,
            "--style",
            "duplex",
            "--concurrency",
            "32",
        ],
        ends.as_slice(),
    ]
    .concat();
    // Not steered: it must use the link.
    let _writer = pod.start_in(pod.cgroup(), "bulk", programs::traffic()?, &drive)?;
    Ok(Congestion {
        _writer,
        _reader,
        _sink: sink,
    })
}

pub struct Congestion<'w> {
    _writer: Running,
    _reader: Running,
    _sink: Workload<'w>,
}

/// The client writes at once, over a link on which everything is late, to a server that is slow to accept and to read.
#[test]
fn data_before_the_peer_is_ready_stays_in_order() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        let _congestion = congest(world, &a)?;
        let drive = ["--style", "eager"];
        exact(&a, &b, "blocking", &["--accept-delay-ms", "1"], &drive)?;
        exact(&a, &b, "nonblocking", &[], &drive)?;
        // Longer than the handshake takes: from TCP to redirect in mid-stream.
        exact(
            &a,
            &b,
            "nonblocking",
            &[],
            &["--style", "duplex", "--limit-bytes", "100000"],
        )?;
        exact(&a, &a, "blocking", &["--accept-delay-ms", "1"], &drive)?;
        let metrics = a.metrics()?;
        ensure!(
            metrics.kernel_events("redirected") > 0,
            "nothing was redirected: {metrics}"
        );
        ensure!(
            metrics.kernel_events("fallback_no_peer") > 0,
            "nobody was early: {metrics}"
        );
        Ok(())
    });
}

#[test]
fn fast_open() {
    World::play(|world| {
        let pod = |name| {
            let pod = world.workload(name)?;
            pod.namespace()
                .sysctl("net.ipv4.tcp_fastopen", FAST_OPEN_ALWAYS)?;
            pod.with_sidecar(&Settings::default())
        };
        let (a, b) = (pod("a")?, pod("b")?);
        for server in [&b, &a] {
            exact(&a, server, "blocking", &["--fast-open"], &["--fast-open"])?;
        }
        let opened = tcp_counter(&a, "TCPFastOpenActive")?;
        ensure!(opened > 0, "no connection was opened with data in the SYN");
        println!("{opened} connections opened fast, {}", a.metrics()?);
        Ok(())
    });
}

#[test]
fn syn_cookies() {
    World::play(|world| {
        let pod = |name| {
            let pod = world.workload(name)?;
            // For every connection, not only when the queue is full.
            pod.namespace().sysctl("net.ipv4.tcp_syncookies", "2")?;
            pod.with_sidecar(&Settings::default())
        };
        let (a, b) = (pod("a")?, pod("b")?);
        for server in [&b, &a] {
            // A cookie holds where both ends have moved on by as many bytes, as at the end of a connection that was redirected.
            let silent = ["--silent", "40"];
            exact(&a, server, "nonblocking", &silent, &["--style", "eager"])?;
            exact(&a, server, "blocking", &silent, &[])?;
        }
        ensure!(
            tcp_counter(&b, "SyncookiesRecv")? >= 400,
            "no cookie came back"
        );
        Ok(())
    });
}
