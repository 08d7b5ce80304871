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
    lifecycle::drain::DrainSignal,
    tls::{mesh::MeshHandle, origin::Origins},
};

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

#[cfg(test)]
impl Worker {
    pub(crate) fn for_tests() -> Self {
        let metrics = Arc::new(crate::telemetry::metrics::Metrics::new().unwrap());
        let drain = crate::lifecycle::drain::Drain::default().signal();
        let own_ports = OwnPorts {
            outbound: 0,
            inbound: 0,
        };
        Self {
            number: 0,
            recorder: Recorder::for_tests(&metrics),
            drain,
            snapshot: SnapshotHandle::new(crate::model::Snapshot::builtin(), None),
            origin: Arc::new(super::origin::KernelOrigin { own_ports }),
            own_ports,
            places: Places::new(1024),
            balancer: Balancer::default(),
            resolver: Resolver::default(),
            buffers: Buffers::default(),
            doubts: Doubts::default(),
            learned: Learned::default(),
            http: Pool::default(),
            tunnels: tunnel::Pool::default(),
            mesh: None,
            origins: Origins::default(),
        }
    }
}
