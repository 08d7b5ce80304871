//! The identity of a running sidecar: the one that is configured, also after a reload has changed it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{First, Source, SourceError};
use crate::{
    config::watch::Follow,
    lifecycle::readiness::Readiness,
    model::{Identity, Snapshot, Workload},
    telemetry::metrics::Metrics,
    tls::mesh::MeshHandle,
};

/// Lives as long as the sidecar.
#[derive(Debug)]
pub struct Keeper {
    handle: Arc<MeshHandle>,
    metrics: Arc<Metrics>,
    kept: Mutex<Kept>,
}

/// What is in force, and what keeps it so. The embedded authority names workloads that have no id of their own.
#[derive(Debug)]
struct Kept {
    identity: Option<Identity>,
    workload: Workload,
    source: Option<Source>,
}

impl Keeper {
    /// With the identity of `snapshot`, if it has one.
    pub fn start(
        snapshot: &Snapshot,
        metrics: &Arc<Metrics>,
        readiness: &Readiness,
    ) -> Result<Arc<Self>, SourceError> {
        let handle = MeshHandle::new();
        let workload = &snapshot.workload;
        let source = snapshot.identity.as_ref().map(|identity| {
            let ready = readiness.token("identity");
            Source::start(identity, workload, &handle, metrics, ready)
        });
        let kept = Kept {
            identity: snapshot.identity.clone(),
            workload: workload.clone(),
            source: source.transpose()?,
        };
        Ok(Arc::new(Self {
            handle,
            metrics: metrics.clone(),
            kept: Mutex::new(kept),
        }))
    }

    pub fn handle(&self) -> &Arc<MeshHandle> {
        &self.handle
    }

    // What it guards is replaced as a whole: a panic leaves nothing half done.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Follow for Keeper {
    /// A new identity is in force before the configuration that asks for it. One that an agent gives comes later: what
    /// there was holds until then.
    fn prepare(&self, new: &Snapshot) -> Result<(), String> {
        let mut kept = self.lock();
        let Some(identity) = &new.identity else {
            return Ok(());
        };
        if kept.identity.as_ref() == Some(identity) && kept.workload == new.workload {
            return Ok(());
        }
        let told = |error: SourceError| error.to_string();
        let first = First::get(identity, &new.workload).map_err(told)?;
        // Its threads must not put back what they know.
        kept.source = None;
        kept.identity = None;
        let (handle, metrics) = (&self.handle, &self.metrics);
        let source = Source::begin(first, identity, &new.workload, handle, metrics, None);
        kept.source = Some(source.map_err(told)?);
        kept.identity = Some(identity.clone());
        kept.workload = new.workload.clone();
        Ok(())
    }

    /// Without an identity nothing asks for one any more.
    fn commit(&self, new: &Snapshot) {
        let mut kept = self.lock();
        if new.identity.is_none() && kept.identity.take().is_some() {
            kept.source = None;
            self.handle.clear();
            tracing::info!("this workload has no identity any more");
        }
    }
}
