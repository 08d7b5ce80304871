//! A worker thread: its listeners, and all that its connections share.

use std::{io, rc::Rc, sync::Arc};

use tokio::{net::TcpListener, runtime::LocalRuntime, sync::watch, task};

use super::end_when;
use crate::{
    config::watch::SnapshotHandle,
    connection::{
        self, Direction, Doubts, Recorder, Worker,
        accept::{self, Accepted, Places},
        balance::Balancer,
        buffers::Buffers,
        detect::Learned,
        listen::WorkerListeners,
        origin::{OriginSource, OwnPorts},
        resolve::Resolver,
        tunnel,
    },
    http::Pool,
    lifecycle::{
        drain::{DrainSignal, Phase},
        readiness::Token,
    },
    telemetry::{access_log::AccessLog, metrics::Metrics},
    tls::{mesh::MeshHandle, origin::Origins},
};

/// What a worker thread starts from.
pub(super) struct Seed {
    pub number: usize,
    pub listeners: WorkerListeners,
    pub metrics: Arc<Metrics>,
    pub log: AccessLog,
    pub drain: DrainSignal,
    pub snapshot: Arc<SnapshotHandle>,
    pub origin: Arc<dyn OriginSource>,
    pub own_ports: OwnPorts,
    pub places: Places,
    pub mesh: Option<Arc<MeshHandle>>,
    pub ready: Token,
    pub accepts_no_more: watch::Receiver<bool>,
}

impl Seed {
    pub fn run(self, runtime: &LocalRuntime) {
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
                doubts: Doubts::default(),
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

async fn listen(listener: TcpListener, direction: Direction, worker: Rc<Worker>) {
    let serve = |accepted: Accepted| {
        drop(task::spawn_local(connection::serve(
            accepted,
            worker.clone(),
        )))
    };
    match accept::accept(listener, direction, worker.clone(), serve).await {}
}
