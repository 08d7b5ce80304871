//! The embedded certification authority, for one machine and for demonstrations: a root in a directory, and
//! short-lived certificates signed by it.
//!
//! ```text
//! <directory>/ca.crt    the root; further roots behind it are trusted and do not sign
//! <directory>/ca.key    its key, 0600
//! ```

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;
use zeroize::{Zeroize, Zeroizing};

use super::{
    SpiffeId, SpiffeIdError, TrustDomain,
    certificate::Facts,
    material::{MaterialError, Svid},
    pem::{self, PemError},
};

pub const CERTIFICATE: &str = "ca.crt";
pub const KEY: &str = "ca.key";

/// Clocks of other machines may be behind by this much.
const BACKDATED: Duration = Duration::from_secs(60);

/// An authority that can sign. Its key is in memory and nowhere else in the process.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    trust_domain: TrustDomain,
    /// All roots of the directory, the one that signs first.
    roots: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

/// A fresh certificate and its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    key: KeyPair,
}

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    Pem(#[from] PemError),
    #[error(transparent)]
    Material(#[from] MaterialError),
    #[error("cannot create the directory {path}: {source}")]
    Directory { path: PathBuf, source: io::Error },
    #[error("there is an authority in {0} already")]
    Exists(PathBuf),
    #[error("{path} is no root of a trust domain: {why}")]
    NotOurs { path: PathBuf, why: String },
    #[error("the key of the authority does not belong to its certificate")]
    Mismatch,
    #[error("the root of the authority has expired: make a new one with `sidecar ca init`")]
    Expired,
    #[error("{id} is not of this authority's trust domain {trust_domain}")]
    Foreign {
        id: SpiffeId,
        trust_domain: TrustDomain,
    },
    #[error("cannot make a certificate: {0}")]
    Rcgen(#[from] rcgen::Error),
}

impl Ca {
    /// Makes a new root in `directory`, which must not have one.
    pub fn init(
        directory: &Path,
        trust_domain: &TrustDomain,
        lifetime: Duration,
    ) -> Result<(), CaError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| CaError::Directory {
                path: directory.to_owned(),
                source,
            })?;
        let (certificate_path, key_path) = (directory.join(CERTIFICATE), directory.join(KEY));
        if certificate_path.exists() || key_path.exists() {
            return Err(CaError::Exists(directory.to_owned()));
        }
        let mut key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name(&format!("sidecar CA of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // By the SPIFFE standard a root names its trust domain.
        params.subject_alt_names =
            vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        valid_for(&mut params, lifetime);
        let certificate = params.self_signed(&key)?;
        pem::write_secret(&key_path, &Zeroizing::new(key.serialize_pem()))?;
        key.zeroize();
        pem::write_public(&certificate_path, &certificate.pem())?;
        Ok(())
    }

    pub fn load(directory: &Path) -> Result<Self, CaError> {
        let path = directory.join(CERTIFICATE);
        let roots = pem::certificates(&path)?;
        let not_ours = |why: String| CaError::NotOurs {
            path: path.clone(),
            why,
        };
        let root = roots.first().ok_or(MaterialError::Empty)?;
        let facts = Facts::of(root).map_err(|error| not_ours(error.to_string()))?;
        let trust_domain = match facts.uris.as_slice() {
            [uri] => uri
                .strip_prefix("spiffe://")
                .ok_or(SpiffeIdError::Scheme)
                .and_then(TrustDomain::parse)
                .map_err(|error| not_ours(error.to_string()))?,
            _ => return Err(not_ours("it names no trust domain".to_owned())),
        };
        let key = KeyPair::from_pem(&pem::private_text(&directory.join(KEY))?)?;
        // Else what it signs would be believed by nobody.
        if !spki_matches(root, &key) {
            return Err(CaError::Mismatch);
        }
        Ok(Self {
            issuer: Issuer::from_ca_cert_der(root, key)?,
            trust_domain,
            not_after: facts.not_after,
            roots,
        })
    }

    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// A certificate for `id` and a key of its own. It does not outlive the root.
    pub fn issue(&self, id: &SpiffeId, lifetime: Duration) -> Result<Issued, CaError> {
        if id.trust_domain() != self.trust_domain.as_str() {
            return Err(CaError::Foreign {
                id: id.clone(),
                trust_domain: self.trust_domain.clone(),
            });
        }
        let left = self.not_after.duration_since(SystemTime::now());
        let left = left.map_err(|_| CaError::Expired)?;
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("sidecar workload");
        // Some of those who read SVIDs want it said.
        params.is_ca = IsCa::ExplicitNoCa;
        params.subject_alt_names = vec![SanType::URI(id.as_str().try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, lifetime.min(left));
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { certificate, key })
    }
}

impl Issued {
    /// The key as PEM; to be written with [`pem::write_secret`] and nowhere else.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.key.serialize_pem())
    }

    pub fn svid(&self) -> Result<Svid, MaterialError> {
        let der = Zeroizing::new(self.key.serialize_der());
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(der.as_slice());
        Svid::new(vec![self.certificate.der().clone()], &key.into())
    }
}

impl Drop for Issued {
    fn drop(&mut self) {
        self.key.zeroize();
    }
}

pub(crate) fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "sidecar");
    name.push(DnType::CommonName, common);
    name
}

pub(crate) fn valid_for(params: &mut CertificateParams, lifetime: Duration) {
    let now = SystemTime::now();
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + lifetime).into();
}

fn spki_matches(root: &CertificateDer<'_>, key: &KeyPair) -> bool {
    use rcgen::PublicKeyData;
    use x509_parser::prelude::FromDer;
    x509_parser::certificate::X509Certificate::from_der(root)
        .is_ok_and(|(_, root)| root.public_key().raw == key.subject_public_key_info().as_slice())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn ca(lifetime: Duration) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca");
        Ca::init(&path, &"td".parse().unwrap(), lifetime).unwrap();
        (directory, path)
    }

    #[test]
    fn an_authority_is_made_once_and_keeps_its_key_to_itself() {
        let (_directory, path) = ca(Duration::from_secs(3600));
        assert_eq!(path.join(KEY).metadata().unwrap().mode() & 0o777, 0o600);
        let again = Ca::init(&path, &"td".parse().unwrap(), Duration::from_secs(1));
        assert!(matches!(again, Err(CaError::Exists(_))));
        std::fs::set_permissions(
            path.join(KEY),
            std::os::unix::fs::PermissionsExt::from_mode(0o640),
        )
        .unwrap();
        let error = Ca::load(&path).err().unwrap().to_string();
        assert!(
            error.contains("0640") && error.contains("chmod 600"),
            "{error}"
        );
    }

    #[test]
    fn a_certificate_is_for_its_id_and_does_not_outlive_the_root() {
        let (_directory, path) = ca(Duration::from_secs(100));
        let ca = Ca::load(&path).unwrap();
        let id: SpiffeId = "spiffe://td/ns/a/sa/b".parse().unwrap();
        let issued = ca.issue(&id, Duration::from_secs(3600)).unwrap();
        let svid = issued.svid().unwrap();
        assert_eq!(svid.id, id);
        assert!(svid.facts.left(SystemTime::now()) <= Duration::from_secs(100));
        assert!(!format!("{svid:?}").contains("PRIVATE"));
        let foreign = ca.issue(&"spiffe://other/a".parse().unwrap(), Duration::from_secs(1));
        assert!(matches!(foreign, Err(CaError::Foreign { .. })));
    }

    #[test]
    fn another_authoritys_key_is_refused() {
        let (_first, first) = ca(Duration::from_secs(100));
        let (_second, second) = ca(Duration::from_secs(100));
        std::fs::rename(second.join(KEY), first.join(KEY)).unwrap();
        assert!(matches!(Ca::load(&first), Err(CaError::Mismatch)));
    }
}
