//! What the kernel half has to know of a configuration: the part of the snapshot that a sidecar without privilege hands
//! to whoever attaches for it.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::{
    Cidr, EgressRule, FailRule, InboundCapture, Redirect, Snapshot, UnknownDestination,
    cgroup::CgroupPattern,
};

/// Entries that one workload may have in each of the maps of rules, which all workloads of a node share.
pub const MAX_RULES: usize = 2048;
/// Patterns for cgroups of one workload.
const MAX_PATTERNS: usize = 64;
/// Bytes of kernel memory for each direction of a flow.
const MAX_CREDIT_BYTES: u32 = 16 << 20;
/// Bytes of a name; a directory is named after it.
const MAX_NAME: usize = 253;

/// Rules of one workload. It travels between versions: fields are only ever added, each with a default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Steering {
    /// Of the workload, and of its namespace: for people, nothing is decided by them.
    pub name: String,
    #[serde(default)]
    pub namespace: String,
    #[serde(default = "closed")]
    pub fail_rule: FailRule,
    #[serde(default = "workload")]
    pub inbound_capture: InboundCapture,
    /// Captured whether the workload listens there or not.
    #[serde(default)]
    pub inbound_ports: BTreeSet<u16>,
    #[serde(default)]
    pub inbound_exclude_ports: BTreeSet<u16>,
    /// Where the kubelet may ask the application past the proxy; `None`: everywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe_ports: Option<BTreeSet<u16>>,
    #[serde(default)]
    pub outbound_exclude_ports: BTreeSet<u16>,
    #[serde(default)]
    pub outbound_exclude_cidrs: Vec<Cidr>,
    #[serde(default)]
    pub outbound_deny: Vec<EgressRule>,
    /// Exceptions. An agent that does not know them denies more.
    #[serde(default)]
    pub outbound_allow: Vec<EgressRule>,
    /// Whether connections may pass of which nothing but the destination is known, and whatever that is.
    #[serde(default)]
    pub outbound_passes_unknown: bool,
    #[serde(default)]
    pub redirect: Redirect,
    /// Cgroups below the workload's whose processes are left alone.
    #[serde(default)]
    pub exclude_cgroups: Vec<CgroupPattern>,
}

fn closed() -> FailRule {
    FailRule::Closed
}

fn workload() -> InboundCapture {
    InboundCapture::Workload
}

/// What is excluded, and what the sidecar itself serves to others: metrics and health.
fn exclude_ports(snapshot: &Snapshot) -> BTreeSet<u16> {
    let own = [snapshot.listeners.metrics, snapshot.listeners.health];
    let served = own
        .iter()
        .filter(|address| !address.ip().is_loopback() && address.port() != 0)
        .map(|address| address.port());
    let excluded = &snapshot.inbound.exclude_ports;
    excluded.iter().copied().chain(served).collect()
}

impl From<&Snapshot> for Steering {
    fn from(snapshot: &Snapshot) -> Self {
        Self {
            name: snapshot.workload.name.clone(),
            namespace: snapshot.workload.namespace.clone(),
            fail_rule: snapshot.fail_rule,
            inbound_capture: snapshot.inbound.capture,
            inbound_ports: snapshot.inbound.ports.keys().copied().collect(),
            inbound_exclude_ports: exclude_ports(snapshot),
            probe_ports: snapshot.inbound.probe_ports.clone(),
            outbound_exclude_ports: snapshot.outbound.exclude_ports.clone(),
            outbound_exclude_cidrs: snapshot.outbound.exclude_cidrs.clone(),
            outbound_deny: snapshot.outbound.egress.deny.clone(),
            outbound_allow: snapshot.outbound.egress.allow.clone(),
            outbound_passes_unknown: snapshot.outbound.unknown == UnknownDestination::Passthrough
                && snapshot.authorization.outbound.is_open(),
            redirect: snapshot.redirect.clone(),
            exclude_cgroups: snapshot.workload.exclude_cgroups.clone(),
        }
    }
}

impl Steering {
    /// Whether one workload may have all this; the error says what is too much.
    pub fn check(&self) -> Result<(), String> {
        for name in [&self.name, &self.namespace] {
            let good = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
            if name.len() > MAX_NAME || !name.bytes().all(good) {
                return Err("a name is too long, or has characters that names do not have".into());
            }
        }
        if self.name.is_empty() {
            return Err("the workload has no name".into());
        }
        if self.redirect.credit_bytes > MAX_CREDIT_BYTES {
            return Err(format!(
                "redirect.credit is more than the {MAX_CREDIT_BYTES} bytes that the agent gives"
            ));
        }
        let ports = self.inbound_ports.len()
            + self.inbound_exclude_ports.len()
            + self.probe_ports.as_ref().map_or(0, BTreeSet::len)
            + self.outbound_exclude_ports.len()
            + 2 * self.redirect.exclude_ports.len();
        let rules = self.outbound_deny.iter().chain(&self.outbound_allow);
        let denials = rules.map(|rule| {
            let ranges = rule.cidrs.len().max(2);
            let ports = ranges.saturating_mul(rule.ports.len().max(1));
            ports.saturating_mul(rule.protocols.len().max(1))
        });
        let denials = denials.fold(0, usize::saturating_add);
        for (what, count, most) in [
            ("port rules", ports, MAX_RULES),
            (
                "excluded ranges",
                self.outbound_exclude_cidrs.len(),
                MAX_RULES,
            ),
            (
                "denied combinations of range, port and protocol",
                denials,
                MAX_RULES,
            ),
            (
                "patterns for cgroups",
                self.exclude_cgroups.len(),
                MAX_PATTERNS,
            ),
        ] {
            if count > most {
                return Err(format!(
                    "{count} {what}: the agent takes {most} for one workload"
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::IpProtocol;

    #[test]
    fn what_is_sent_is_what_arrives() {
        let mut snapshot = Snapshot::builtin();
        snapshot.outbound.exclude_cidrs = vec!["10.0.0.0/8".parse().unwrap()];
        snapshot.outbound.egress.deny = vec![EgressRule {
            name: "mail".into(),
            cidrs: vec!["::/0".parse().unwrap()],
            ports: [25].into(),
            protocols: [IpProtocol::TCP].into(),
        }];
        snapshot.workload.exclude_cgroups = vec![CgroupPattern::new("jobs/*").unwrap()];
        let steering = Steering::from(&snapshot);
        let text = serde_json::to_string(&steering).unwrap();
        assert_eq!(serde_json::from_str::<Steering>(&text).unwrap(), steering);
        assert_eq!(steering.check(), Ok(()));
        // Of a sidecar that knows no protocols: the rule means all.
        let older = text.replace(r#","protocols":[6]"#, "");
        assert_ne!(older, text);
        let older = serde_json::from_str::<Steering>(&older).unwrap();
        assert!(older.outbound_deny[0].protocols.is_empty());
        // What an older version does not know is no error, what no version could mean is one.
        let newer = text.replacen('{', r#"{"later": 1, "#, 1);
        assert_eq!(serde_json::from_str::<Steering>(&newer).unwrap(), steering);
        for bad in [
            text.replace("10.0.0.0/8", "10.0.0.1/8"),
            text.replace("jobs/*", "../.."),
        ] {
            assert!(serde_json::from_str::<Steering>(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn one_workload_does_not_get_everything() {
        let steering = Steering::from(&Snapshot::builtin());
        let mut greedy = steering.clone();
        greedy.outbound_exclude_ports = (1..=u16::MAX).collect();
        assert!(greedy.check().unwrap_err().contains("port rules"));
        let mut greedy = steering.clone();
        greedy.outbound_deny = vec![EgressRule {
            name: "all".into(),
            cidrs: vec!["::/0".parse().unwrap(); 100],
            ports: (1..=1000).collect(),
            protocols: [].into(),
        }];
        assert!(greedy.check().unwrap_err().contains("denied"));
        for name in ["", "../../etc", "a/b", "a\nb", &"x".repeat(254)] {
            let named = Steering {
                name: name.to_owned(),
                ..steering.clone()
            };
            assert!(named.check().is_err(), "{name:?}");
        }
    }
}
