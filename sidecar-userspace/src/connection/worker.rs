//! State of one worker, shared by its connections without locks: they all run on the worker's one thread.

use std::sync::Arc;

use super::{
    Recorder,
    accept::Places,
    balance::Balancer,
    buffers::Buffers,
    detect::Learned,
    doubt::Doubts,
    origin::{OriginSource, OwnPorts},
    resolve::Resolver,
    tunnel,
};
use crate::{
    config::watch::SnapshotHandle,
    http::Pool,
    lifecycle::{drain::DrainSignal, memory::MemoryPlan},
    telemetry::{access_log::AccessLog, metrics::Metrics},
    tls::{mesh::MeshHandle, origin::Origins},
};

/// What all workers of a proxy start from.
#[derive(Debug, Clone)]
pub struct Shared {
    pub metrics: Arc<Metrics>,
    pub log: AccessLog,
    pub drain: DrainSignal,
    pub snapshot: Arc<SnapshotHandle>,
    pub origin: Arc<dyn OriginSource>,
    pub own_ports: OwnPorts,
    pub places: Places,
    pub memory: MemoryPlan,
    pub mesh: Option<Arc<MeshHandle>>,
}

/// One per worker thread, for the life of the proxy.
#[derive(Debug)]
pub struct Worker {
    /// From 0.
    pub number: usize,
    pub recorder: Recorder,
    pub drain: DrainSignal,
    /// The configuration of the next connection.
    pub snapshot: Arc<SnapshotHandle>,
    pub origin: Arc<dyn OriginSource>,
    pub own_ports: OwnPorts,
    /// Shared by all workers.
    pub places: Places,
    pub balancer: Balancer,
    pub resolver: Resolver,
    pub buffers: Buffers,
    pub doubts: Doubts,
    pub learned: Learned,
    /// Connections to endpoints that requests share.
    pub http: Pool,
    /// Connections to other sidecars that connections of opaque bytes share.
    pub tunnels: tunnel::Pool,
    /// The identity in force; `None`: none is configured.
    pub mesh: Option<Arc<MeshHandle>>,
    /// What connections to servers outside the mesh are encrypted with.
    pub origins: Origins,
}

impl Worker {
    pub fn new(number: usize, shared: Shared) -> Self {
        let Shared {
            metrics,
            log,
            drain,
            snapshot,
            origin,
            own_ports,
            places,
            memory,
            mesh,
        } = shared;
        let workers = snapshot.load().workers.get();
        Self {
            number,
            recorder: Recorder::new(metrics, log, drain.clone()),
            drain,
            snapshot,
            origin,
            own_ports,
            places,
            balancer: Balancer::default(),
            resolver: Resolver::default(),
            buffers: Buffers::new(memory.backlog_of_each(workers)),
            doubts: Doubts::default(),
            learned: Learned::default(),
            http: Pool::default(),
            tunnels: tunnel::Pool::default(),
            mesh,
            origins: Origins::default(),
        }
    }
}

#[cfg(test)]
impl Worker {
    pub(crate) fn for_tests() -> Self {
        let metrics = Arc::new(Metrics::new().unwrap());
        let own_ports = OwnPorts {
            outbound: 0,
            steered: 0,
            inbound: 0,
        };
        let shared = Shared {
            log: AccessLog::for_tests(&metrics),
            metrics,
            drain: crate::lifecycle::drain::Drain::default().signal(),
            snapshot: SnapshotHandle::new(crate::model::Snapshot::builtin(), None),
            origin: Arc::new(super::origin::KernelOrigin { own_ports }),
            own_ports,
            places: Places::new(1024, 1024),
            memory: MemoryPlan::of_this_process(),
            mesh: None,
        };
        Self::new(0, shared)
    }
}
