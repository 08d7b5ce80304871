//! The proxy, put together: worker threads, the admin thread, and the handle by which they are ended.

use std::{convert::Infallible, io, net::SocketAddr, rc::Rc, sync::Arc, thread, time::Instant};

use tokio::{
    net::TcpListener,
    runtime::{Builder, LocalOptions, LocalRuntime},
    sync::{mpsc, watch},
    task,
};

use crate::{
    config::watch::SnapshotHandle,
    connection::{
        self, Direction, Recorder, Worker,
        accept::{self, Accepted, Places},
        balance::Balancer,
        buffers::Buffers,
        detect::Learned,
        listen::{AdminListeners, Listeners, WorkerListeners},
        origin::{KernelOrigin, OriginSource, OwnPorts},
        resolve::Resolver,
        tunnel,
    },
    http::Pool,
    jwt,
    lifecycle::{
        descriptors,
        drain::{Drain, DrainSignal, DrainTrigger, Phase},
        readiness::{Readiness, Token},
        thrift,
    },
    telemetry::{
        access_log::{AccessLog, OpenError, Writer},
        admin::{self, Admin, LogFilter, Scope},
        metrics::Metrics,
    },
    tls::{mesh::MeshHandle, origin::Origins},
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
        let places = Places::new(descriptors::available());
        let drain = Drain::default();
        let signal = drain.signal();
        let trigger = drain.trigger();
        let (quit, quit_asked) = mpsc::channel(1);
        let (ended_sender, ended) = watch::channel(false);
        let (handed_over, accepts_no_more) = watch::channel(false);
        let mut threads = Vec::new();
        for (number, listeners) in workers.into_iter().enumerate() {
            let seed = Seed {
                number,
                listeners,
                metrics: metrics.clone(),
                log: log.clone(),
                drain: signal.clone(),
                snapshot: snapshot.clone(),
                origin: origin.clone(),
                own_ports,
                places: places.clone(),
                mesh: mesh.clone(),
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

/// What a worker thread starts from.
struct Seed {
    number: usize,
    listeners: WorkerListeners,
    metrics: Arc<Metrics>,
    log: AccessLog,
    drain: DrainSignal,
    snapshot: Arc<SnapshotHandle>,
    origin: Arc<dyn OriginSource>,
    own_ports: OwnPorts,
    places: Places,
    mesh: Option<Arc<MeshHandle>>,
    ready: Token,
    accepts_no_more: watch::Receiver<bool>,
}

impl Seed {
    fn run(self, runtime: &LocalRuntime) {
        let Self {
            number,
            listeners,
            metrics,
            log,
            drain,
            snapshot,
            origin,
            own_ports,
            places,
            mesh,
            ready,
            accepts_no_more,
        } = self;
        runtime.block_on(async move {
            let worker = Rc::new(Worker {
                number,
                recorder: Recorder::new(metrics, log, drain.clone()),
                drain: drain.clone(),
                snapshot,
                origin,
                own_ports,
                places,
                balancer: Balancer::default(),
                resolver: Resolver::default(),
                buffers: Buffers::default(),
                learned: Learned::default(),
                http: Pool::default(),
                tunnels: tunnel::Pool::default(),
                mesh,
                origins: Origins::default(),
            });
            let inbound = std::iter::once((Direction::Inbound, listeners.inbound));
            let outbound = listeners
                .outbound
                .into_iter()
                .map(|listener| (Direction::Outbound, listener));
            let listeners: io::Result<Vec<_>> = inbound
                .chain(outbound)
                .map(|(direction, listener)| Ok((direction, TcpListener::from_std(listener)?)))
                .collect();
            match listeners {
                Ok(listeners) => {
                    let accepting = listeners.into_iter().map(|(direction, listener)| {
                        task::spawn_local(listen(listener, direction, worker.clone()))
                    });
                    end_when(accepts_no_more, accepting.collect());
                    ready.done();
                }
                Err(error) => tracing::error!(%error, number, "a worker cannot use its listeners"),
            }
            drain.reached(Phase::Ended).await;
        });
        // The runtime is dropped by the caller, and with it the tasks of connections that are left: they reset
        // their sockets and record why.
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

async fn listen(listener: TcpListener, direction: Direction, worker: Rc<Worker>) {
    let serve = |accepted: Accepted| {
        drop(task::spawn_local(connection::serve(
            accepted,
            worker.clone(),
        )))
    };
    match accept::accept(listener, direction, worker.clone(), serve).await {}
}

/// The thread that answers the admin endpoints and runs the drain.
struct Control {
    admin: AdminListeners,
    told: Arc<Admin>,
    drain: Drain,
    quit_asked: mpsc::Receiver<()>,
    snapshot: Arc<SnapshotHandle>,
    log: AccessLog,
    places: Places,
    ended: watch::Sender<bool>,
    accepts_no_more: watch::Receiver<bool>,
}

impl Control {
    fn run(self, runtime: &LocalRuntime) {
        let Self {
            admin,
            told,
            drain,
            mut quit_asked,
            snapshot,
            log,
            places,
            ended,
            accepts_no_more,
        } = self;
        runtime.block_on(async move {
            let endpoints = [
                (admin.admin, Scope::Admin),
                (admin.metrics, Scope::Metrics),
                (admin.health, Scope::Health),
            ];
            let mut answering = Vec::new();
            for (listener, scope) in endpoints {
                match TcpListener::from_std(listener) {
                    Ok(listener) => {
                        let serve = admin::serve(listener, scope, told.clone());
                        answering.push(task::spawn_local(async move { match serve.await {} }));
                    }
                    Err(error) => {
                        tracing::error!(%error, ?scope, "an admin endpoint cannot be served")
                    }
                }
            }
            let fetch = jwt::remote::follow(told.metrics.clone());
            end_when(accepts_no_more, answering);
            let follow = follow_configuration(snapshot.clone(), log);
            tokio::select! {
                _ = quit_asked.recv() => {}
                never = follow => match never {},
                never = refresh_keys() => match never {},
                never = thrift::keep(|| places.taken()) => match never {},
                never = fetch => match never {},
            }
            let patience = snapshot.load().timeouts.drain;
            tracing::info!(?patience, "draining");
            let clean = drain.run(patience).await;
            tracing::info!(clean, "drained");
            ended.send_replace(true);
        });
    }
}

/// Applies what a reload may change beside the snapshot that connections take.
async fn follow_configuration(snapshot: Arc<SnapshotHandle>, log: AccessLog) -> Infallible {
    let mut changes = snapshot.subscribe();
    while changes.changed().await.is_ok() {
        log.configure(&snapshot.load().access_log);
    }
    std::future::pending().await
}

/// Follows the files of keys for tokens. Reading them may take long, on a slow disk: never on the control thread.
async fn refresh_keys() -> Infallible {
    loop {
        tokio::time::sleep(jwt::keys::REFRESH).await;
        // It panics only if reading does, and then the next turn tries again.
        let _ = task::spawn_blocking(jwt::keys::refresh).await;
    }
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
