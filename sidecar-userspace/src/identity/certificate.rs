//! What an X.509 certificate says of its subject: the SPIFFE id, and how long it is valid. Says nothing about trust.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer, ParsedExtension},
    time::ASN1Time,
};

use super::{SpiffeId, SpiffeIdError};

/// The parts of a certificate that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Lower-case hexadecimal.
    pub serial: String,
    pub not_before: SystemTime,
    pub not_after: SystemTime,
    pub is_ca: bool,
    /// Names of the kind URI, of which an X.509 SVID has exactly one.
    pub uris: Vec<String>,
    /// Names of the kind DNS.
    pub dns: Vec<String>,
}

/// Why a certificate names no workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the certificate cannot be read")]
    Malformed,
    #[error("the certificate names no SPIFFE id")]
    NoId,
    #[error("the certificate has several URI names, an X.509 SVID has one")]
    SeveralIds,
    #[error("{uri:?} is no SPIFFE id of a workload: {why}")]
    BadId { uri: String, why: SpiffeIdError },
}

impl Facts {
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, CertificateError> {
        let (rest, parsed) =
            X509Certificate::from_der(certificate).map_err(|_| CertificateError::Malformed)?;
        if !rest.is_empty() {
            return Err(CertificateError::Malformed);
        }
        let mut facts = Self {
            serial: parsed
                .raw_serial()
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect(),
            not_before: system_time(parsed.validity().not_before),
            not_after: system_time(parsed.validity().not_after),
            is_ca: parsed.is_ca(),
            uris: Vec::new(),
            dns: Vec::new(),
        };
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => {
                    for name in &names.general_names {
                        match name {
                            GeneralName::URI(uri) => facts.uris.push((*uri).to_owned()),
                            GeneralName::DNSName(dns) => facts.dns.push((*dns).to_owned()),
                            _ => {}
                        }
                    }
                }
                ParsedExtension::ParseError { .. } => return Err(CertificateError::Malformed),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// The SPIFFE id of the workload that the certificate is for.
    pub fn spiffe_id(&self) -> Result<SpiffeId, CertificateError> {
        match self.uris.as_slice() {
            [] => Err(CertificateError::NoId),
            [uri] => SpiffeId::parse(uri).map_err(|why| CertificateError::BadId {
                uri: uri.chars().take(200).collect(),
                why,
            }),
            _ => Err(CertificateError::SeveralIds),
        }
    }

    /// What is left of its life; zero once it is over.
    pub fn left(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }

    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        self.not_before <= now && now <= self.not_after
    }
}

/// Times before 1970 count as 1970.
fn system_time(time: ASN1Time) -> SystemTime {
    let seconds = u64::try_from(time.timestamp()).unwrap_or(0);
    UNIX_EPOCH + Duration::from_secs(seconds)
}
