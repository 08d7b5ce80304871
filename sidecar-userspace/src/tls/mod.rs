//! TLS: mutual between sidecars, and to servers outside the mesh.
//!
//! # Layout
//!
//! - [`mesh`], what connections of the mesh are made with; replaced as a whole when the identity is renewed
//! - [`verify`], whether a peer's certificate is believed, and for which workload
//! - [`origin`], the same for servers outside the mesh
//! - [`hello`], TLS and plaintext told apart by a client's first bytes
//! - [`accept`] and [`connect`], the handshakes; [`failure`], why they fail
//! - [`stream`], the encrypted stream

pub mod accept;
pub mod connect;
pub mod failure;
pub mod hello;
pub mod mesh;
pub mod origin;
pub mod stream;
pub mod verify;

use std::sync::{Arc, LazyLock};

use rustls::{ProtocolVersion, SupportedProtocolVersion, crypto::CryptoProvider, version};

use crate::identity::SpiffeId;

/// The lowest version of TLS that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum MinVersion {
    Tls12,
    Tls13,
}

/// What is known of a connection's TLS once its handshake is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secured {
    /// `TLSv1.3` or `TLSv1.2`.
    pub version: &'static str,
    /// Whom the peer has proved to be; `None` for servers outside the mesh.
    pub peer: Option<SpiffeId>,
    /// The handshake took up an earlier session.
    pub resumed: bool,
    /// What the client said that the connection carries.
    pub carried: Option<Carried>,
}

/// What a connection of the mesh carries; said by ALPN, so that the other side need not find it out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Carried {
    /// Not known: any bytes.
    Bytes,
    Http1,
    Http2,
    /// Many connections of any bytes.
    Tunnel,
}

impl Carried {
    const ALL: [Self; 4] = [Self::Bytes, Self::Http1, Self::Http2, Self::Tunnel];

    /// The ALPN protocol that marks traffic between sidecars.
    pub fn alpn(self) -> &'static [u8] {
        match self {
            Self::Bytes => b"sidecar",
            Self::Http1 => b"sidecar-http/1.1",
            Self::Http2 => b"sidecar-h2",
            Self::Tunnel => b"sidecar-tunnel",
        }
    }

    /// What a client offers, best first.
    pub fn offers(self) -> Vec<Vec<u8>> {
        let all: &[Self] = match self {
            // A sidecar that knows no tunnels takes the connection for one.
            Self::Tunnel => &[Self::Tunnel, Self::Bytes],
            _ => &[self],
        };
        all.iter().map(|carried| carried.alpn().to_vec()).collect()
    }

    pub fn of_alpn(alpn: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|carried| carried.alpn() == alpn)
    }
}

impl MinVersion {
    fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static VERSIONS: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        match self {
            Self::Tls13 => VERSIONS.get(..1).unwrap_or_default(),
            Self::Tls12 => &VERSIONS,
        }
    }
}

/// The one implementation of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    PROVIDER.clone()
}

fn version_name(version: Option<ProtocolVersion>) -> &'static str {
    match version {
        Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
        Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
        _ => "unknown",
    }
}
