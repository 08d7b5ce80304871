//! An identity from the SPIFFE Workload API: a stream on a Unix socket, which brings every renewal.
//!
//! The agent behind the socket may start later than the sidecar, and go away meanwhile: it is asked again, and what
//! it gave last stays in force.

use std::{
    io,
    pin::pin,
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use futures_util::StreamExt;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use spiffe::{WorkloadApiClient, X509Context};
use tokio::{runtime::Builder, sync::oneshot, time::sleep};

use super::{Renew, SourceError};
use crate::{
    identity::{Bundles, Material, Svid, TrustDomain, material::MaterialError},
    lifecycle::readiness::Token,
    model::Federated,
};

/// Between two attempts to reach the agent; doubles up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The thread that follows the stream. Dropping it ends the thread.
#[derive(Debug)]
pub(super) struct Stream {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// `ready`: done with the first identity.
    pub fn start(renew: Arc<Renew>, socket: String, ready: Option<Token>) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("workload-api".to_owned())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = follow(&renew, &socket, ready) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("the thread that followed the Workload API had panicked");
        }
    }
}

/// The identity that the agent gives now.
pub(super) fn once(socket: &str, federation: &[Federated]) -> Result<Material, SourceError> {
    let failed = |why: String| SourceError::WorkloadApi {
        socket: socket.to_owned(),
        why,
    };
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(SourceError::Thread)?;
    let fetch = async {
        let client = WorkloadApiClient::connect_to(socket).await?;
        client.fetch_x509_context().await
    };
    let context = runtime.block_on(async { tokio::time::timeout(LONGEST_PAUSE, fetch).await });
    let context = context
        .map_err(|_| failed("no answer".to_owned()))?
        .map_err(|error| failed(error.to_string()))?;
    Ok(material(&context, federation)?)
}

async fn follow(renew: &Renew, socket: &str, mut ready: Option<Token>) {
    let mut pause = FIRST_PAUSE;
    loop {
        let ended = async {
            let client = WorkloadApiClient::connect_to(socket).await?;
            let mut contexts = pin!(client.stream_x509_contexts().await?);
            while let Some(context) = contexts.next().await {
                let read = material(&context?, &renew.identity.federation);
                if renew.put(read.map_err(SourceError::from)).is_some() {
                    pause = FIRST_PAUSE;
                    if let Some(ready) = ready.take() {
                        ready.done();
                    }
                }
            }
            Ok::<_, spiffe::WorkloadApiError>(())
        };
        match ended.await {
            Ok(()) => tracing::warn!(socket, "the Workload API has ended its stream"),
            Err(error) => tracing::warn!(socket, %error, "the Workload API cannot be used"),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// The first identity of several, as the standard has it, and all bundles.
fn material(context: &X509Context, federation: &[Federated]) -> Result<Material, MaterialError> {
    let given = context.default_svid().ok_or(MaterialError::Empty)?;
    let chain = given.cert_chain().iter();
    let chain = chain.map(|each| CertificateDer::from(each.as_bytes().to_vec()));
    let key = PrivatePkcs8KeyDer::from(given.private_key().as_bytes());
    let svid = Svid::new(chain.collect(), &key.into())?;
    let mut bundles = Bundles::default();
    for (domain, bundle) in context.bundle_set().iter() {
        let roots = bundle.authorities().iter();
        let roots = roots.map(|each| CertificateDer::from(each.as_bytes().to_vec()));
        let name = domain.to_string();
        let domain = TrustDomain::parse(&name).map_err(|error| MaterialError::Root {
            domain: name,
            why: error.to_string(),
        })?;
        bundles.add(&domain, roots.collect())?;
    }
    super::federate(&mut bundles, federation)?;
    Ok(Material { svid, bundles })
}
