//! TLS to servers outside the mesh, verified by their names: with public roots or those of a file, and a client
//! certificate where one is configured.

use std::{cell::RefCell, collections::HashMap, fs, path::PathBuf, sync::Arc, time::SystemTime};

use rustls::{
    ClientConfig, RootCertStore,
    client::{Resumption, WebPkiServerVerifier},
    crypto::aws_lc_rs::sign::any_supported_type,
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{Carried, mesh::SESSIONS, provider};
use crate::{
    identity::pem::{self, PemError, Readers},
    model::Origin,
    tls::MinVersion,
};

/// Kinds of servers that a worker remembers before all are forgotten.
const MAX_CLIENTS: usize = 256;

/// A worker's settings for servers outside the mesh. Files are read when they are first needed, and again when they
/// have changed.
#[derive(Debug, Default)]
pub struct Origins(RefCell<HashMap<(Origin, Carried), Entry>>);

#[derive(Debug)]
struct Entry {
    config: Arc<ClientConfig>,
    /// When the files were last changed.
    files: Vec<Option<SystemTime>>,
}

#[derive(Debug, thiserror::Error)]
pub enum OriginError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the system's public roots cannot be read: {0}")]
    Public(String),
    #[error("the roots cannot be used: {0}")]
    Roots(String),
    #[error("the client certificate cannot be used: {0}")]
    Client(#[from] rustls::Error),
}

impl Origins {
    pub fn client(
        &self,
        origin: &Origin,
        carried: Carried,
    ) -> Result<Arc<ClientConfig>, OriginError> {
        let mut all = self.0.borrow_mut();
        let files = changed(origin);
        let key = (origin.clone(), carried);
        match all.get(&key) {
            Some(entry) if entry.files == files => return Ok(entry.config.clone()),
            _ => {}
        }
        let config = Arc::new(read(origin, carried)?);
        if all.len() >= MAX_CLIENTS {
            all.clear();
        }
        let entry = Entry {
            config: config.clone(),
            files,
        };
        all.insert(key, entry);
        Ok(config)
    }
}

fn changed(origin: &Origin) -> Vec<Option<SystemTime>> {
    let client = origin.client.iter();
    let client = client.flat_map(|(certificate, key)| [certificate, key]);
    let files: Vec<&PathBuf> = origin.roots.iter().chain(client).collect();
    let changed = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified()).ok();
    files.into_iter().map(changed).collect()
}

/// For these, whoever runs the server decides which versions it speaks.
fn read(origin: &Origin, carried: Carried) -> Result<ClientConfig, OriginError> {
    let mut roots = RootCertStore::empty();
    match &origin.roots {
        Some(path) => {
            for root in pem::certificates(path)? {
                let added = roots.add(root);
                added.map_err(|error| OriginError::Roots(error.to_string()))?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            let (good, _bad) = roots.add_parsable_certificates(found.certs);
            if good == 0 {
                let errors: Vec<_> = found.errors.iter().map(ToString::to_string).collect();
                return Err(OriginError::Public(errors.join(", ")));
            }
        }
    }
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
    let verifier = verifier
        .build()
        .map_err(|error| OriginError::Roots(error.to_string()))?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(MinVersion::Tls12.versions())?
        .with_webpki_verifier(verifier);
    let mut config = match &origin.client {
        Some((certificate, key)) => {
            let chain = pem::certificates(certificate)?;
            let key = any_supported_type(&*pem::private_key(key, Readers::Owner)?)?;
            let own = CertifiedKey::new(chain, key);
            own.keys_match()?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own)))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match carried {
        Carried::Bytes | Carried::Tunnel => Vec::new(),
        Carried::Http1 => vec![b"http/1.1".to_vec()],
        Carried::Http2 => vec![b"h2".to_vec()],
    };
    config.resumption = Resumption::in_memory_sessions(SESSIONS);
    Ok(config)
}
