//! Step integrity: 300 connections whose every byte is known to both ends, at the level of redirect that this kernel gives.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::{
    report::Report,
    world::{Settings, Workload, World},
};

/// Of each mode.
const CONNECTIONS: u64 = 150;
/// Of one direction of a connection: twice the credit of a receiver, so that senders have to wait for it.
const LIMIT_BYTES: &str = "524288";

/// `level`: how far redirect goes, as `sidecar check` says.
pub fn exact(world: &World, level: &str) -> Result<Value> {
    let (a, b) = world.pair("exact-a", "exact-b")?;
    // Connections that would stay on TCP because redirect gains little are redirected, too: here they are to be tried.
    let settings = Settings::default().set("redirect.adaptive", false);
    let (a, b) = (a.with_sidecar(&settings)?, b.with_sidecar(&settings)?);
    let count = CONNECTIONS.to_string();
    let mut bytes = 0;
    for mode in ["blocking", "nonblocking"] {
        let to = b.v4(7100).to_string();
        let both = ["--mode", mode, "--connections", &count];
        let server = b.serving("serve", &[&["serve", "--listen", &to], &both[..]].concat())?;
        let client = a.run_traffic(
            "drive",
            &[
                &["drive", "--to", &to, "--limit-bytes", LIMIT_BYTES],
                &both[..],
            ]
            .concat(),
        )?;
        let client: Report = client.account()?;
        client.expect_exact(CONNECTIONS)?;
        let server: Report = server.finish(crate::LIMIT)?.success()?.account()?;
        server.expect_exact(CONNECTIONS)?;
        bytes += client.sent_bytes + client.received_bytes;
    }
    let [redirected, joined] = [events(&a, &b, "redirected")?, events(&a, &b, "joined")?];
    ensure!(
        (redirected > 0) == (level != "off"),
        "redirect goes so far: {level}, and {redirected} messages were redirected"
    );
    ensure!(
        (joined > 0) == (level == "joined"),
        "redirect goes so far: {level}, and {joined} messages went past the proxies"
    );
    Ok(json!({
        "connections": 2 * CONNECTIONS, "bytes": bytes, "level": level, "redirected": redirected, "joined": joined
    }))
}

fn events(a: &Workload<'_>, b: &Workload<'_>, event: &str) -> Result<u64> {
    Ok(a.metrics()?.kernel_events(event) + b.metrics()?.kernel_events(event))
}
