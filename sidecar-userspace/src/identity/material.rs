//! An identity with its key, and the roots that are trusted: all that mutual TLS needs.

use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};

use rustls::{
    RootCertStore,
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer},
    sign::CertifiedKey,
};

use super::{
    SpiffeId, TrustDomain,
    certificate::{CertificateError, Facts},
    pem::{self, PemError, Readers},
};

/// What a source of identity provides. Immutable; a renewal makes a new one.
#[derive(Debug, Clone)]
pub struct Material {
    pub svid: Svid,
    pub bundles: Bundles,
}

/// An X.509 SVID: a SPIFFE id, its certificate with the intermediates, and the key.
#[derive(Clone)]
pub struct Svid {
    pub id: SpiffeId,
    /// Of the leaf.
    pub facts: Facts,
    /// The key inside is never printed.
    pub key: Arc<CertifiedKey>,
}

/// The roots of each trust domain. An id of one domain is believed only with a root of that domain.
#[derive(Debug, Clone, Default)]
pub struct Bundles(BTreeMap<String, Arc<Bundle>>);

/// The roots of one trust domain.
pub struct Bundle {
    pub certificates: Vec<CertificateDer<'static>>,
    pub roots: Arc<RootCertStore>,
}

#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error("the certificate of this workload: {0}")]
    Certificate(#[from] CertificateError),
    #[error("the certificate of this workload is one of a certification authority")]
    IsCa,
    #[error("the private key is of a kind that is not supported, or damaged")]
    Key,
    #[error("the private key does not belong to the certificate")]
    Mismatch,
    #[error("there is no certificate")]
    Empty,
    #[error("a root of the trust domain {domain} cannot be used: {why}")]
    Root { domain: String, why: String },
}

impl Svid {
    /// `chain`: the leaf first.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: &PrivateKeyDer<'_>,
    ) -> Result<Self, MaterialError> {
        let facts = Facts::of(chain.first().ok_or(MaterialError::Empty)?)?;
        if facts.is_ca {
            return Err(MaterialError::IsCa);
        }
        let id = facts.spiffe_id()?;
        let key = any_supported_type(key).map_err(|_| MaterialError::Key)?;
        let key = CertifiedKey::new(chain, key);
        key.keys_match().map_err(|_| MaterialError::Mismatch)?;
        Ok(Self {
            id,
            facts,
            key: Arc::new(key),
        })
    }

    pub fn of_files(
        certificate: &Path,
        private_key: &Path,
        readers: Readers,
    ) -> Result<Self, MaterialError> {
        Self::new(
            pem::certificates(certificate)?,
            &*pem::private_key(private_key, readers)?,
        )
    }
}

impl Bundles {
    /// Adds roots to those of `domain`.
    pub fn add(
        &mut self,
        domain: &TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<(), MaterialError> {
        let root_error = |why: String| MaterialError::Root {
            domain: domain.to_string(),
            why,
        };
        let mut all = match self.0.get(domain.as_str()) {
            Some(bundle) => bundle.certificates.clone(),
            None => Vec::new(),
        };
        all.extend(certificates);
        if all.is_empty() {
            return Err(root_error("there is none".to_owned()));
        }
        let mut roots = RootCertStore::empty();
        for certificate in &all {
            let facts = Facts::of(certificate).map_err(|error| root_error(error.to_string()))?;
            if !facts.is_ca {
                return Err(root_error(
                    "it is not a certification authority's".to_owned(),
                ));
            }
            roots
                .add(certificate.clone())
                .map_err(|error| root_error(error.to_string()))?;
        }
        let bundle = Bundle {
            certificates: all,
            roots: Arc::new(roots),
        };
        self.0.insert(domain.as_str().to_owned(), Arc::new(bundle));
        Ok(())
    }

    pub fn of(&self, trust_domain: &str) -> Option<&Arc<Bundle>> {
        self.0.get(trust_domain)
    }

    /// By the names of their domains.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Bundle>)> {
        self.0
            .iter()
            .map(|(domain, bundle)| (domain.as_str(), bundle))
    }
}

impl fmt::Debug for Svid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Svid")
            .field("id", &self.id)
            .field("facts", &self.facts)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bundle({} roots)", self.certificates.len())
    }
}
