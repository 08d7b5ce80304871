//! What the sidecar of a pod is told, over the configuration that pods may share: `SIDECAR_SETTINGS`.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Map, Value, json};

use super::{Identity, Kind, annotation::Wishes, range, yaml};

/// Of the kubelet, from SIGTERM to SIGKILL, where the pod does not say.
const GRACE: Duration = Duration::from_secs(30);
/// Of the sidecar: how long it waits for the application, and the drain that follows.
const WAIT: Duration = Duration::from_secs(20);
const DRAIN: Duration = Duration::from_secs(5);

/// The kubelet starts a container that keeps failing after 5 minutes at the latest.
const LONGEST_BACK_OFF: Duration = Duration::from_secs(6 * 60);
/// Containers start one after the other, and the image of the next may have to be pulled.
const A_PULL: Duration = Duration::from_secs(2 * 60);

/// Where the sidecar finds the files of a Secret.
pub const IDENTITY_DIRECTORY: &str = "/etc/sidecar/identity";

/// What is known of a pod.
#[derive(Debug)]
pub struct About<'a> {
    pub workload: &'a str,
    /// A name, or what the kubelet replaces by one.
    pub namespace: &'a str,
    pub kind: Kind,
    pub identity: &'a Identity,
    /// `terminationGracePeriodSeconds`.
    pub grace: Option<Duration>,
    pub restarts: Restarts,
    /// Where the pod has the kubelet ask itself.
    pub probe_ports: &'a BTreeSet<u16>,
}

/// Whether containers of the pod come after others have ended, and the sidecar may thus be alone in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restarts {
    /// The pod ends when it is deleted.
    Always,
    /// What fails is started again.
    OnFailure,
    /// What has ended stays so; others may not have begun.
    Never { containers: usize },
}

impl Restarts {
    /// `spec.restartPolicy`, and how many containers there are beside the sidecar.
    pub fn of(policy: Option<&str>, containers: usize) -> Self {
        match policy {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never { containers },
            // What the API server takes where nothing is said.
            _ => Self::Always,
        }
    }

    /// How long an ordinary container must have been alone to end by itself, so that a Job comes to its end; `None`: it stays. It
    /// cannot tell a container that failed from one that is done.
    pub fn alone_for(self) -> Option<Duration> {
        match self {
            Self::Always => None,
            Self::OnFailure => Some(LONGEST_BACK_OFF),
            Self::Never { containers: 0 | 1 } => Some(Duration::ZERO),
            Self::Never { .. } => Some(A_PULL),
        }
    }
}

pub fn text(about: &About<'_>, wishes: &Wishes) -> String {
    let mut all = json!({
        "workload": { "name": about.workload, "namespace": about.namespace },
        // The kubelet asks at the pod's address.
        "listeners": { "metrics": "[::]:15020", "health": "[::]:15021" },
        "lifecycle": {},
    });
    // A native sidecar is ended by the kubelet, and may be alone between two containers.
    let alone_for = match about.kind {
        Kind::Native => None,
        Kind::Container => about.restarts.alone_for(),
    };
    all["lifecycle"]["exitWhenAlone"] = json!(alone_for.is_some());
    if let Some(patience) = alone_for.filter(|patience| !patience.is_zero()) {
        all["lifecycle"]["aloneFor"] = json!(format!("{}s", patience.as_secs()));
    }
    let grace = about.grace.unwrap_or(GRACE);
    if grace < WAIT + DRAIN {
        let wait = grace.saturating_sub(DRAIN).as_secs();
        all["lifecycle"]["waitForApplication"] = json!(format!("{wait}s"));
    }
    match about.identity {
        Identity::None => {}
        Identity::Csi => all["identity"] = json!({ "workloadApi": {} }),
        Identity::Secret(_) => {
            let file = |name: &str| format!("{IDENTITY_DIRECTORY}/{name}");
            all["identity"] = json!({ "files": {
                "certificate": file("tls.crt"), "privateKey": file("tls.key"), "trustBundle": file("ca.crt"),
                // They belong to root; no other container has them.
                "ownerOnly": false,
            } });
        }
    }
    if let Some(open) = wishes.fail_open {
        all["failRule"] = json!(if open { "open" } else { "closed" });
    }
    if let Some(outbound) = outbound(wishes) {
        all["outbound"] = outbound;
    }
    all["inbound"] = inbound(wishes, about.probe_ports);
    yaml::write(&all)
}

fn outbound(wishes: &Wishes) -> Option<Value> {
    let mut cidrs = wishes.exclude_outbound_cidrs.clone();
    if let Some(included) = &wishes.include_outbound_cidrs {
        cidrs.extend(range::all_but(included));
    }
    cidrs.sort();
    cidrs.dedup();
    let ports = &wishes.exclude_outbound_ports;
    let mut exclude = Map::new();
    if !cidrs.is_empty() {
        exclude.insert("cidrs".to_owned(), json!(cidrs));
    }
    if !ports.is_empty() {
        exclude.insert("ports".to_owned(), json!(ports));
    }
    (!exclude.is_empty()).then(|| json!({ "exclude": exclude }))
}

fn inbound(wishes: &Wishes, probe_ports: &BTreeSet<u16>) -> Value {
    let mut inbound = Map::new();
    inbound.insert("probePorts".to_owned(), json!(probe_ports));
    let excluded = &wishes.exclude_inbound_ports;
    if !excluded.is_empty() {
        inbound.insert("exclude".to_owned(), json!({ "ports": excluded }));
    }
    if let Some(included) = &wishes.include_inbound_ports {
        // As with Istio, an exclusion counts before an inclusion.
        let mut ports: Vec<u16> = included.clone();
        ports.retain(|port| !excluded.contains(port));
        ports.sort_unstable();
        ports.dedup();
        let listed: Vec<Value> = ports.iter().map(|port| json!({ "port": port })).collect();
        let capture = if listed.is_empty() { "none" } else { "listed" };
        inbound.insert("capture".to_owned(), json!(capture));
        if !listed.is_empty() {
            inbound.insert("ports".to_owned(), json!(listed));
        }
    }
    inbound.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Source,
        model::{InboundCapture, Snapshot},
    };

    fn snapshot(wishes: &Wishes, grace: Option<u64>, identity: &Identity) -> Snapshot {
        let about = About {
            workload: "orders",
            namespace: "shop",
            kind: Kind::Native,
            identity,
            grace: grace.map(Duration::from_secs),
            restarts: Restarts::Always,
            probe_ports: &BTreeSet::from([8080]),
        };
        let source = Source {
            settings: Some(text(&about, wishes)),
            ..Source::default()
        };
        source.load().unwrap_or_else(|errors| panic!("{errors}"))
    }

    #[test]
    fn the_sidecar_understands_them() {
        let plain = snapshot(&Wishes::default(), None, &Identity::None);
        assert_eq!(
            (
                plain.workload.name.as_str(),
                plain.workload.namespace.as_str()
            ),
            ("orders", "shop")
        );
        assert!(!plain.lifecycle.exit_when_alone);
        assert_eq!(plain.listeners.health.to_string(), "[::]:15021");
        assert_eq!(plain.lifecycle.wait_for_application, WAIT);
        let wishes = Wishes {
            exclude_outbound_ports: vec![22],
            exclude_outbound_cidrs: vec!["10.0.0.0/8".parse().unwrap()],
            exclude_inbound_ports: vec![9100],
            include_outbound_cidrs: Some(vec!["0.0.0.0/1".parse().unwrap()]),
            include_inbound_ports: Some(vec![8080, 9100, 8080]),
            fail_open: Some(true),
            ..Wishes::default()
        };
        let said = snapshot(&wishes, Some(10), &Identity::Secret("a".to_owned()));
        let cidrs: Vec<_> = said
            .outbound
            .exclude_cidrs
            .iter()
            .map(ToString::to_string)
            .collect();
        assert_eq!(cidrs, ["10.0.0.0/8", "128.0.0.0/1", "::/0"]);
        assert_eq!(said.inbound.capture, InboundCapture::Listed);
        assert_eq!(said.inbound.ports.len(), 1);
        assert_eq!(said.lifecycle.wait_for_application, Duration::from_secs(5));
        assert!(said.identity.is_some());
        let none = Wishes {
            include_inbound_ports: Some(vec![]),
            ..Wishes::default()
        };
        let said = snapshot(&none, Some(0), &Identity::None);
        assert_eq!(said.inbound.capture, InboundCapture::None);
        assert_eq!(said.lifecycle.wait_for_application, Duration::ZERO);
    }

    #[test]
    fn it_outlives_what_comes_back_and_ends_with_a_job() {
        let lifecycle = |kind, policy, containers| {
            let about = About {
                workload: "orders",
                namespace: "shop",
                kind,
                identity: &Identity::None,
                grace: None,
                restarts: Restarts::of(policy, containers),
                probe_ports: &BTreeSet::new(),
            };
            let source = Source {
                settings: Some(text(&about, &Wishes::default())),
                ..Source::default()
            };
            let lifecycle = source.load().unwrap_or_else(|e| panic!("{e}")).lifecycle;
            lifecycle.exit_when_alone.then_some(lifecycle.alone_for)
        };
        for policy in [None, Some("Always"), Some("OnFailure"), Some("Never")] {
            assert_eq!(lifecycle(Kind::Native, policy, 2), None, "{policy:?}");
        }
        for (policy, containers, alone_for) in [
            (None, 1, None),
            (Some("Always"), 1, None),
            (Some("OnFailure"), 1, Some(LONGEST_BACK_OFF)),
            (Some("Never"), 1, Some(Duration::ZERO)),
            (Some("Never"), 2, Some(A_PULL)),
        ] {
            let found = lifecycle(Kind::Container, policy, containers);
            assert_eq!(found, alone_for, "{policy:?}, {containers} containers");
        }
    }
}
