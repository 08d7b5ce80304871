//! The keys under `identity`: who the workload is, and whom it believes.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::{
    config::{
        scalar::{Setting, Time},
        value::{FilePath, Socket},
    },
    identity::{SpiffeId, TrustDomain},
    tls::MinVersion,
};

/// One of `files`, `ca` and `workloadApi`.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Identity {
    /// PEM files that somebody else renews. They are watched; a renewal drops no connection.
    pub files: Option<IdentityFiles>,
    /// The authority that `sidecar ca init` made, on this machine: the sidecar signs its own certificates and renews
    /// them after two thirds of their life.
    pub ca: Option<IdentityCa>,
    /// The SPIFFE Workload API, as SPIRE's agent serves it.
    pub workload_api: Option<IdentityWorkloadApi>,
    /// Other trust domains whose workloads are believed.
    pub federation: Option<Vec<Federated>>,
    /// The lowest version of TLS between sidecars: `1.3` or `1.2`.
    pub min_tls_version: Option<Setting<MinVersion>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityFiles {
    /// Required: the certificate, with its SPIFFE id as URI name, and the intermediates behind it.
    pub certificate: Setting<FilePath>,
    /// Required: its key. Nobody but the owner may read the file (mode 0600).
    pub private_key: Setting<FilePath>,
    /// Required: the roots of the workload's trust domain; several while a root is being replaced.
    pub trust_bundle: Setting<FilePath>,
    /// `false` takes a key that others may read: for a Secret of Kubernetes, whose files belong to root and are seen by
    /// one container. Absent: true.
    pub owner_only: Option<Setting<bool>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityCa {
    /// Required: the directory of the authority.
    pub directory: Setting<FilePath>,
    /// The workload's SPIFFE id. Absent: `spiffe://<trust domain>/ns/<workload.namespace>/sa/<workload.name>`.
    pub id: Option<Setting<SpiffeId>>,
    /// How long a certificate is valid. Absent: 1h.
    pub lifetime: Option<Setting<Time<10_000, 31_536_000_000>>>,
}

#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct IdentityWorkloadApi {
    /// Where it is. Absent: what the environment variable SPIFFE_ENDPOINT_SOCKET says.
    pub socket: Option<Setting<Socket>>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Federated {
    /// Required: its name.
    pub trust_domain: Setting<TrustDomain>,
    /// Required: a PEM file with its roots. Watched.
    pub trust_bundle: Setting<FilePath>,
}
