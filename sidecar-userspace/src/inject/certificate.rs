//! The webhook's certificate, signed by an authority of its own. Both are kept in one Secret, so that replicas share them;
//! the authority is renewed as well, and the old one is believed until its last certificate has expired.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use serde_json::{Map, Value};
use zeroize::Zeroizing;

use crate::identity::{
    ca::{name, valid_for},
    certificate::Facts,
};

/// An authority lives for this many lives of a certificate.
const AUTHORITY_LIVES: u32 = 12;

/// Everything in the Secret, as PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Kept {
    /// The authority that signs first, then those that are believed still.
    pub authorities: String,
    authority_key: Zeroizing<String>,
    certificate: String,
    key: Zeroizing<String>,
}

/// What the certificate is for, and for how long.
#[derive(Debug, Clone)]
pub struct Terms {
    /// The names of the service, as API servers call it.
    pub names: Vec<String>,
    /// Of the certificate.
    pub lifetime: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    #[error("the Secret has no {0}, or one that cannot be read")]
    Damaged(&'static str),
    #[error("cannot make a certificate: {0}")]
    Rcgen(#[from] rcgen::Error),
    #[error("the certificate cannot be used: {0}")]
    Unusable(#[from] rustls::Error),
}

const AUTHORITIES: &str = "ca.crt";
const AUTHORITY_KEY: &str = "ca.key";
const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";

impl Kept {
    /// A new authority and a certificate of its.
    pub fn new(terms: &Terms) -> Result<Self, CertificateError> {
        let mut key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("sidecar webhook CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        valid_for(&mut params, terms.lifetime.saturating_mul(AUTHORITY_LIVES));
        let authority = params.self_signed(&key)?;
        let authority_key = Zeroizing::new(key.serialize_pem());
        zeroize::Zeroize::zeroize(&mut key);
        Self::signed(terms, authority.pem(), authority_key)
    }

    /// The same authority, unless it is to be replaced soon, and a new certificate.
    pub fn renewed(&self, terms: &Terms) -> Result<Self, CertificateError> {
        let now = SystemTime::now();
        let authorities = all(&self.authorities, AUTHORITIES)?;
        let alive = |authority: &CertificateDer<'_>| {
            Facts::of(authority).map_or(Duration::ZERO, |facts| facts.left(now))
        };
        let first = authorities.first().map_or(Duration::ZERO, alive);
        // So that what is signed now does not outlive it.
        if first >= terms.lifetime * 2 {
            return Self::signed(terms, self.authorities.clone(), self.authority_key.clone());
        }
        let mut new = Self::new(terms)?;
        for old in authorities.iter().filter(|old| !alive(old).is_zero()) {
            new.authorities += &pem(old);
        }
        Ok(new)
    }

    fn signed(
        terms: &Terms,
        authorities: String,
        authority_key: Zeroizing<String>,
    ) -> Result<Self, CertificateError> {
        let signing = KeyPair::from_pem(&authority_key)?;
        let first = all(&authorities, AUTHORITIES)?;
        let first = first
            .first()
            .ok_or(CertificateError::Damaged(AUTHORITIES))?;
        let issuer = Issuer::from_ca_cert_der(first, signing)?;
        let mut key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("sidecar webhook");
        params.is_ca = IsCa::ExplicitNoCa;
        for name in &terms.names {
            params
                .subject_alt_names
                .push(SanType::DnsName(name.as_str().try_into()?));
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, terms.lifetime);
        let certificate = params.signed_by(&key, &issuer)?;
        let key_pem = Zeroizing::new(key.serialize_pem());
        zeroize::Zeroize::zeroize(&mut key);
        Ok(Self {
            authorities,
            authority_key,
            certificate: certificate.pem(),
            key: key_pem,
        })
    }

    /// How long until the certificate is to be renewed, at two thirds of its life: zero once that is over, or if it is for
    /// other names, or for a longer life than is wanted now.
    pub fn until_renewal(
        &self,
        terms: &Terms,
        now: SystemTime,
    ) -> Result<Duration, CertificateError> {
        let certificate = all(&self.certificate, CERTIFICATE)?;
        let certificate = certificate
            .first()
            .ok_or(CertificateError::Damaged(CERTIFICATE))?;
        let facts = Facts::of(certificate).map_err(|_| CertificateError::Damaged(CERTIFICATE))?;
        let same = terms.names.iter().all(|name| facts.dns.contains(name));
        let left = facts.left(now);
        if !same || left > terms.lifetime {
            return Ok(Duration::ZERO);
        }
        Ok(left.saturating_sub(terms.lifetime / 3))
    }

    /// When the certificate ends.
    pub fn not_after(&self) -> Option<SystemTime> {
        let certificate = all(&self.certificate, CERTIFICATE).ok()?;
        Some(Facts::of(certificate.first()?).ok()?.not_after)
    }

    /// For a TLS server.
    pub fn certified(&self) -> Result<CertifiedKey, CertificateError> {
        let chain = all(&self.certificate, CERTIFICATE)?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes());
        let key = key.map_err(|_| CertificateError::Damaged(KEY))?;
        let own = CertifiedKey::new(chain, any_supported_type(&key)?);
        own.keys_match()?;
        Ok(own)
    }

    /// From the `data` of a Secret.
    pub fn from_data(data: &Value) -> Result<Self, CertificateError> {
        let text = |key: &'static str| {
            let bytes = data[key]
                .as_str()
                .and_then(|text| STANDARD.decode(text).ok());
            let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
            text.filter(|text| !text.is_empty())
                .ok_or(CertificateError::Damaged(key))
        };
        let kept = Self {
            authorities: text(AUTHORITIES)?,
            authority_key: Zeroizing::new(text(AUTHORITY_KEY)?),
            certificate: text(CERTIFICATE)?,
            key: Zeroizing::new(text(KEY)?),
        };
        all(&kept.authorities, AUTHORITIES)?;
        KeyPair::from_pem(&kept.authority_key)
            .map_err(|_| CertificateError::Damaged(AUTHORITY_KEY))?;
        kept.certified()?;
        Ok(kept)
    }

    /// As the `data` of a Secret.
    pub fn to_data(&self) -> Value {
        let all: BTreeMap<&str, &str> = BTreeMap::from([
            (AUTHORITIES, self.authorities.as_str()),
            (AUTHORITY_KEY, self.authority_key.as_str()),
            (CERTIFICATE, self.certificate.as_str()),
            (KEY, self.key.as_str()),
        ]);
        let coded =
            |(key, text): (&str, &str)| (key.to_owned(), Value::from(STANDARD.encode(text)));
        Value::Object(all.into_iter().map(coded).collect::<Map<_, _>>())
    }

    /// As a `caBundle`.
    pub fn bundle(&self) -> String {
        STANDARD.encode(&self.authorities)
    }
}

fn all(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let found = found.map_err(|_| CertificateError::Damaged(what))?;
    match found.is_empty() {
        true => Err(CertificateError::Damaged(what)),
        false => Ok(found),
    }
}

fn pem(certificate: &CertificateDer<'_>) -> String {
    let text = STANDARD.encode(certificate);
    // RFC 7468: lines of 64 characters; base64 is ASCII.
    let lines = text.as_bytes().chunks(64).map(String::from_utf8_lossy);
    let lines: Vec<_> = lines.collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(hours: u64) -> Terms {
        Terms {
            names: vec!["sidecar-inject.sidecar-system.svc".to_owned()],
            lifetime: Duration::from_secs(hours * 3600),
        }
    }

    fn authorities(kept: &Kept) -> Vec<CertificateDer<'static>> {
        all(&kept.authorities, AUTHORITIES).unwrap()
    }

    #[test]
    fn it_is_renewed_in_time() {
        let terms = terms(3);
        let kept = Kept::new(&terms).unwrap();
        let hour = Duration::from_secs(3600);
        let wait = |kept: &Kept, after: Duration| {
            kept.until_renewal(&terms, SystemTime::now() + after)
                .unwrap()
        };
        let at_once = wait(&kept, Duration::ZERO);
        assert!(
            at_once > hour * 2 - hour / 60 && at_once <= hour * 2,
            "{at_once:?}"
        );
        assert_eq!(wait(&kept, hour * 2), Duration::ZERO);
        // For other names, and for a life that is too long now.
        let mut other = terms.clone();
        other.names.push("sidecar-inject.other.svc".to_owned());
        assert_eq!(
            kept.until_renewal(&other, SystemTime::now()).unwrap(),
            Duration::ZERO
        );
        let shorter = self::terms(1);
        assert_eq!(
            kept.until_renewal(&shorter, SystemTime::now()).unwrap(),
            Duration::ZERO
        );
        let renewed = kept.renewed(&terms).unwrap();
        assert_ne!(renewed.certificate, kept.certificate);
        assert_eq!(renewed.authorities, kept.authorities);
        renewed.certified().unwrap();
    }

    #[test]
    fn an_old_authority_is_believed_beside_the_new_one() {
        let kept = Kept::new(&terms(1)).unwrap();
        // With lives of 7 hours one of 12 is to be replaced.
        let renewed = kept.renewed(&terms(7)).unwrap();
        let (old, new) = (authorities(&kept), authorities(&renewed));
        assert_eq!((old.len(), new.len()), (1, 2));
        assert_eq!(new[1], old[0]);
        let again = Kept::from_data(&renewed.to_data()).unwrap();
        assert!(again == renewed);
    }

    #[test]
    fn a_damaged_secret_is_noticed() {
        let kept = Kept::new(&terms(1)).unwrap();
        for key in [AUTHORITIES, AUTHORITY_KEY, CERTIFICATE, KEY] {
            for damaged in [Value::Null, Value::from("!"), Value::from("YQ==")] {
                let mut data = kept.to_data();
                data[key] = damaged;
                assert!(Kept::from_data(&data).is_err(), "{key}");
            }
        }
        let mut data = kept.to_data();
        data[KEY] = Kept::new(&terms(1)).unwrap().to_data()[KEY].clone();
        assert!(
            Kept::from_data(&data).is_err(),
            "a key of another certificate"
        );
    }
}
