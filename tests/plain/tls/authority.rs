//! A certification authority that can also make what no sound one would.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sidecar_userspace::{
    identity::{Bundles, Material, Svid},
    tls::{MinVersion, mesh::MeshHandle},
};

pub const HOUR: Duration = Duration::from_secs(3600);

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub root: CertificateDer<'static>,
    pub root_pem: String,
}

/// A certificate, its key, and how they are written.
pub struct Leaf {
    pub certificate: CertificateDer<'static>,
    pub certificate_pem: String,
    key: KeyPair,
}

/// What a certificate says.
pub struct Says {
    pub uris: Vec<String>,
    pub from: SystemTime,
    pub until: SystemTime,
}

impl Says {
    pub fn id(id: &str) -> Self {
        let now = SystemTime::now();
        Self {
            uris: vec![id.to_owned()],
            from: now - HOUR,
            until: now + HOUR,
        }
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        let uris = self.uris.iter();
        params.subject_alt_names = uris
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.not_before = self.from.into();
        params.not_after = self.until.into();
        params.distinguished_name = name("workload");
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params
    }
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = name("root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&key).unwrap();
        Self {
            root: root.der().clone(),
            root_pem: root.pem(),
            issuer: Issuer::new(params, key),
        }
    }

    pub fn sign(&self, says: &Says) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let certificate = says.params().signed_by(&key, &self.issuer).unwrap();
        Leaf {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key,
        }
    }

    /// Signs what it gets; PEM.
    pub fn sign_params(&self, params: CertificateParams, key: &KeyPair) -> String {
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// An identity that believes in `roots`.
    pub fn material(&self, id: &str, roots: &[&Self]) -> Material {
        let leaf = self.sign(&Says::id(id));
        let svid = Svid::new(vec![leaf.certificate.clone()], &leaf.key()).unwrap();
        let mut bundles = Bundles::default();
        let domain = svid.id.trust_domain().parse().unwrap();
        let roots = roots.iter().map(|root| root.root.clone()).collect();
        bundles.add(&domain, roots).unwrap();
        Material { svid, bundles }
    }

    /// A handle with an identity in force.
    pub fn mesh(&self, id: &str) -> Arc<MeshHandle> {
        self.mesh_from(id, MinVersion::Tls13)
    }

    pub fn mesh_from(&self, id: &str, lowest: MinVersion) -> Arc<MeshHandle> {
        let handle = MeshHandle::new();
        handle.replace(self.material(id, &[self]), lowest).unwrap();
        handle
    }
}

/// All authorities have the same name: that alone must not make one believed.
fn name(common: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common);
    name
}

impl Leaf {
    pub fn self_signed(says: &Says) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = says.params().self_signed(&key).unwrap();
        Self {
            certificate: certificate.der().clone(),
            certificate_pem: certificate.pem(),
            key,
        }
    }

    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    /// `<name>.crt` and `<name>.key` in `directory`.
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let at = |end: &str| directory.join(format!("{name}.{end}"));
        fs::write(at("key"), self.key.serialize_pem()).unwrap();
        fs::set_permissions(at("key"), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(at("crt"), &self.certificate_pem).unwrap();
        (at("crt"), at("key"))
    }
}
