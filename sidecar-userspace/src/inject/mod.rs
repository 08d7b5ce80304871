//! The injector: a pod goes in, and comes out with a sidecar. Offline for files, and as an admission webhook for a cluster.
//!
//! # Layout
//!
//! - [`asked`], whether a pod wants one; [`annotation`], what it says of it; [`quantity`] and [`range`], how it says that
//! - [`pod`], the decision, which changes nothing but makes a [`patch`]; [`container`], what is put in; [`settings`], what
//!   the sidecar is told
//! - [`manifest`], the pods in files, which [`yaml`] reads and writes
//! - [`review`], the pods that an API server asks about; [`serve`], the webhook; [`certificate`] and [`keeper`], its certificate
//!
//! # What the webhook asks of the API server
//!
//! With a certificate from elsewhere (`--tls-cert`): nothing. Else, in its own namespace,
//!
//! - `secrets`: `create`, and `get` and `update` of the one that `--secret` names;
//!
//! and in the whole cluster
//!
//! - `mutatingwebhookconfigurations.admissionregistration.k8s.io`: `get` and `patch` of the one that `--configuration` names.

pub mod annotation;
pub mod asked;
pub mod certificate;
pub mod container;
pub mod keeper;
pub mod manifest;
pub mod patch;
pub mod pod;
pub mod quantity;
pub mod range;
pub mod review;
pub mod serve;
pub mod settings;
pub mod yaml;

use std::fmt;

/// The container, and the port of the pod's that the kubelet asks.
pub const CONTAINER: &str = "sidecar";

/// Our annotations and labels begin with this.
pub const PREFIX: &str = "sidecar.internal/";

/// What the injector leaves at a pod: that and what it has put in.
pub const STATUS: &str = "sidecar.internal/status";

/// What is put in unless the pod says otherwise. Lives as long as the injector.
#[derive(Debug, Clone)]
pub struct Defaults {
    pub image: String,
    /// `None`: the kubelet's own choice.
    pub pull_policy: Option<String>,
    pub kind: Kind,
    pub agent_volume: AgentVolume,
    /// The directory of the agent's socket, on the node and in the pod.
    pub agent_directory: String,
    /// A ConfigMap of the pod's namespace, which need not exist.
    pub config_map: Option<String>,
    pub identity: Identity,
    /// The user that the sidecar runs as; nothing depends on it.
    pub user: u32,
    pub resources: Resources,
    /// What is logged.
    pub log: Option<String>,
    /// Whether Istio's labels and annotations count as well.
    pub istio_names: bool,
}

/// How the sidecar is put into a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// An init container that goes on: it is there before the others and outlives them. Kubernetes 1.29 or newer.
    Native,
    /// One of the containers, for older clusters. Init containers bypass it.
    Container,
}

/// How a pod gets the directory of the agent's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum AgentVolume {
    /// From the agent's own CSI driver, which the `restricted` Pod Security Standard allows.
    Csi,
    /// The node's directory itself.
    #[value(name = "hostPath")]
    HostPath,
}

/// How a sidecar gets its SPIFFE identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identity {
    /// As the configuration says, if at all.
    None,
    /// The Workload API through the CSI driver `csi.spiffe.io`.
    Csi,
    /// `tls.crt`, `tls.key` and `ca.crt` of a Secret of the pod's namespace.
    Secret(String),
}

/// Each as Kubernetes writes it; `None`: not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu: Option<String>,
    pub memory: Option<String>,
    pub cpu_limit: Option<String>,
    pub memory_limit: Option<String>,
}

/// Something that whoever wrote the pod has to mend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Mistake(pub String);

impl Mistake {
    /// Of a label or annotation.
    fn expected(key: &str, expected: impl fmt::Display, found: &str) -> Self {
        let shown: String = found.chars().take(80).collect();
        Self(format!("{key}: expected {expected}; found {shown:?}"))
    }
}

impl std::str::FromStr for Identity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self::None),
            "csi" => Ok(Self::Csi),
            _ => match text.strip_prefix("secret/") {
                Some(name) if is_name(name) => Ok(Self::Secret(name.to_owned())),
                _ => Err("none, csi or secret/NAME".to_owned()),
            },
        }
    }
}

/// A name that objects of Kubernetes may have (RFC 1123's subdomain).
pub fn is_name(text: &str) -> bool {
    let good = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        label.bytes().all(|c| good(c) || c == b'-')
            && label.bytes().next().is_some_and(good)
            && label.bytes().last().is_some_and(good)
    };
    text.len() <= 253 && text.split('.').all(label)
}

#[cfg(test)]
impl Default for Defaults {
    fn default() -> Self {
        Self {
            image: "localhost/sidecar:1".to_owned(),
            pull_policy: None,
            kind: Kind::Native,
            agent_volume: AgentVolume::Csi,
            agent_directory: "/run/sidecar".to_owned(),
            config_map: None,
            identity: Identity::None,
            user: 1337,
            resources: Resources {
                cpu: Some("50m".to_owned()),
                memory: Some("32Mi".to_owned()),
                cpu_limit: None,
                memory_limit: Some("512Mi".to_owned()),
            },
            log: None,
            istio_names: true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_identities() {
        for good in ["a", "a-b.c1", "sidecar"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "A", "-a", "a-", "a..b", "a_b", "a/b", "$(A)"] {
            assert!(!is_name(bad), "{bad}");
        }
        assert_eq!("csi".parse(), Ok(Identity::Csi));
        assert_eq!("secret/a".parse(), Ok(Identity::Secret("a".to_owned())));
        for bad in ["", "secret", "secret/", "secret/A", "files"] {
            assert!(bad.parse::<Identity>().is_err(), "{bad}");
        }
    }
}
