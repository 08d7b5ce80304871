//! `proxy`: the proxy alone. Connections come to it by somebody else's steering (the node's agent, iptables REDIRECT) or
//! because a client dials it; no privilege is needed.

use std::{
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
};

use anyhow::{Context, Result};
use prometheus::IntGauge;
use tokio::{
    sync::watch,
    task::{LocalSet, spawn_local},
};
use tracing::info;

use super::supervise::supervise;
use crate::{
    cli::Proxy as Arguments,
    config::{SnapshotHandle, Source},
    connection::listen::Listeners,
    enrol::proxy::{Client, Terms, take_over},
    lifecycle::{readiness::Readiness, signal::Signals},
    model::{Snapshot, Steering},
    proxy::Proxy,
    telemetry::metrics::Metrics,
};

pub fn run(args: Arguments) -> Result<ExitCode> {
    let source = Source {
        file: args.config.config,
        optional: args.optional_config,
        settings: args.settings,
    };
    let snapshot = source.load()?;
    let (runtime, signals) = super::runtime()?;
    let result =
        runtime.block_on(LocalSet::new().run_until(proxied(source, args.agent, snapshot, signals)));
    // A name look-up that hangs must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn proxied(
    source: Source,
    agent: Option<PathBuf>,
    snapshot: Snapshot,
    signals: Signals,
) -> Result<ExitCode> {
    let listeners = listeners(&snapshot, agent.as_deref()).await?;
    let handles = agent.as_ref().map(|_| listeners.handles()).transpose()?;
    let outbound_port = listeners.ports.steered;
    let metrics = Arc::new(Metrics::new().context("metrics")?);
    let readiness = Readiness::default();
    let steering = watch::Sender::new(Steering::from(&snapshot));
    let config = SnapshotHandle::new(snapshot, source);
    let identity = super::identity(&config, &metrics, &readiness)?;
    let mut client = None;
    if let (Some(socket), Some(handles)) = (agent, handles) {
        let connected = IntGauge::new(
            "sidecar_agent_connected",
            "1 while the node's agent is there; steering goes on without it.",
        )?;
        metrics.registry().register(Box::new(connected.clone()))?;
        client = Some(Client::new(Terms {
            socket,
            outbound_port,
            handles,
            steering: steering.subscribe(),
            ready: readiness.token("steering"),
            connected,
        }));
    }
    let mut proxy = Proxy::new(config.clone(), listeners, metrics);
    proxy.readiness = readiness;
    proxy.log_filter = super::log_filter();
    proxy.mesh = Some(identity.handle().clone());
    let proxy = proxy.start()?;
    info!(ports = ?proxy.ports(), "proxy is running");
    // Connections are steered to listeners that are served already.
    let told = client.map(|(client, told)| {
        spawn_local(client.follow());
        told
    });
    let reloaded = |snapshot: &Snapshot| {
        let new = Steering::from(snapshot);
        steering.send_if_modified(|old| {
            let changed = *old != new;
            *old = new;
            changed
        });
    };
    supervise(signals, proxy, config, None, told, reloaded).await?;
    Ok(ExitCode::SUCCESS)
}

/// Our own, or those of the sidecar that has our ports, if the agent can make it hand them over.
async fn listeners(snapshot: &Snapshot, agent: Option<&Path>) -> Result<Listeners> {
    let bound = Listeners::bind(&snapshot.listeners, &snapshot.timeouts, snapshot.workers);
    let (error, agent) = match (bound, agent) {
        (Err(error), Some(agent)) if error.source.kind() == io::ErrorKind::AddrInUse => {
            (error, agent)
        }
        (bound, _) => return Ok(bound?),
    };
    info!(%error, "asking the sidecar that listens there for its listeners");
    match take_over(agent).await {
        Ok(handles) => {
            info!(
                workers = handles.workers,
                "taking over; the number of workers stays as it was"
            );
            Listeners::taken_over(handles).context("the listeners of the old sidecar")
        }
        Err(reason) => Err(error).context(format!("it does not hand them over: {reason}")),
    }
}
