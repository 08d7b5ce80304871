//! The verbs and nouns of the command line, one file each. Here alone errors become text and exit codes.

pub mod agent;
pub mod ca;
pub mod check;
pub mod detach;
pub mod enter;
pub mod explain;
pub mod floor;
pub mod generate;
pub mod inject;
pub mod inspect;
pub mod proxy;
pub mod ready;
pub mod run;
mod standalone;
mod supervise;

use std::{
    io,
    path::Path,
    process::ExitCode,
    sync::{Arc, OnceLock},
};

use anyhow::{Context, Result};
use tokio::runtime::{self, Runtime};
use tracing::{debug, warn};
use tracing_subscriber::EnvFilter;

use crate::{
    config::{self, ConfigErrors, SnapshotHandle},
    identity::source::keeper::Keeper,
    lifecycle::{readiness::Readiness, signal::Signals},
    model::Snapshot,
    sys,
    telemetry::{admin::LogFilter, metrics::Metrics},
};

/// Usage or configuration: nothing was started.
const USAGE: u8 = 2;

/// Changes what is logged; set by [`init_log`].
static LOG_FILTER: OnceLock<LogFilter> = OnceLock::new();

/// The main thread's runtime, and the signals that end it: from here on one is an orderly end, however early it comes.
fn runtime() -> Result<(Runtime, Signals)> {
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let signals = {
        let _context = runtime.enter();
        Signals::new().context("signal handlers")?
    };
    Ok((runtime, signals))
}

/// Logs to standard error: text for people, with colours where there is a terminal.
pub fn init_log(filter: &str) -> Result<()> {
    let filter = parse_filter(filter).map_err(|error| Usage(format!("--log {error}")))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_target(false)
        .with_filter_reloading();
    let handle = builder.reload_handle();
    builder.init();
    let set = move |filter: &str| {
        let filter = parse_filter(filter)?;
        handle.reload(filter).map_err(|error| error.to_string())
    };
    // Called once, by `main`.
    let _ = LOG_FILTER.set(LogFilter(Arc::new(set)));
    Ok(())
}

/// A bare level is meant for the sidecar: libraries that talk much stay at info.
fn parse_filter(filter: &str) -> Result<EnvFilter, String> {
    const TALKATIVE: &str = "aya=info,aya_obj=info,h2=info,hyper=info,mio=info,notify=info";
    let bare = !filter.contains(['=', ',']);
    let full = if bare {
        format!("{filter},{TALKATIVE}")
    } else {
        filter.to_owned()
    };
    EnvFilter::try_new(full).map_err(|error| format!("{filter}: {error}"))
}

/// For the admin endpoint `/logging`.
fn log_filter() -> Option<LogFilter> {
    LOG_FILTER.get().cloned()
}

/// A mistake in how the command was called.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

/// Prints what went wrong, with its causes; the exit code says whose fault it is.
pub fn report(error: anyhow::Error) -> ExitCode {
    if let Some(errors) = error.downcast_ref::<ConfigErrors>() {
        eprintln!("{errors}");
        return ExitCode::from(USAGE);
    }
    eprintln!("sidecar: {error:#}");
    if error.is::<Usage>() {
        ExitCode::from(USAGE)
    } else {
        ExitCode::FAILURE
    }
}

/// The snapshot of the file, or the built-in one.
fn load(path: Option<&Path>) -> Result<Snapshot> {
    match path {
        Some(path) => Ok(config::load(path)?),
        None => Ok(Snapshot::builtin()),
    }
}

/// The identity that is configured, in force and kept so, through reloads as well.
fn identity(
    config: &SnapshotHandle,
    metrics: &Arc<Metrics>,
    readiness: &Readiness,
) -> Result<Arc<Keeper>> {
    let keeper = Keeper::start(&config.load(), metrics, readiness)?;
    config.follow(keeper.clone());
    Ok(keeper)
}

/// For a command that knows pods by their cgroups. Before any other thread is started.
fn look_from_the_node() {
    match sys::cgroupns::enter_nodes() {
        Ok(false) => {}
        Ok(true) => debug!("entered the node's cgroup namespace"),
        Err(error) => warn!(
            "cannot enter the cgroup namespace of process 1 ({error}), and go on in our own. In a container, give the agent hostPID, \
             CAP_SYS_PTRACE and CAP_SYS_ADMIN, and no AppArmor profile that forbids to look at other processes"
        ),
    }
}

/// Refuses early and in words what would fail late.
fn require_root(what: &str) -> Result<()> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Usage(format!(
        "{what} needs root (CAP_BPF, CAP_NET_ADMIN, CAP_SYS_ADMIN): try sudo"
    ))
    .into())
}
