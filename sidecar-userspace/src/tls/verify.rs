//! Whether a peer's certificate is believed: signed by a root of the trust domain that its SPIFFE id names, valid
//! now, for its purpose and, where one was expected, for the expected workload.

use std::{collections::BTreeMap, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::provider;
use crate::identity::{Bundles, SpiffeId, certificate::Facts};

/// Believes peers by the bundles of their trust domains.
#[derive(Debug)]
pub struct Believers {
    domains: BTreeMap<String, Domain>,
    /// Judges certificates that name no trust domain.
    own: String,
    algorithms: WebPkiSupportedAlgorithms,
}

#[derive(Debug)]
struct Domain {
    roots: Arc<RootCertStore>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// For a server: every workload of a trusted domain.
#[derive(Debug)]
pub struct AnyClient {
    pub believers: Arc<Believers>,
}

/// For a client: the workloads that may be behind the address.
#[derive(Debug)]
pub struct ExpectedServer {
    pub believers: Arc<Believers>,
    pub identities: Vec<SpiffeId>,
}

/// What webpki does not know of.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error(transparent)]
    NotAWorkload(#[from] crate::identity::certificate::CertificateError),
    #[error("the server is {found}, expected was {expected}")]
    Unexpected { found: SpiffeId, expected: String },
}

impl From<IdentityError> for Error {
    fn from(error: IdentityError) -> Self {
        CertificateError::Other(OtherError(Arc::new(error))).into()
    }
}

impl Believers {
    /// `own`: this workload's trust domain.
    pub fn new(bundles: &Bundles, own: &str) -> Result<Self, rustls::server::VerifierBuilderError> {
        let mut domains = BTreeMap::new();
        for (name, bundle) in bundles.iter() {
            let clients =
                WebPkiClientVerifier::builder_with_provider(bundle.roots.clone(), provider());
            let domain = Domain {
                roots: bundle.roots.clone(),
                clients: clients.build()?,
            };
            domains.insert(name.to_owned(), domain);
        }
        Ok(Self {
            domains,
            own: own.to_owned(),
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// The peer's id, if `trusted` finds its certificate good for the roots of its trust domain.
    fn judge(
        &self,
        certificate: &CertificateDer<'_>,
        trusted: impl Fn(&Domain) -> Result<(), Error>,
    ) -> Result<SpiffeId, Error> {
        let facts = Facts::of(certificate).map_err(IdentityError::from)?;
        let id = facts.spiffe_id().map_err(IdentityError::from);
        let domain = match &id {
            Ok(id) => id.trust_domain(),
            // A certificate of nobody's is refused for that first.
            Err(_) => &self.own,
        };
        let domain = self.domains.get(domain);
        match trusted(domain.ok_or(CertificateError::UnknownIssuer)?) {
            // Another authority that happens to have the name of ours.
            Err(Error::InvalidCertificate(CertificateError::BadSignature)) => {
                Err(CertificateError::UnknownIssuer.into())
            }
            Err(error) => Err(error),
            Ok(()) => Ok(id?),
        }
    }
}

/// The methods about signatures, which are the same in both traits and belong to neither alone.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, certificate, signed, &self.believers.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            certificate: &CertificateDer<'_>,
            signed: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, certificate, signed, &self.believers.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.believers.algorithms.supported_schemes()
        }
    };
}

impl ClientCertVerifier for AnyClient {
    /// None: naming them would tell strangers whom we trust.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.believers.judge(certificate, |domain| {
            let verified = domain
                .clients
                .verify_client_cert(certificate, intermediates, now);
            verified.map(|_| ())
        })?;
        Ok(ClientCertVerified::assertion())
    }

    signatures!();
}

impl ServerCertVerifier for ExpectedServer {
    /// The name by which the server was called does not matter: its identity does.
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let all = self.believers.algorithms.all;
        let found = self.believers.judge(certificate, |domain| {
            let parsed = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                &domain.roots,
                intermediates,
                now,
                all,
            )
        })?;
        if !self.identities.contains(&found) {
            let expected: Vec<_> = self.identities.iter().map(SpiffeId::as_str).collect();
            let expected = expected.join(" or ");
            return Err(IdentityError::Unexpected { found, expected }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}

/// The peer's id from the certificates that its handshake, or the one of the session it took up, has verified. A
/// session can outlive the certificate: that is looked at again.
pub fn peer(certificates: Option<&[CertificateDer<'_>]>, resumed: bool) -> Result<SpiffeId, Error> {
    let certificates = certificates.unwrap_or_default();
    let leaf = certificates.first().ok_or(Error::NoCertificatesPresented)?;
    if resumed {
        let now = std::time::SystemTime::now();
        for certificate in certificates {
            let facts = Facts::of(certificate).map_err(IdentityError::from)?;
            if !facts.is_valid_at(now) {
                return Err(CertificateError::Expired.into());
            }
        }
    }
    let facts = Facts::of(leaf).map_err(IdentityError::from)?;
    Ok(facts.spiffe_id().map_err(IdentityError::from)?)
}
