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
    enrol::proxy::Told,
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
/// `agent`: what the node's agent says, where the application is somebody else's. `reloaded` is called with each new
/// snapshot.
pub async fn supervise(
    mut signals: Signals,
    proxy: ProxyHandle,
    config: Arc<SnapshotHandle>,
    mut application: Option<Application>,
    agent: Option<Told>,
    mut reloaded: impl FnMut(&Snapshot),
) -> Result<Option<ExitStatus>> {
    let mut quit = signal(SignalKind::quit())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    let mut resized = signal(SignalKind::window_change())?;
    let _watcher = FileWatcher::start(config.clone()).context("watching the configuration file")?;
    let mut generations = config.subscribe();
    let mut ending: Option<Instant> = None;
    // When it has been alone for long enough.
    let mut leaving: Option<Instant> = None;
    let mut status = None;
    let mut pod = Pod::new(agent);
    if !pod.is_waiting() {
        tell_systemd(NotifyState::Ready);
    }
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
                        None if pod.has_company => {
                            let patience = config.load().lifecycle.wait_for_application;
                            info!(?patience, "serving on until the application has gone");
                            ending = Some(Instant::now() + patience);
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
            () = until(leaving) => {
                leaving = None;
                info!("the application has gone: ending");
                proxy.drain();
            }
            () = until(ending) => {
                ending = None;
                match &application {
                    Some(application) => {
                        warn!("the application has not ended in time: killing it");
                        (application.signal_all)(Posix::KILL);
                    }
                    None => proxy.drain(),
                }
            }
            news = pod.news() => match news {
                News::Enrolled => tell_systemd(NotifyState::Ready),
                News::Superseded => proxy.hand_over(),
                News::Company => leaving = None,
                News::Alone => {
                    let lifecycle = config.load().lifecycle.clone();
                    let patience = match ending {
                        Some(_) => Some(Duration::ZERO),
                        None => lifecycle.exit_when_alone.then_some(lifecycle.alone_for),
                    };
                    if let Some(patience) = patience.filter(|patience| !patience.is_zero()) {
                        info!(?patience, "the application has gone: ending if it does not come back");
                    }
                    leaving = patience.map(|patience| Instant::now() + patience);
                }
            },
            () = proxy.ended() => break,
        }
    }
    proxy.join();
    Ok(status)
}

/// The pod of a sidecar that an agent attached, as far as the agent tells.
struct Pod {
    agent: Option<Told>,
    enrolled: bool,
    has_company: bool,
}

enum News {
    Enrolled,
    Superseded,
    /// There are others in the pod.
    Company,
    /// There were others in the pod, and now there are none.
    Alone,
}

impl Pod {
    fn new(agent: Option<Told>) -> Self {
        Self {
            agent,
            enrolled: false,
            has_company: false,
        }
    }

    /// For the agent to attach.
    fn is_waiting(&self) -> bool {
        self.agent.is_some() && !self.enrolled
    }

    /// May be dropped and called again.
    async fn news(&mut self) -> News {
        let waiting = self.is_waiting();
        let Some(agent) = &mut self.agent else {
            return std::future::pending().await;
        };
        loop {
            let (had, superseded) = (self.has_company, agent.superseded.clone());
            tokio::select! {
                Ok(_) = agent.enrolled.wait_for(|enrolled| *enrolled), if waiting => {
                    self.enrolled = true;
                    return News::Enrolled;
                }
                Ok(()) = agent.superseded.changed() => {
                    if *superseded.borrow() {
                        return News::Superseded;
                    }
                }
                Ok(company) = agent.company.wait_for(|company| company.is_some_and(|now| now != had)) => {
                    self.has_company = *company == Some(true);
                    return match self.has_company {
                        true => News::Company,
                        false => News::Alone,
                    };
                }
                // The client has ended: it was superseded, and that was said.
                else => return std::future::pending().await,
            }
        }
    }
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
pub fn tell_systemd(state: NotifyState<'_>) {
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
