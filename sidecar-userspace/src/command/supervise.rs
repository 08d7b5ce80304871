//! The life of a running sidecar: signals, reloads, the application, the end.

use std::{process::ExitStatus, sync::Arc, time::Duration};

use anyhow::{Context, Result};
use rustix::process::Signal as Posix;
use sd_notify::NotifyState;
use tokio::{
    process::Child,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    config::{FileWatcher, SnapshotHandle},
    lifecycle::signal::{Signal, Signals},
    model::Snapshot,
    proxy::ProxyHandle,
};

/// The application that the sidecar started.
pub struct Application {
    pub child: Child,
    /// Signals every process of it.
    pub signal_all: Box<dyn Fn(Posix)>,
}

/// Serves until the application ends or a signal says so, then drains. Returns the application's status, if
/// there was one and it ended.
///
/// `reloaded` is called with each new snapshot.
pub async fn supervise(
    mut signals: Signals,
    proxy: ProxyHandle,
    config: Arc<SnapshotHandle>,
    mut application: Option<Application>,
    mut reloaded: impl FnMut(&Snapshot),
) -> Result<Option<ExitStatus>> {
    let mut quit = signal(SignalKind::quit())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    let mut resized = signal(SignalKind::window_change())?;
    let _watcher = FileWatcher::start(config.clone()).context("watching the configuration file")?;
    let mut generations = config.subscribe();
    let mut ending: Option<Instant> = None;
    let mut status = None;
    tell_systemd(NotifyState::Ready);
    loop {
        tokio::select! {
            what = signals.next() => match what {
                Signal::Terminate if ending.is_none() => {
                    tell_systemd(NotifyState::Stopping);
                    let patience = config.load().timeouts.drain;
                    ending = Some(Instant::now() + patience);
                    match &application {
                        // It may still need its connections; the proxy drains when it has gone.
                        Some(application) => {
                            info!(?patience, "terminating the application");
                            forward(application, Posix::TERM);
                        }
                        None => proxy.drain(),
                    }
                }
                Signal::Terminate => {
                    warn!("told twice: ending at once");
                    if let Some(application) = &application {
                        (application.signal_all)(Posix::KILL);
                    }
                    proxy.end_now();
                }
                // Reads files: not on this thread, which serves events of the kernel half.
                Signal::Reload => drop(tokio::task::spawn_blocking({
                    let config = config.clone();
                    move || config.reload().is_ok()
                })),
                Signal::ReopenLogs => proxy.reopen_logs(),
            },
            _ = quit.recv() => forward_if(&application, Posix::QUIT),
            _ = user2.recv() => forward_if(&application, Posix::USR2),
            _ = resized.recv() => forward_if(&application, Posix::WINCH),
            Ok(()) = generations.changed() => {
                let snapshot = config.load();
                info!(generation = snapshot.generation, "a new configuration is in force");
                reloaded(&snapshot);
            }
            exited = wait(&mut application) => {
                match exited {
                    Ok(exited) => {
                        info!(%exited, "the application has ended");
                        status = Some(exited);
                    }
                    Err(error) => error!(%error, "the application is lost"),
                }
                // Processes that it left behind would lose their proxy.
                if let Some(application) = application.take() {
                    (application.signal_all)(Posix::TERM);
                }
                proxy.drain();
            }
            () = until(ending) => {
                ending = None;
                if let Some(application) = &application {
                    warn!("the application has not ended in time: killing it");
                    (application.signal_all)(Posix::KILL);
                }
            }
            () = proxy.ended() => break,
        }
    }
    proxy.join();
    Ok(status)
}

async fn wait(application: &mut Option<Application>) -> std::io::Result<ExitStatus> {
    match application {
        Some(application) => application.child.wait().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn forward_if(application: &Option<Application>, signal: Posix) {
    if let Some(application) = application {
        forward(application, signal);
    }
}

/// To the process that was started; what it does with its own children is its affair.
fn forward(application: &Application, signal: Posix) {
    let pid = application
        .child
        .id()
        .and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw)
        && let Err(error) = rustix::process::kill_process(pid, signal)
    {
        warn!(?signal, %error, "a signal could not be forwarded");
    }
}

/// Under systemd with `Type=notify`.
fn tell_systemd(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        warn!(%error, "systemd could not be told");
    }
}

/// The exit code of a process as a shell says it.
pub fn exit_code(status: ExitStatus) -> u8 {
    use std::os::unix::process::ExitStatusExt;
    let code = status.code().or_else(|| Some(128 + status.signal()?));
    code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
}

/// How long processes that the application left behind may take to end.
pub const LEFT_BEHIND: Duration = Duration::from_secs(2);
