//! What connections of the mesh are made with: built from one state of the identity, and replaced as a whole when
//! that is renewed. Connections that exist keep what they started with.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwapOption;
use rustls::{
    ClientConfig, ServerConfig, client::Resumption, crypto::aws_lc_rs::Ticketer,
    sign::SingleCertAndKey,
};
use tokio::sync::watch;

use super::{
    Carried, MinVersion, provider,
    verify::{AnyClient, Believers, ExpectedServer},
};
use crate::identity::{Material, SpiffeId};

/// Sessions that a worker's connections to one kind of peer may take up again.
pub(super) const SESSIONS: usize = 256;

/// Kinds of peers that are remembered before all are forgotten: bounds memory where services come and go.
const MAX_CLIENTS: usize = 1024;

/// Plaintext that one connection holds because its peer does not read.
pub(super) const WRITE_BUFFER_BYTES: usize = 64 * 1024;

/// One state of the identity, ready for use.
pub struct Mesh {
    pub material: Material,
    pub server: Arc<ServerConfig>,
    /// For ports that speak HTTP/2, which those of clients that are no sidecars may then do, too.
    pub http2_server: Arc<ServerConfig>,
    own: Arc<SingleCertAndKey>,
    believers: Arc<Believers>,
    min_version: MinVersion,
    /// By whom they expect and what they carry: a session is taken up with the same expectation only.
    clients: Mutex<HashMap<Kind, Arc<ClientConfig>>>,
}

type Kind = (Vec<SpiffeId>, Carried);

/// The state in force, if there is one yet. Shared by all that make connections, written by the source of identity.
#[derive(Debug)]
pub struct MeshHandle {
    current: ArcSwapOption<Mesh>,
    /// How often this workload became another one.
    owners: AtomicU64,
    /// How many states there were.
    changes: watch::Sender<u64>,
}

impl Mesh {
    pub fn new(material: Material, min_version: MinVersion) -> Result<Self, rustls::Error> {
        let own = material.svid.id.trust_domain();
        let believers = Believers::new(&material.bundles, own)
            .map_err(|error| rustls::Error::General(error.to_string()))?;
        let believers = Arc::new(believers);
        // For everybody, whatever name was called.
        let own = Arc::new(SingleCertAndKey::from(material.svid.key.clone()));
        let mut server = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(min_version.versions())?
            .with_client_cert_verifier(Arc::new(AnyClient {
                believers: believers.clone(),
            }))
            .with_cert_resolver(own.clone());
        // Clients that are no sidecars speak what the application does; one that offers nothing may come, too.
        let alpn = |plain: &[&[u8]]| {
            let mesh = [
                Carried::Tunnel,
                Carried::Http2,
                Carried::Http1,
                Carried::Bytes,
            ];
            let mesh = mesh.map(Carried::alpn);
            mesh.iter().chain(plain).map(|alpn| alpn.to_vec()).collect()
        };
        server.alpn_protocols = alpn(&[b"http/1.1"]);
        // Keys of its own: with the roots go the sessions that they vouched for.
        server.ticketer = Ticketer::new()?;
        let mut http2_server = server.clone();
        http2_server.alpn_protocols = alpn(&[b"h2", b"http/1.1"]);
        Ok(Self {
            material,
            server: Arc::new(server),
            http2_server: Arc::new(http2_server),
            own,
            believers,
            min_version,
            clients: Mutex::default(),
        })
    }

    /// For connections to one of `identities`.
    pub fn client(
        &self,
        identities: &[SpiffeId],
        carried: Carried,
    ) -> Result<Arc<ClientConfig>, rustls::Error> {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (identities.to_vec(), carried);
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let verifier = ExpectedServer {
            believers: self.believers.clone(),
            identities: identities.to_vec(),
        };
        let mut client = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(self.min_version.versions())?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(self.own.clone());
        client.alpn_protocols = carried.offers();
        client.resumption = Resumption::in_memory_sessions(SESSIONS);
        let client = Arc::new(client);
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

impl MeshHandle {
    /// Without an identity so far.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            current: ArcSwapOption::empty(),
            owners: AtomicU64::new(0),
            changes: watch::Sender::new(0),
        })
    }

    pub fn load(&self) -> Option<Arc<Mesh>> {
        self.current.load_full()
    }

    /// Puts `material` in force for handshakes from now on.
    pub fn replace(
        &self,
        material: Material,
        min_version: MinVersion,
    ) -> Result<(), rustls::Error> {
        let mesh = Mesh::new(material, min_version)?;
        let id = mesh.material.svid.id.clone();
        let old = self.current.swap(Some(Arc::new(mesh)));
        if old.is_none_or(|old| old.material.svid.id != id) {
            self.owners.fetch_add(1, Ordering::Relaxed);
        }
        self.changes.send_modify(|changes| *changes += 1);
        Ok(())
    }

    /// There is no identity any more.
    pub fn clear(&self) {
        self.current.store(None);
    }

    /// Differs between two times if the workload had another id meanwhile: what was connected as the one is not for
    /// the other to use.
    pub fn owner(&self) -> u64 {
        self.owners.load(Ordering::Relaxed)
    }

    /// Which of the states is in force; see [`Self::subscribe`].
    pub fn state(&self) -> u64 {
        *self.changes.borrow()
    }

    /// Counts the states; 0: there was none yet.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl fmt::Debug for Mesh {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mesh")
            .field("material", &self.material)
            .finish_non_exhaustive()
    }
}
