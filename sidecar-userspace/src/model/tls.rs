//! Who the workload is, and where its connections are encrypted.

use std::{path::PathBuf, time::Duration};

use crate::{
    identity::{SpiffeId, TrustDomain},
    tls::MinVersion,
};

/// The workload's identity, and whom it believes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub source: IdentitySource,
    /// Roots of other trust domains.
    pub federation: Vec<Federated>,
    /// For connections between sidecars.
    pub min_version: MinVersion,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdentitySource {
    /// PEM files that somebody else renews.
    Files {
        certificate: PathBuf,
        private_key: PathBuf,
        /// Roots of the workload's own trust domain.
        trust_bundle: PathBuf,
        /// Whether a key that others may read is refused.
        owner_only: bool,
    },
    /// An authority in a directory, which this process signs its own certificates with.
    Ca {
        directory: PathBuf,
        /// `None`: from the workload's namespace and name.
        id: Option<SpiffeId>,
        lifetime: Duration,
    },
    /// The SPIFFE Workload API; `socket` is a URI such as `unix:/run/spire/agent.sock`.
    WorkloadApi { socket: String },
}

/// Another trust domain whose workloads are believed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Federated {
    pub trust_domain: TrustDomain,
    pub trust_bundle: PathBuf,
}

/// Whether inbound connections must be mutual TLS; Istio's PeerAuthentication modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtls {
    /// Plaintext; TLS is the application's affair.
    Disable,
    /// Both, told apart by the first bytes.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

/// How connections to a service's endpoints are encrypted.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServiceTls {
    /// Mutual TLS between sidecars; the endpoint must be one of these.
    Mesh {
        identities: Vec<SpiffeId>,
        /// Connections of opaque bytes share tunnels.
        tunnel: bool,
    },
    /// TLS to servers outside the mesh, verified by name.
    Origin(Origin),
}

impl ServiceTls {
    /// Whether connections of opaque bytes share tunnels.
    pub fn has_tunnels(&self) -> bool {
        matches!(self, Self::Mesh { tunnel: true, .. })
    }
}

/// How a server outside the mesh is verified, and who calls it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// The server's name, said and verified; `None`: the service's first host, else the address.
    pub sni: Option<String>,
    /// A file of roots; `None`: the system's public ones.
    pub roots: Option<PathBuf>,
    /// Files of a client certificate and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}
