//! Keeps the webhook's certificate in force: from the Secret that replicas share, or from files. The API server is told
//! whom to believe (`caBundle`) before a certificate is shown.

use std::{
    cell::RefCell,
    fs, io,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwapOption;
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use serde_json::{Value, json};
use tokio::time::sleep;
use tracing::{info, warn};

use super::certificate::{CertificateError, Kept, Terms};
use crate::{
    identity::{
        certificate::Facts,
        pem::{self, PemError, Readers},
    },
    kubernetes::{Api, ApiError, api::PatchKind},
    lifecycle::readiness::Token,
};

/// How often the Secret, the `caBundle` and files are looked at.
const LOOK: Duration = Duration::from_secs(60);
const LOOK_AT_FILES: Duration = Duration::from_secs(10);
/// After a failure; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// API servers that have just been told of a new authority have to hear of it before it is relied on.
const HEARSAY: Duration = Duration::from_secs(10);
/// How often replicas that are at it at once try again without a pause.
const RACES: usize = 10;

/// The certificate that is shown. Shared by the keeper, the TLS server and the metrics.
#[derive(Debug, Default)]
pub struct Shown(ArcSwapOption<CertifiedKey>);

impl Shown {
    /// When it ends; `None`: there is none yet.
    pub fn not_after(&self) -> Option<SystemTime> {
        let shown = self.0.load();
        let leaf = shown.as_ref()?.cert.first()?;
        Facts::of(leaf).ok().map(|facts| facts.not_after)
    }

    /// Whether it is another one than before.
    fn show(&self, own: CertifiedKey) -> bool {
        let old = self.0.load();
        let same = old.as_ref().is_some_and(|old| old.cert == own.cert);
        if !same {
            self.0.store(Some(Arc::new(own)));
        }
        !same
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Where the certificate comes from.
#[derive(Debug)]
pub enum Keeper {
    /// We make it ourselves.
    Own(Own),
    /// Somebody else renews these files.
    Files { certificate: PathBuf, key: PathBuf },
}

#[derive(Debug)]
pub struct Own {
    pub api: Api,
    pub terms: Terms,
    /// Of the Secret.
    pub namespace: String,
    pub secret: String,
    /// A MutatingWebhookConfiguration.
    pub configuration: String,
    /// The authorities behind what is shown.
    pub relied_on: RefCell<Option<String>>,
}

#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    #[error(transparent)]
    Api(#[from] ApiError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("certificate and key: {0}")]
    Tls(#[from] rustls::Error),
    #[error("the certificate cannot be read: {0}")]
    Facts(#[from] crate::identity::certificate::CertificateError),
    #[error("the certificate ended at {0:?}")]
    Ended(SystemTime),
    #[error("cannot look at {path}: {source}")]
    Look { path: PathBuf, source: io::Error },
    #[error("other replicas are always quicker")]
    Races,
}

impl Keeper {
    /// Until its future is dropped. `ready` once there is a certificate.
    pub async fn keep(self, shown: Arc<Shown>, ready: Token) -> std::convert::Infallible {
        let mut ready = Some(ready);
        let mut pause = FIRST_PAUSE;
        loop {
            match self.look(&shown).await {
                Ok(wait) => {
                    pause = FIRST_PAUSE;
                    if let Some(ready) = ready.take() {
                        ready.done();
                    }
                    sleep(wait).await;
                }
                Err(error) => {
                    match shown.not_after() {
                        Some(_) => warn!(%error, "the certificate stays as it is"),
                        None => warn!(%error, "there is no certificate yet"),
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
        }
    }

    /// When to look again.
    async fn look(&self, shown: &Shown) -> Result<Duration, KeepError> {
        let (own, wait) = match self {
            Self::Own(own) => {
                let kept = own.kept().await?;
                own.tell(&kept).await?;
                if let Some(not_after) = shown.not_after() {
                    own.wait_for_hearsay(&kept, not_after).await;
                }
                own.relied_on.replace(Some(kept.bundle()));
                // Not all replicas at once.
                let due = kept.until_renewal(&own.terms, SystemTime::now())?;
                let due = due.mul_f64(0.9 + 0.1 * fastrand::f64());
                (kept.certified()?, due.min(LOOK))
            }
            Self::Files { certificate, key } => {
                let chain = pem::certificates(certificate)?;
                if let Some(leaf) = chain.first() {
                    let not_after = Facts::of(leaf)?.not_after;
                    if not_after < SystemTime::now() {
                        return Err(KeepError::Ended(not_after));
                    }
                }
                // A Secret's files belong to root, and only this container has them.
                let key = any_supported_type(&*pem::private_key(key, Readers::Any)?)?;
                let own = CertifiedKey::new(chain, key);
                own.keys_match()?;
                (own, LOOK_AT_FILES)
            }
        };
        if shown.show(own) {
            info!(not_after = ?shown.not_after(), "a new certificate is in force");
        }
        // Renewals are no busy loop, however short the lives are.
        Ok(wait.max(Duration::from_millis(200)))
    }
}

impl Keeper {
    /// Refuses early what would fail for ever.
    ///
    /// # Errors
    ///
    /// A file is not there.
    pub fn check(&self) -> Result<(), KeepError> {
        if let Self::Files { certificate, key } = self {
            for path in [certificate, key] {
                fs::metadata(path).map_err(|source| KeepError::Look {
                    path: path.clone(),
                    source,
                })?;
            }
        }
        Ok(())
    }
}

impl Own {
    /// What the Secret has, made or renewed where that is due. Whoever is first to write wins.
    async fn kept(&self) -> Result<Kept, KeepError> {
        for _ in 0..RACES {
            match self.try_kept().await {
                Err(KeepError::Api(ApiError::Conflict(_))) => {}
                result => return result,
            }
            sleep(Duration::from_millis(fastrand::u64(10..100))).await;
        }
        Err(KeepError::Races)
    }

    async fn try_kept(&self) -> Result<Kept, KeepError> {
        let all = format!("/api/v1/namespaces/{}/secrets", self.namespace);
        let path = format!("{all}/{}", self.secret);
        let mut secret = match self.api.get(&path).await {
            Ok(secret) => secret,
            Err(ApiError::NotFound(_)) => {
                let kept = Kept::new(&self.terms)?;
                self.api.post(&all, &self.new_secret(&kept)).await?;
                info!(secret = self.secret, "made an authority and a certificate");
                return Ok(kept);
            }
            Err(error) => return Err(error.into()),
        };
        let now = SystemTime::now();
        let found = Kept::from_data(&secret["data"]).and_then(|kept| {
            let due = kept.until_renewal(&self.terms, now)?.is_zero();
            Ok((kept, due))
        });
        let new = match found {
            Ok((kept, false)) => return Ok(kept),
            Ok((kept, true)) => kept.renewed(&self.terms)?,
            Err(error) => {
                // An empty one that came with the manifests, too.
                warn!(%error, secret = self.secret, "making a new authority");
                Kept::new(&self.terms)?
            }
        };
        secret["data"] = new.to_data();
        // It has the version that was read, so that of several replicas one succeeds.
        self.api.put(&path, &secret).await?;
        info!(secret = self.secret, "made a new certificate");
        Ok(new)
    }

    /// While the old certificate lasts, a new authority can wait.
    async fn wait_for_hearsay(&self, kept: &Kept, not_after: SystemTime) {
        if self.relied_on.borrow().as_ref() == Some(&kept.bundle()) {
            return;
        }
        let left = not_after.duration_since(SystemTime::now());
        sleep(HEARSAY.min(left.unwrap_or_default() / 2)).await;
    }

    fn new_secret(&self, kept: &Kept) -> Value {
        json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": "Opaque",
            "metadata": {
                "name": self.secret,
                "namespace": self.namespace,
                "labels": { "app.kubernetes.io/name": "sidecar-inject", "app.kubernetes.io/managed-by": "sidecar" },
            },
            "data": kept.to_data(),
        })
    }

    /// Puts the authorities into the webhook's configuration, if they are not there.
    async fn tell(&self, kept: &Kept) -> Result<(), KeepError> {
        let path = format!(
            "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/{}",
            self.configuration
        );
        let bundle = kept.bundle();
        for _ in 0..RACES {
            let configuration = self.api.get(&path).await?;
            let webhooks = configuration["webhooks"].as_array();
            let lacking: Vec<Value> = webhooks
                .into_iter()
                .flatten()
                .filter(|webhook| webhook["clientConfig"]["caBundle"] != bundle.as_str())
                .map(|webhook| json!({ "name": webhook["name"], "clientConfig": { "caBundle": bundle } }))
                .collect();
            if lacking.is_empty() {
                return Ok(());
            }
            let version = &configuration["metadata"]["resourceVersion"];
            let change = json!({ "metadata": { "resourceVersion": version }, "webhooks": lacking });
            match self
                .api
                .patch(&path, PatchKind::StrategicMerge, &change)
                .await
            {
                Ok(_) => {
                    info!(
                        configuration = self.configuration,
                        "the API server knows whom to believe"
                    );
                    return Ok(());
                }
                Err(ApiError::Conflict(_)) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(KeepError::Races)
    }
}
