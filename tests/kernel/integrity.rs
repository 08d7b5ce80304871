//! Byte-exact integrity with redirect on: nothing lost, changed or reordered, in either family, within a pod and
//! between pods. The same traffic over the design that redirects on any map hit must be caught.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, ensure};
use sidecar_tests::{
    report::Report,
    stream::CorruptionKind,
    world::{Settings, Workload, World, workload::LIMIT},
};

use crate::startup::congest;

/// Who talks to whom.
pub struct Ends<'a> {
    pub client: &'a Workload<'a>,
    pub server: &'a Workload<'a>,
    pub listen: SocketAddr,
    pub to: SocketAddr,
}

/// Lets the two ends exchange what their scripts say: the reports of the client and of the server. `both` goes to
/// either program, `serve` and `drive` to one.
pub fn exchange(
    ends: &Ends<'_>,
    mode: &str,
    both: &[&str],
    serve: &[&str],
    drive: &[&str],
) -> Result<(Report, Report)> {
    let (listen, to) = (ends.listen.to_string(), ends.to.to_string());
    let serve = [&["serve", "--listen", &listen, "--mode", mode], both, serve].concat();
    let drive = [&["drive", "--to", &to, "--mode", mode], both, drive].concat();
    let server = ends.server.serving("serve", &serve)?;
    let client: Report = ends.client.run_traffic("drive", &drive)?.account()?;
    // One that never came would keep the server waiting: the client's report says why.
    if client.failed > 0 && client.completed + client.corrupted == 0 {
        client.expect_exact(1)?;
    }
    let server = server.finish(LIMIT)?.success()?.account()?;
    Ok((client, server))
}

/// 2,000 connections, half of them blocking, half non-blocking: all exact, and some of it past the TCP/IP stack.
fn all_exact(ends: &Ends<'_>) -> Result<()> {
    let before = redirected(ends)?;
    for mode in ["blocking", "nonblocking"] {
        let (client, server) = exchange(ends, mode, &["--connections", "1000"], &[], &[])?;
        client.expect_exact(1000)?;
        server.expect_exact(1000)?;
        println!(
            "{mode}: {} up, {} down, {:.1} s",
            client.sent_bytes, client.received_bytes, client.elapsed_seconds
        );
        println!(
            "spurious EAGAIN: {}",
            client.oddity("spurious_eagain") + server.oddity("spurious_eagain")
        );
    }
    let after = redirected(ends)?;
    ensure!(
        after > before,
        "nothing redirected: {}",
        ends.client.metrics()?
    );
    Ok(())
}

/// Messages that the client's and the server's sidecar have redirected so far.
fn redirected(ends: &Ends<'_>) -> Result<u64> {
    let count = |workload: &Workload<'_>| {
        Ok::<_, anyhow::Error>(workload.metrics()?.kernel_events("redirected"))
    };
    Ok(count(ends.client)? + count(ends.server)?)
}

fn between_pods(address: impl Fn(&Workload<'_>) -> SocketAddr) {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?.with_sidecar(&always())?;
        all_exact(&Ends {
            client: &a,
            server: &b,
            listen: address(&b),
            to: address(&b),
        })
    });
}

/// Redirect, also where it does not pay.
pub fn always() -> Settings {
    Settings::default().set("redirect.adaptive", false)
}

fn within_a_pod(address: impl Fn(&Workload<'_>) -> SocketAddr) {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        all_exact(&Ends {
            client: &a,
            server: &a,
            listen: address(&a),
            to: address(&a),
        })
    });
}

#[test]
fn exact_between_pods_v4() {
    between_pods(|workload| workload.v4(7000));
}

#[test]
fn exact_between_pods_v6() {
    between_pods(|workload| workload.v6(7000));
}

#[test]
fn exact_within_a_pod_v4() {
    within_a_pod(|workload| workload.v4(7000));
}

#[test]
fn exact_within_a_pod_v6() {
    within_a_pod(|workload| workload.v6(7000));
}

#[test]
fn exact_by_v4_mapped_addresses() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?.with_sidecar(&always())?;
        let IpAddr::V4(v4) = b.v4(0).ip() else {
            unreachable!("v4 gives IPv4 addresses")
        };
        let mapped = SocketAddr::new(v4.to_ipv6_mapped().into(), 7000);
        let ends = Ends {
            client: &a,
            server: &b,
            listen: "[::]:7000".parse()?,
            to: mapped,
        };
        let steered = a.metrics()?.kernel_events("steered");
        for mode in ["blocking", "nonblocking"] {
            let (client, server) = exchange(&ends, mode, &["--connections", "200"], &[], &[])?;
            client.expect_exact(200)?;
            server.expect_exact(200)?;
        }
        ensure!(
            a.metrics()?.kernel_events("steered") >= steered + 400,
            "not steered: {}",
            a.metrics()?
        );
        Ok(())
    });
}

/// Only one end has a sidecar: what its neighbour sends and gets is exact all the same.
#[test]
fn exact_with_a_sidecar_at_one_end() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always())?;
        let b = world.workload("b")?;
        for (client, server) in [(&a, &b), (&b, &a)] {
            let address = server.v4(7000);
            let ends = Ends {
                client,
                server,
                listen: address,
                to: address,
            };
            let (client, server) =
                exchange(&ends, "nonblocking", &["--connections", "300"], &[], &[])?;
            client.expect_exact(300)?;
            server.expect_exact(300)?;
        }
        Ok(())
    });
}

/// Whether one of the two ends got bytes before others that were sent earlier.
pub fn was_overtaken(client: &Report, server: &Report) -> bool {
    let mut found = client.corruptions.iter().chain(&server.corruptions);
    // An end that finds bytes out of place hangs up, which the other end sees as a truncation.
    let overtaken = found.find(|found| matches!(found.kind, CorruptionKind::Ahead { .. }));
    if let Some(overtaken) = overtaken {
        let corrupted = client.corrupted + server.corrupted;
        println!("{corrupted} of 300 connections, {overtaken}");
    }
    overtaken.is_some()
}

/// The fault switch: a sidecar that redirects on any map hit must not get through.
#[test]
fn naive_redirect_is_caught() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&always().naive())?;
        let b = world.workload("b")?.with_sidecar(&always().naive())?;
        let _congestion = congest(world, &a)?;
        let ends = Ends {
            client: &a,
            server: &b,
            listen: b.v4(7000),
            to: b.v4(7000),
        };
        for _ in 0..5 {
            let both = ["--connections", "300", "--deadline-seconds", "20"];
            let (client, server) = exchange(&ends, "blocking", &both, &[], &["--style", "duplex"])?;
            if was_overtaken(&client, &server) {
                return Ok(());
            }
        }
        anyhow::bail!(
            "1,500 connections through a naive redirect, and the checker saw nothing: {}",
            a.metrics()?
        )
    });
}
