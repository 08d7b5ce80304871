//! Where a pod has the kubelet ask itself: only there do connections of the kubelet reach the application past the sidecar. A probe of
//! another pod, with `host`, is not this pod's wish to be asked.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Pod, list};

const PROBES: [&str; 3] = ["startupProbe", "livenessProbe", "readinessProbe"];
const HOOKS: [&str; 2] = ["postStart", "preStop"];
const WAYS: [&str; 3] = ["httpGet", "tcpSocket", "grpc"];

impl Pod<'_> {
    /// The ports that its probes and hooks name.
    pub(super) fn probe_ports(&self) -> BTreeSet<u16> {
        let mut found = BTreeSet::new();
        for (_, container) in self.containers() {
            let probes = PROBES.map(|name| &container[name]);
            let hooks = HOOKS.map(|name| &container["lifecycle"][name]);
            let asked = probes.into_iter().chain(hooks);
            let ways = asked.flat_map(|asked| WAYS.map(|way| &asked[way]));
            let own = ways.filter(|way| way["host"].as_str().is_none_or(str::is_empty));
            found.extend(own.filter_map(|way| number(&way["port"], container)));
        }
        found
    }
}

/// As the kubelet finds it: a number, or what the container calls a port of its own.
fn number(port: &Value, container: &Value) -> Option<u16> {
    let name = match port {
        Value::String(name) => name,
        port => return u16::try_from(port.as_u64()?).ok(),
    };
    let mut ports = list(container, "ports").iter();
    let named = ports.find(|port| port["name"] == name.as_str());
    let number = named.and_then(|port| port["containerPort"].as_u64());
    match number {
        Some(number) => u16::try_from(number).ok(),
        None => name.parse().ok(),
    }
}
