//! A reset at each stage of a connection arrives at the other end as a reset, never as a clean end; and the next
//! connection is served.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sidecar_tests::world::{Settings, Workload, World};

#[derive(Debug, Deserialize)]
struct Saw {
    end: String,
}

/// Plays one reset; what the end that does not reset saw.
fn reset(client: &Workload<'_>, server: &Workload<'_>, by: &str, stage: &str) -> Result<Saw> {
    let to = server.v4(7000).to_string();
    let serving = server.serving(
        "reset-serve",
        &["reset-serve", "--listen", &to, "--by", by, "--stage", stage],
    )?;
    let driven = client.traffic(
        "reset-drive",
        &["reset-drive", "--to", &to, "--by", by, "--stage", stage],
    )?;
    let limit = Duration::from_secs(100);
    let driven = driven.finish(limit)?.success()?;
    let served = serving.finish(limit)?.success()?;
    if by == "client" {
        served.account()
    } else {
        driven.account()
    }
}

fn every_stage(client: &Workload<'_>, server: &Workload<'_>) -> Result<()> {
    let mut wrong = Vec::new();
    for by in ["client", "server"] {
        // A client that resets at once may have been nobody's connection: the sidecar need not dial for it.
        let first = if by == "client" { 1 } else { 0 };
        for stage in &[
            "connected",
            "received",
            "answered",
            "streaming",
            "half-closed",
        ][first..]
        {
            let saw = reset(client, server, by, stage)
                .with_context(|| format!("{stage}, reset by the {by}"))?;
            if saw.end != "reset" {
                wrong.push(format!(
                    "{stage}, reset by the {by}: the other end saw «{}»",
                    saw.end
                ));
            }
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_reset_stays_a_reset() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        every_stage(&a, &b)?;
        a.sidecar()?.expect_no_panic()?;
        b.sidecar()?.expect_no_panic()
    });
}

/// The programs themselves, where nothing is between them.
#[test]
fn a_reset_is_a_reset_over_plain_tcp() {
    World::play(|world| every_stage(&world.workload("a")?, &world.workload("b")?));
}

/// Clients that reset at once, again and again, keep nobody from being served.
#[test]
fn resets_at_once_do_no_harm() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        for _ in 0..50 {
            a.run_traffic(
                "reset",
                &[
                    "reset-drive",
                    "--to",
                    &to,
                    "--by",
                    "client",
                    "--stage",
                    "connected",
                ],
            )?;
        }
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        a.sidecar()?.expect_no_panic()?;
        b.sidecar()?.expect_no_panic()
    });
}
