//! Where identities come from, and how they stay valid.

mod ca;
mod files;
pub mod keeper;
mod workload_api;

use std::{path::PathBuf, sync::Arc};

use super::{Bundles, Material, ca::CaError, material::MaterialError, pem};
use crate::{
    config::watch::FileWatcher,
    lifecycle::readiness::Token,
    model::{Federated, Identity, IdentitySource, Workload},
    telemetry::metrics::Metrics,
    tls::mesh::{Mesh, MeshHandle},
};

/// An identity that is not in force yet.
#[derive(Debug)]
pub struct First {
    /// `None`: an agent has to be waited for.
    material: Option<Material>,
}

/// Keeps an identity up to date for as long as it lives.
#[derive(Debug)]
pub struct Source {
    _ca: Option<ca::Renewal>,
    _stream: Option<workload_api::Stream>,
    _files: Option<FileWatcher>,
}

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("identity: {0}")]
    Material(#[from] MaterialError),
    #[error("identity: {0}")]
    Ca(#[from] CaError),
    #[error("identity: {0}")]
    Id(#[from] super::SpiffeIdError),
    #[error("identity: {0}")]
    Tls(#[from] rustls::Error),
    #[error("identity: the Workload API at {socket}: {why}")]
    WorkloadApi { socket: String, why: String },
    #[error("identity: cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// Reads what is configured once, without keeping it up to date.
pub fn read(identity: &Identity, workload: &Workload) -> Result<Material, SourceError> {
    match &identity.source {
        IdentitySource::Files { .. } => Ok(files::read(identity)?),
        IdentitySource::Ca { .. } => ca::issue(identity, workload),
        IdentitySource::WorkloadApi { socket } => workload_api::once(socket, &identity.federation),
    }
}

impl First {
    /// Reads what is configured and tries it out.
    pub fn get(identity: &Identity, workload: &Workload) -> Result<Self, SourceError> {
        if matches!(identity.source, IdentitySource::WorkloadApi { .. }) {
            return Ok(Self { material: None });
        }
        let material = read(identity, workload)?;
        Mesh::new(material.clone(), identity.min_version)?;
        Ok(Self {
            material: Some(material),
        })
    }
}

impl Source {
    /// Puts the identity in force and keeps it so: the first time before it returns, except where an agent has to
    /// be waited for. `ready`: done when it is in force.
    pub fn start(
        identity: &Identity,
        workload: &Workload,
        handle: &Arc<MeshHandle>,
        metrics: &Arc<Metrics>,
        ready: Token,
    ) -> Result<Self, SourceError> {
        let first = First::get(identity, workload)?;
        Self::begin(first, identity, workload, handle, metrics, Some(ready))
    }

    /// As [`Source::start`], with what was read before.
    fn begin(
        first: First,
        identity: &Identity,
        workload: &Workload,
        handle: &Arc<MeshHandle>,
        metrics: &Arc<Metrics>,
        ready: Option<Token>,
    ) -> Result<Self, SourceError> {
        let renew = Arc::new(Renew {
            identity: identity.clone(),
            workload: workload.clone(),
            handle: handle.clone(),
            metrics: metrics.clone(),
        });
        if let IdentitySource::WorkloadApi { socket } = &identity.source {
            let stream = workload_api::Stream::start(renew, socket.clone(), ready);
            return Ok(Self {
                _ca: None,
                _stream: Some(stream.map_err(SourceError::Thread)?),
                _files: None,
            });
        }
        let material = first.material.ok_or(MaterialError::Empty)?;
        tracing::info!(
            id = %material.svid.id,
            trust_domains = ?material.bundles.iter().map(|(domain, _)| domain).collect::<Vec<_>>(),
            "this workload has an identity"
        );
        let life = ca::Life::of(&material);
        handle.replace(material, identity.min_version)?;
        if let Some(ready) = ready {
            ready.done();
        }
        let on_change = renew.clone();
        let files = FileWatcher::watch("identity-watch", watched(identity), move || {
            let _ = on_change.now();
        });
        if let Err(error) = &files {
            tracing::warn!("cannot watch the files of the identity: {error}");
        }
        let by_time = matches!(identity.source, IdentitySource::Ca { .. });
        let ca = by_time.then(|| ca::Renewal::start(renew, life)).transpose();
        Ok(Self {
            _ca: ca.map_err(SourceError::Thread)?,
            _stream: None,
            _files: files.ok(),
        })
    }
}

/// Reads everything again and puts it in force, or leaves what there is.
#[derive(Debug)]
struct Renew {
    identity: Identity,
    workload: Workload,
    handle: Arc<MeshHandle>,
    metrics: Arc<Metrics>,
}

impl Renew {
    fn now(&self) -> Option<ca::Life> {
        self.put(read(&self.identity, &self.workload))
    }

    fn put(&self, material: Result<Material, SourceError>) -> Option<ca::Life> {
        let renewed = material.and_then(|material| {
            let life = ca::Life::of(&material);
            let (id, serial) = (material.svid.id.clone(), material.svid.facts.serial.clone());
            self.handle.replace(material, self.identity.min_version)?;
            tracing::info!(%id, serial, "the identity was renewed");
            Ok(life)
        });
        let result = if renewed.is_ok() {
            "success"
        } else {
            "failure"
        };
        self.metrics.tls.renewals.with_label_values(&[result]).inc();
        renewed
            .inspect_err(|error| tracing::error!("{error}; what was in force stays"))
            .ok()
    }
}

/// The files on which the identity depends.
fn watched(identity: &Identity) -> Vec<PathBuf> {
    let mut all = match &identity.source {
        IdentitySource::Files {
            certificate,
            private_key,
            trust_bundle,
            ..
        } => vec![
            certificate.clone(),
            private_key.clone(),
            trust_bundle.clone(),
        ],
        IdentitySource::Ca { directory, .. } => vec![
            directory.join(super::ca::CERTIFICATE),
            directory.join(super::ca::KEY),
        ],
        IdentitySource::WorkloadApi { .. } => Vec::new(),
    };
    let federated = identity.federation.iter();
    all.extend(federated.map(|domain| domain.trust_bundle.clone()));
    all
}

/// Adds the roots of other trust domains.
fn federate(bundles: &mut Bundles, federation: &[Federated]) -> Result<(), MaterialError> {
    for Federated {
        trust_domain,
        trust_bundle,
    } in federation
    {
        bundles.add(trust_domain, pem::certificates(trust_bundle)?)?;
    }
    Ok(())
}
