//! Why a handshake failed: one reason each, and the library's words.

use std::io;

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

use super::verify::IdentityError;
use crate::connection::Reason;

/// The reason for an error of a TLS stream, in the handshake or after it; `None`: the socket's, not TLS's.
pub fn reason(error: &io::Error) -> Option<Reason> {
    let error = error.get_ref()?.downcast_ref::<Error>()?;
    Some(of_rustls(error))
}

pub fn of_rustls(error: &Error) -> Reason {
    match error {
        Error::InvalidCertificate(error) => of_certificate(error),
        Error::NoCertificatesPresented => Reason::TlsNoCertificate,
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::Tls12NotOffered
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig,
        ) => Reason::TlsVersion,
        Error::AlertReceived(AlertDescription::ProtocolVersion) => Reason::TlsVersion,
        Error::AlertReceived(_) => Reason::TlsRefusedByPeer,
        _ => Reason::TlsHandshakeFailed,
    }
}

fn of_certificate(error: &CertificateError) -> Reason {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => Reason::TlsUnknownIssuer,
        E::Expired | E::ExpiredContext { .. } => Reason::TlsCertificateExpired,
        E::NotValidYet | E::NotValidYetContext { .. } => Reason::TlsCertificateNotYetValid,
        E::NotValidForName | E::NotValidForNameContext { .. } => Reason::TlsWrongIdentity,
        E::Other(other) if other.0.downcast_ref::<IdentityError>().is_some() => {
            Reason::TlsWrongIdentity
        }
        _ => Reason::TlsBadCertificate,
    }
}
