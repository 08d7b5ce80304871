//! `proxy`: the proxy alone. Connections come to it by somebody else's steering (an agent, iptables REDIRECT) or
//! because a client dials it; no privilege is needed.

use std::{process::ExitCode, sync::Arc};

use anyhow::{Context, Result};
use tokio::runtime;
use tracing::info;

use super::supervise::supervise;
use crate::{
    cli::Proxy as Arguments,
    config::SnapshotHandle,
    connection::listen::Listeners,
    lifecycle::{readiness::Readiness, signal::Signals},
    proxy::Proxy,
    telemetry::metrics::Metrics,
};

pub fn run(args: Arguments) -> Result<ExitCode> {
    let snapshot = super::load(args.config.config.as_deref())?;
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = {
        let _context = runtime.enter();
        Signals::new().context("signal handlers")?
    };
    let listeners = Listeners::bind(&snapshot.listeners, &snapshot.timeouts, snapshot.workers)?;
    let metrics = Arc::new(Metrics::new().context("metrics")?);
    let readiness = Readiness::default();
    let config = SnapshotHandle::new(snapshot, args.config.config);
    let identity = super::identity(&config, &metrics, &readiness)?;
    let mut proxy = Proxy::new(config.clone(), listeners, metrics);
    proxy.readiness = readiness;
    proxy.log_filter = super::log_filter();
    proxy.mesh = Some(identity.handle().clone());
    let proxy = proxy.start()?;
    info!(ports = ?proxy.ports(), "proxy is running");
    runtime.block_on(supervise(signals, proxy, config, None, |_| ()))?;
    Ok(ExitCode::SUCCESS)
}
