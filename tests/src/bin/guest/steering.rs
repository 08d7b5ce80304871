//! Step steering: connections reach their server through both sidecars, and both ends see the addresses that they would see
//! without one, in both families.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};
use sidecar_tests::world::{Settings, Workload, World};

use crate::LIMIT;

#[derive(Deserialize)]
struct Called {
    peer: SocketAddr,
    local: SocketAddr,
    received: String,
}

#[derive(Debug, Deserialize)]
struct Accepted {
    peer: SocketAddr,
    accepted_from: SocketAddr,
    local: SocketAddr,
}

/// Two workloads, each with a sidecar of its own that `sidecar run` starts.
pub fn both_ways(world: &World) -> Result<Value> {
    let (a, b) = world.pair("steered-a", "steered-b")?;
    let a = a.with_sidecar(&Settings::default())?;
    let b = b.with_sidecar(&Settings::default())?;
    for to in [b.v4(7000), b.v6(7000)] {
        let server = b.serving("names", &["names", "--listen", &to.to_string()])?;
        let accepted = names(&a, to)?;
        ensure!(
            accepted.peer.ip() == a.address(to.ip()) && accepted.accepted_from == accepted.peer,
            "the server does not see the client's address: {accepted:?}"
        );
        server.stop(LIMIT)?;
    }
    let (steered, inbound) = (
        a.metrics()?.kernel_events("steered"),
        b.metrics()?.kernel_events("inbound"),
    );
    ensure!(
        steered >= 2 && inbound >= 2,
        "steered {steered} connections out and {inbound} in, not 2"
    );
    Ok(json!({"steered": steered, "inbound": inbound}))
}

/// What the server at `to` has seen of a connection from `client`.
fn names(client: &Workload<'_>, to: SocketAddr) -> Result<Accepted> {
    let call = client.run_traffic("call", &["call", "--to", &to.to_string()])?;
    let called: Called = call.account()?;
    ensure!(
        called.peer == to,
        "the client sees {} for {to}",
        called.peer
    );
    ensure!(
        called.local.ip() == client.address(to.ip()),
        "the client's own address is {}",
        called.local
    );
    let accepted: Accepted =
        serde_json::from_str(&called.received).context("no account came back")?;
    ensure!(
        accepted.local == to,
        "the server's own address is {accepted:?}, not {to}"
    );
    Ok(accepted)
}
