//! Certificates for the proxies of both workloads, ours and others': one authority, SPIFFE ids, PEM files.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use serde_json::{Value, json};

pub const SERVER_ID: &str = "spiffe://cluster.local/ns/default/sa/server";
pub const CLIENT_ID: &str = "spiffe://cluster.local/ns/default/sa/client";

pub struct Identities {
    pub client: Identity,
    pub server: Identity,
}

/// The files of one of them.
#[derive(Debug, Clone)]
pub struct Identity {
    pub certificate: PathBuf,
    pub private_key: PathBuf,
    pub trust_bundle: PathBuf,
}

impl Identities {
    /// Makes them in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        let key = KeyPair::generate().context("making a key")?;
        let mut root = CertificateParams::new(Vec::new()).context("an authority")?;
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let bundle = directory.join("roots.pem");
        fs::write(&bundle, root.self_signed(&key).context("signing")?.pem())?;
        let issuer = Issuer::new(root, key);
        Ok(Self {
            client: Identity::new(directory, "client", CLIENT_ID, &issuer, &bundle)?,
            server: Identity::new(directory, "server", SERVER_ID, &issuer, &bundle)?,
        })
    }
}

impl Identity {
    fn new(
        directory: &Path,
        name: &str,
        id: &str,
        issuer: &Issuer<'_, KeyPair>,
        bundle: &Path,
    ) -> Result<Self> {
        let key = KeyPair::generate().context("making a key")?;
        let mut leaf = CertificateParams::new(Vec::new()).context("a certificate")?;
        leaf.subject_alt_names = vec![SanType::URI(id.try_into().context("an id")?)];
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let signed = leaf.signed_by(&key, issuer).context("signing")?;
        let identity = Self {
            certificate: directory.join(format!("{name}.pem")),
            private_key: directory.join(format!("{name}.key")),
            trust_bundle: bundle.to_owned(),
        };
        fs::write(&identity.certificate, signed.pem())?;
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&identity.private_key)
            .context("creating a key's file")?;
        file.write_all(key.serialize_pem().as_bytes())?;
        Ok(identity)
    }

    /// As `identity.files` of the configuration.
    pub fn files(&self) -> Value {
        json!({
            "certificate": self.certificate,
            "privateKey": self.private_key,
            "trustBundle": self.trust_bundle,
        })
    }
}
