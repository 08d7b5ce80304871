//! Joined hops: between applications of one node messages go past proxies that only relay them, and nobody can tell from
//! the bytes or from the records.

use anyhow::{Result, ensure};
use sidecar_tests::{
    report::Report,
    world::{Settings, Workload, World},
};

use crate::integrity::{Ends, always, exchange, was_overtaken};

const PORT: u16 = 7000;

fn tcp() -> Settings {
    always().protocol(PORT, "tcp")
}

/// Messages of both sidecars' workloads that went past the proxies.
fn joined(ends: &Ends<'_>) -> Result<u64> {
    let count = |workload: &Workload<'_>| {
        Ok::<_, anyhow::Error>(workload.metrics()?.kernel_events("joined"))
    };
    Ok(count(ends.client)? + count(ends.server)?)
}

fn ends<'a>(client: &'a Workload<'a>, server: &'a Workload<'a>, v6: bool) -> Ends<'a> {
    let address = match v6 {
        true => server.v6(PORT),
        false => server.v4(PORT),
    };
    Ends {
        client,
        server,
        listen: address,
        to: address,
    }
}

/// Everything arrives, `at_least` so many messages past the proxies, and the records of both count each byte once.
fn exact_and_recorded(ends: &Ends<'_>, style: &str, at_least: u64) -> Result<()> {
    let relayed = |workload: &Workload<'_>, direction: &str| {
        let label = format!("direction=\"{direction}\"");
        let bytes = workload
            .metrics()?
            .sum("sidecar_connection_bytes_total", &[&label]);
        Ok::<_, anyhow::Error>(bytes as u64)
    };
    let before = (
        joined(ends)?,
        relayed(ends.client, "outbound")?,
        relayed(ends.server, "inbound")?,
    );
    let (client, server): (Report, Report) = exchange(
        ends,
        "nonblocking",
        &["--connections", "500"],
        &[],
        &["--style", style],
    )?;
    client.expect_exact(500)?;
    server.expect_exact(500)?;
    let past = joined(ends)? - before.0;
    println!("{style}: {past} messages past the proxies");
    ensure!(
        past >= at_least,
        "only {past} messages went past the proxies: {}{}",
        ends.client.metrics()?,
        ends.server.metrics()?
    );
    let moved = client.sent_bytes + client.received_bytes;
    let recorded = (
        relayed(ends.client, "outbound")? - before.1,
        relayed(ends.server, "inbound")? - before.2,
    );
    // Beside the scripts there is a preamble that says which one it is.
    ensure!(
        recorded.0 == recorded.1 && recorded.0 >= moved,
        "{moved} bytes moved, {recorded:?} recorded"
    );
    ensure!(
        recorded.0 - moved <= 500 * 64,
        "{moved} bytes moved, {recorded:?} recorded"
    );
    Ok(())
}

#[test]
fn messages_go_past_proxies_that_only_relay() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&tcp())?;
        let b = world.workload("b")?.with_sidecar(&tcp())?;
        for v6 in [false, true] {
            // Who writes without a pause stays with the proxies mostly.
            for (style, at_least) in [("turns", 5000), ("duplex", 20), ("any", 500)] {
                exact_and_recorded(&ends(&a, &b, v6), style, at_least)?;
            }
        }
        Ok(())
    });
}

/// What goes past the relay counts as life: a connection is not idle because its proxy sees nothing.
#[test]
fn a_joined_connection_is_not_idle() {
    World::play(|world| {
        let settings = tcp().set("timeouts.idle", "2s");
        let a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?.with_sidecar(&settings)?;
        let ends = ends(&a, &b, false);
        let listen = ends.listen.to_string();
        let echo = ["echo", "--listen", &listen, "--nonblocking"];
        let _echo = b.serving("echo", &echo)?;
        let to = ends.to.to_string();
        let rounds = ["--rounds", "60", "--every-ms", "100", "--nonblocking"];
        let ping = [&["ping-pong", "--to", &to], &rounds[..]].concat();
        a.run_traffic("ping-pong", &ping)?.success()?;
        // Both ways of each round but the first few.
        let past = joined(&ends)?;
        ensure!(past >= 100, "{past} messages went past the proxies");
        Ok(())
    });
}

/// The fault switch: a design that goes past the proxies without counting what they hold must not get through.
#[test]
fn naive_join_is_caught() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&tcp().naive_join())?;
        let b = world.workload("b")?.with_sidecar(&tcp().naive_join())?;
        let ends = ends(&a, &b, false);
        for _ in 0..5 {
            let both = ["--connections", "300", "--deadline-seconds", "20"];
            let (client, server) =
                exchange(&ends, "nonblocking", &both, &[], &["--style", "duplex"])?;
            if was_overtaken(&client, &server) {
                return Ok(());
            }
        }
        anyhow::bail!(
            "1,500 connections past the proxies without evidence, and the checker saw nothing: {}",
            a.metrics()?
        )
    });
}
