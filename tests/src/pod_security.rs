//! The `restricted` Pod Security Standard, rule by rule, for objects of Kubernetes as JSON
//! (<https://kubernetes.io/docs/concepts/security/pod-security-standards/>, of version 1.34).

use serde_json::Value;

/// Capabilities that containers may be given on top of none.
const CAPABILITIES: [&str; 1] = ["NET_BIND_SERVICE"];

/// Kinds of volumes that pods may have.
const VOLUMES: [&str; 8] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

/// Harmless sysctls.
const SYSCTLS: [&str; 10] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_syncookies",
];

/// What a pod's spec does that `restricted` forbids, each with its place; empty: it conforms.
pub fn violations(spec: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        if spec[key] == true {
            found.push(format!("{key} is true"));
        }
    }
    if spec["securityContext"]["windowsOptions"]["hostProcess"] == true {
        found.push("hostProcess is true".to_owned());
    }
    for sysctl in list(&spec["securityContext"]["sysctls"]) {
        if !SYSCTLS.contains(&sysctl["name"].as_str().unwrap_or_default()) {
            found.push(format!("the sysctl {}", sysctl["name"]));
        }
    }
    for volume in list(&spec["volumes"]) {
        let kinds = volume.as_object().into_iter().flatten();
        for (kind, _) in kinds.filter(|(kind, _)| *kind != "name") {
            if !VOLUMES.contains(&kind.as_str()) {
                found.push(format!("volume {} is a {kind}", volume["name"]));
            }
        }
    }
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list(&spec[key]) {
            let ours = of_container(&spec["securityContext"], container);
            found.extend(
                ours.iter()
                    .map(|what| format!("{key} {}: {what}", container["name"])),
            );
        }
    }
    found
}

/// What a container says counts before what its pod says.
fn of_container(pod: &Value, container: &Value) -> Vec<String> {
    let own = &container["securityContext"];
    let said = |key: &str| match &own[key] {
        Value::Null => &pod[key],
        value => value,
    };
    let mut found = Vec::new();
    let mut rule = |holds: bool, what: &str| {
        if !holds {
            found.push(what.to_owned());
        }
    };
    rule(own["privileged"] != true, "privileged");
    rule(
        own["allowPrivilegeEscalation"] == false,
        "allowPrivilegeEscalation is not false",
    );
    rule(said("runAsNonRoot") == true, "runAsNonRoot is not true");
    rule(said("runAsUser") != 0, "runAsUser is 0");
    let seccomp = &said("seccompProfile")["type"];
    rule(
        seccomp == "RuntimeDefault" || seccomp == "Localhost",
        "no seccompProfile",
    );
    let dropped = list(&own["capabilities"]["drop"]);
    rule(
        dropped.iter().any(|name| name == "ALL"),
        "does not drop ALL capabilities",
    );
    let added = list(&own["capabilities"]["add"]);
    let harmless = |name: &Value| {
        name.as_str()
            .is_some_and(|name| CAPABILITIES.contains(&name))
    };
    rule(added.iter().all(harmless), "adds capabilities");
    let proc_mount = &own["procMount"];
    rule(proc_mount.is_null() || proc_mount == "Default", "procMount");
    let ports = list(&container["ports"]);
    let host = |port: &Value| port["hostPort"].as_u64().is_some_and(|port| port != 0);
    rule(!ports.iter().any(host), "has a hostPort");
    let profile = said("appArmorProfile")["type"].as_str();
    rule(!matches!(profile, Some("Unconfined")), "AppArmor is off");
    let selinux = said("seLinuxOptions");
    let types = [
        "",
        "container_t",
        "container_init_t",
        "container_kvm_t",
        "container_engine_t",
    ];
    let kind = selinux["type"].as_str().unwrap_or_default();
    rule(types.contains(&kind), "an SELinux type of its own");
    rule(
        selinux["user"].is_null() && selinux["role"].is_null(),
        "an SELinux user or role",
    );
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let probe = &container[probe];
        let elsewhere = |action: &str| probe[action].get("host").is_some();
        rule(
            !elsewhere("httpGet") && !elsewhere("tcpSocket"),
            "a probe names a host",
        );
    }
    found
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "volumes": [{ "name": "v", "csi": { "driver": "d" } }],
            "containers": [{
                "name": "c",
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        })
    }

    #[test]
    fn each_rule_is_noticed() {
        assert_eq!(violations(&good()), [""; 0]);
        let none = violations(&json!({ "containers": [{ "name": "c" }] }));
        assert_eq!(none.len(), 4, "{none:?}");
        for (path, value) in [
            ("/hostNetwork", json!(true)),
            ("/hostPID", json!(true)),
            ("/hostIPC", json!(true)),
            ("/volumes/0/hostPath", json!({ "path": "/" })),
            ("/securityContext/runAsNonRoot", json!(false)),
            ("/securityContext/runAsUser", json!(0)),
            (
                "/securityContext/seccompProfile",
                json!({ "type": "Unconfined" }),
            ),
            (
                "/securityContext/sysctls",
                json!([{ "name": "kernel.msgmax" }]),
            ),
            ("/containers/0/securityContext/privileged", json!(true)),
            (
                "/containers/0/securityContext/allowPrivilegeEscalation",
                json!(true),
            ),
            (
                "/containers/0/securityContext/capabilities/drop",
                json!(["NET_RAW"]),
            ),
            (
                "/containers/0/securityContext/capabilities/add",
                json!(["NET_ADMIN"]),
            ),
            ("/containers/0/securityContext/procMount", json!("Unmasked")),
            (
                "/containers/0/securityContext/seLinuxOptions",
                json!({ "type": "spc_t" }),
            ),
            (
                "/containers/0/securityContext/appArmorProfile",
                json!({ "type": "Unconfined" }),
            ),
            (
                "/containers/0/ports",
                json!([{ "containerPort": 1, "hostPort": 1 }]),
            ),
            (
                "/containers/0/startupProbe",
                json!({ "httpGet": { "host": "a", "port": 1 } }),
            ),
        ] {
            let mut spec = good();
            let (parent, key) = path.rsplit_once('/').unwrap();
            spec.pointer_mut(parent).unwrap()[key] = value;
            assert_eq!(violations(&spec).len(), 1, "{path}");
        }
    }
}
