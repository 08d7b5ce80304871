//! The proxy, put together: worker threads, the admin thread, and the handle by which they are ended.

mod control;
mod worker;

use std::{io, net::SocketAddr, sync::Arc, thread, time::Instant};

use tokio::{
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, watch},
    task,
};

use self::{control::Control, worker::Seed};
use crate::{
    config::watch::SnapshotHandle,
    connection::{
        Shared,
        accept::Places,
        listen::Listeners,
        origin::{KernelOrigin, OriginSource},
    },
    lifecycle::{
        descriptors,
        drain::{Drain, DrainTrigger},
        memory::MemoryPlan,
        readiness::Readiness,
    },
    telemetry::{
        access_log::{AccessLog, OpenError, Writer},
        admin::{Admin, LogFilter},
        metrics::Metrics,
    },
    tls::mesh::MeshHandle,
};

/// Threads for blocking calls of one worker: name look-ups only.
const MAX_BLOCKING_THREADS: usize = 4;

/// What a proxy is started with.
#[derive(Debug)]
pub struct Proxy {
    /// The configuration; connections accepted after a reload have the new one.
    pub snapshot: Arc<SnapshotHandle>,
    /// Bound before, so that connections can be steered to them from the start.
    pub listeners: Listeners,
    pub metrics: Arc<Metrics>,
    pub readiness: Readiness,
    pub origin: Arc<dyn OriginSource>,
    pub log_filter: Option<LogFilter>,
    /// The workload's identity; `None`: none is configured.
    pub mesh: Option<Arc<MeshHandle>>,
}

/// The ports in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    pub outbound: u16,
    pub inbound: u16,
    pub admin: SocketAddr,
    pub metrics: SocketAddr,
    pub health: SocketAddr,
}

/// A running proxy. Dropping it does not end it; [`ProxyHandle::drain`] and [`ProxyHandle::join`] do.
#[derive(Debug)]
pub struct ProxyHandle {
    ports: Ports,
    readiness: Readiness,
    metrics: Arc<Metrics>,
    log: AccessLog,
    places: Places,
    /// Asks the control thread to drain.
    quit: mpsc::Sender<()>,
    trigger: DrainTrigger,
    /// `true`: another sidecar accepts from our listeners.
    handed_over: watch::Sender<bool>,
    /// `true` when every connection has ended.
    ended: watch::Receiver<bool>,
    threads: Vec<thread::JoinHandle<()>>,
    _writer: Writer,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    AccessLog(#[from] OpenError),
    #[error("cannot start the thread {name}: {source}")]
    Thread { name: String, source: io::Error },
    #[error("a worker cannot use its listeners: {0}")]
    Listener(io::Error),
}

impl Proxy {
    /// A proxy for connections that the kernel half steers.
    pub fn new(snapshot: Arc<SnapshotHandle>, listeners: Listeners, metrics: Arc<Metrics>) -> Self {
        let origin = KernelOrigin {
            own_ports: listeners.ports,
        };
        Self {
            snapshot,
            listeners,
            metrics,
            readiness: Readiness::default(),
            origin: Arc::new(origin),
            log_filter: None,
            mesh: None,
        }
    }

    /// Starts the threads; connections are accepted from now on. Raises the process's limit of descriptors.
    pub fn start(self) -> Result<ProxyHandle, StartError> {
        let Self {
            snapshot,
            listeners,
            metrics,
            readiness,
            origin,
            log_filter,
            mesh,
        } = self;
        let Listeners {
            ports: own_ports,
            workers,
            admin,
        } = listeners;
        let ports = Ports {
            outbound: own_ports.outbound,
            inbound: own_ports.inbound,
            admin: admin.admin.local_addr().map_err(StartError::Listener)?,
            metrics: admin.metrics.local_addr().map_err(StartError::Listener)?,
            health: admin.health.local_addr().map_err(StartError::Listener)?,
        };
        let (log, writer) = AccessLog::start(&snapshot.load().access_log, &metrics)?;
        descriptors::raise_limit();
        let memory = MemoryPlan::of_this_process();
        let places = Places::new(descriptors::available(), memory.connections);
        say_limits(&memory, &places, snapshot.load().limits.connections);
        let drain = Drain::default();
        let signal = drain.signal();
        let trigger = drain.trigger();
        let (quit, quit_asked) = mpsc::channel(1);
        let (ended_sender, ended) = watch::channel(false);
        let (handed_over, accepts_no_more) = watch::channel(false);
        let shared = Shared {
            metrics: metrics.clone(),
            log: log.clone(),
            drain: signal.clone(),
            snapshot: snapshot.clone(),
            origin,
            own_ports,
            places: places.clone(),
            memory: memory.clone(),
            mesh: mesh.clone(),
        };
        let mut threads = Vec::new();
        for (number, listeners) in workers.into_iter().enumerate() {
            let seed = Seed {
                number,
                shared: shared.clone(),
                listeners,
                ready: readiness.token("workers"),
                accepts_no_more: accepts_no_more.clone(),
            };
            threads.push(spawn(format!("worker-{number}"), move |runtime| {
                seed.run(runtime)
            })?);
        }
        let told = Arc::new(Admin {
            metrics: metrics.clone(),
            snapshot: snapshot.clone(),
            readiness: readiness.clone(),
            memory,
            places: places.clone(),
            drain: signal,
            started: Instant::now(),
            quit: quit.clone(),
            set_log_filter: log_filter,
            mesh,
        });
        let control = Control {
            admin,
            told,
            drain,
            quit_asked,
            snapshot,
            log: log.clone(),
            places: places.clone(),
            ended: ended_sender,
            accepts_no_more,
        };
        threads.push(spawn("control".to_owned(), move |runtime| {
            control.run(runtime)
        })?);
        Ok(ProxyHandle {
            ports,
            readiness,
            metrics,
            log,
            places,
            quit,
            trigger,
            handed_over,
            ended,
            threads,
            _writer: writer,
        })
    }
}

impl ProxyHandle {
    pub fn ports(&self) -> Ports {
        self.ports
    }

    pub fn readiness(&self) -> &Readiness {
        &self.readiness
    }

    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Opens the access log by its name again.
    pub fn reopen_logs(&self) {
        self.log.reopen();
    }

    /// Connections being served.
    pub fn connections(&self) -> usize {
        self.places.taken()
    }

    /// Starts the drain: connections may end within `timeouts.drain`, then they are reset.
    pub fn drain(&self) {
        // Full or closed: it was asked before.
        let _ = self.quit.try_send(());
    }

    /// Closes the listeners, which another sidecar has taken over, and drains.
    pub fn hand_over(&self) {
        self.handed_over.send_replace(true);
        self.drain();
    }

    /// Ends every connection now.
    pub fn end_now(&self) {
        self.drain();
        self.trigger.end_now();
    }

    /// Resolves when the proxy has ended after a drain.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error: the thread that would say so is gone.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Waits for the threads; returns soon after the drain.
    pub fn join(self) {
        for thread in self.threads {
            // A panic was printed by its thread.
            let _ = thread.join();
        }
    }
}

/// Says how many connections may be served at once, and why not more.
fn say_limits(memory: &MemoryPlan, places: &Places, configured: Option<usize>) {
    let connections = places.limit(configured);
    let backlog_bytes = memory.backlog_bytes;
    match &memory.limit {
        Some(limit) => tracing::info!(
            connections,
            backlog_bytes,
            memory_bytes = limit.bytes,
            from = %limit.source.display(),
            "limits"
        ),
        None => tracing::info!(connections, backlog_bytes, "limits; the memory is unknown"),
    }
    if configured.is_some_and(|configured| configured > memory.connections) {
        tracing::warn!(
            suffices_for = memory.connections,
            "limits.connections is more than the memory suffices for: raise the memory limit, or lower it"
        );
    }
}

/// Ends tasks, and closes what they listen on, once others do their work.
fn end_when(mut handed_over: watch::Receiver<bool>, tasks: Vec<task::JoinHandle<()>>) {
    task::spawn_local(async move {
        // An error: the process ends.
        if handed_over
            .wait_for(|handed_over| *handed_over)
            .await
            .is_ok()
        {
            tasks.iter().for_each(task::JoinHandle::abort);
        }
    });
}

/// A named thread with a runtime of its own, which is gone, with its tasks, when the thread ends.
fn spawn(
    name: String,
    run: impl FnOnce(&LocalRuntime) + Send + 'static,
) -> Result<thread::JoinHandle<()>, StartError> {
    let failed = |source| StartError::Thread {
        name: name.clone(),
        source,
    };
    let thread = thread::Builder::new().name(name.clone()).spawn(move || {
        let mut builder = Builder::new_current_thread();
        builder
            .enable_all()
            .max_blocking_threads(MAX_BLOCKING_THREADS);
        match builder.build_local(LocalOptions::default()) {
            Ok(runtime) => {
                run(&runtime);
                // A name look-up that hangs must not hold up the end.
                runtime.shutdown_background();
            }
            Err(error) => tracing::error!(%error, "a thread cannot have a runtime"),
        }
    });
    thread.map_err(failed)
}
