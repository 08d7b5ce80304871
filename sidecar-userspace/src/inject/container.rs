//! What is put into a pod: the sidecar's container and its volumes. It fulfils the `restricted` Pod Security Standard.

use std::{collections::BTreeSet, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    AgentVolume, CONTAINER, Defaults, Identity, Kind, Mistake, Resources,
    annotation::{Amount, Wishes},
    quantity,
    settings::{self, About, IDENTITY_DIRECTORY, Restarts},
};

pub const AGENT_VOLUME: &str = "sidecar-agent";
const CONFIG_VOLUME: &str = "sidecar-config";
const IDENTITY_VOLUME: &str = "sidecar-identity";

/// The agent's CSI driver, and SPIFFE's.
pub const AGENT_DRIVER: &str = "agent.sidecar.internal";
const SPIFFE_DRIVER: &str = "csi.spiffe.io";
const SPIFFE_DIRECTORY: &str = "/spiffe-workload-api";

const CONFIG_DIRECTORY: &str = "/etc/sidecar/config";
/// In the ConfigMap.
const CONFIG_KEY: &str = "sidecar.yaml";

const METRICS_PORT: u16 = 15020;
const HEALTH_PORT: u16 = 15021;

/// TCP ports that the sidecar listens on, which no container of the pod can have.
pub const PORTS: [(u16, &str); 6] = [
    (15000, "admin"),
    (15001, "outbound"),
    (15002, "steered"),
    (15006, "inbound"),
    (METRICS_PORT, "metrics"),
    (HEALTH_PORT, "health"),
];

/// How long an application waits for its sidecar where that is an ordinary container.
const READY_WITHIN: &str = "60s";

/// What the sidecar's container and volumes depend on.
#[derive(Debug)]
pub struct Subject<'a> {
    pub defaults: &'a Defaults,
    pub wishes: &'a Wishes,
    pub workload: &'a str,
    /// `None`: whichever namespace the pod is created in.
    pub namespace: Option<&'a str>,
    /// `terminationGracePeriodSeconds`.
    pub grace: Option<Duration>,
    pub restarts: Restarts,
    /// Where the pod has the kubelet ask itself.
    pub probe_ports: BTreeSet<u16>,
}

impl Subject<'_> {
    /// # Errors
    ///
    /// Resources that contradict each other.
    pub fn container(&self) -> Result<Value, Mistake> {
        let Self {
            defaults, wishes, ..
        } = self;
        let image = wishes.image.as_ref().unwrap_or(&defaults.image);
        let mut arguments = vec!["proxy".to_owned()];
        if let Some((_, optional)) = self.config_map() {
            arguments.push(format!("--config={CONFIG_DIRECTORY}/{CONFIG_KEY}"));
            if optional {
                arguments.push("--optional-config".to_owned());
            }
        }
        let probe = json!({ "path": "/healthz/ready", "port": HEALTH_PORT });
        let mut container = json!({
            "name": CONTAINER,
            "image": image,
            "args": arguments,
            "env": self.environment(),
            "ports": [
                { "name": "sidecar-metrics", "containerPort": METRICS_PORT, "protocol": "TCP" },
                { "name": "sidecar-health", "containerPort": HEALTH_PORT, "protocol": "TCP" },
            ],
            // The application starts once its connections are steered.
            "startupProbe": { "httpGet": probe, "periodSeconds": 1, "timeoutSeconds": 3, "failureThreshold": 600 },
            // While the sidecar is down or drains, the pod is to get no new connections.
            "readinessProbe": { "httpGet": probe, "periodSeconds": 10, "timeoutSeconds": 3, "failureThreshold": 3 },
            "securityContext": {
                "allowPrivilegeEscalation": false,
                "capabilities": { "drop": ["ALL"] },
                "privileged": false,
                "readOnlyRootFilesystem": true,
                "runAsNonRoot": true,
                "runAsUser": defaults.user,
                "runAsGroup": defaults.user,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "volumeMounts": self.mounts(),
        });
        let resources = resources(&defaults.resources, wishes)?;
        if let (Some(resources), Some(container)) = (resources, container.as_object_mut()) {
            container.insert("resources".to_owned(), resources);
        }
        if let Some(policy) = &defaults.pull_policy {
            container["imagePullPolicy"] = json!(policy);
        }
        match defaults.kind {
            Kind::Native => container["restartPolicy"] = json!("Always"),
            // The kubelet starts the next container when this one's hook is done.
            Kind::Container => {
                let command = ["/sidecar", "ready", "--wait", READY_WITHIN];
                container["lifecycle"] = json!({ "postStart": { "exec": { "command": command } } });
            }
        }
        Ok(container)
    }

    /// With their names.
    pub fn volumes(&self) -> Vec<(&'static str, Value)> {
        let defaults = self.defaults;
        let agent = match defaults.agent_volume {
            AgentVolume::Csi => {
                json!({ "name": AGENT_VOLUME, "csi": { "driver": AGENT_DRIVER, "readOnly": true } })
            }
            AgentVolume::HostPath => {
                let path = &defaults.agent_directory;
                json!({ "name": AGENT_VOLUME, "hostPath": { "path": path, "type": "Directory" } })
            }
        };
        let mut volumes = vec![(AGENT_VOLUME, agent)];
        if let Some((name, optional)) = self.config_map() {
            let map = json!({ "name": name, "optional": optional });
            let volume = json!({ "name": CONFIG_VOLUME, "configMap": map });
            volumes.push((CONFIG_VOLUME, volume));
        }
        match self.identity() {
            Identity::None => {}
            Identity::Csi => {
                let csi = json!({ "driver": SPIFFE_DRIVER, "readOnly": true });
                volumes.push((
                    IDENTITY_VOLUME,
                    json!({ "name": IDENTITY_VOLUME, "csi": csi }),
                ));
            }
            Identity::Secret(name) => {
                let secret = json!({ "secretName": name });
                let volume = json!({ "name": IDENTITY_VOLUME, "secret": secret });
                volumes.push((IDENTITY_VOLUME, volume));
            }
        }
        volumes
    }

    fn mounts(&self) -> Vec<Value> {
        let mount =
            |name: &str, path: &str| json!({ "name": name, "mountPath": path, "readOnly": true });
        let mut mounts = vec![mount(AGENT_VOLUME, &self.defaults.agent_directory)];
        if self.config_map().is_some() {
            mounts.push(mount(CONFIG_VOLUME, CONFIG_DIRECTORY));
        }
        match self.identity() {
            Identity::None => {}
            Identity::Csi => mounts.push(mount(IDENTITY_VOLUME, SPIFFE_DIRECTORY)),
            Identity::Secret(_) => mounts.push(mount(IDENTITY_VOLUME, IDENTITY_DIRECTORY)),
        }
        mounts
    }

    fn environment(&self) -> Vec<Value> {
        const NAMESPACE: &str = "SIDECAR_NAMESPACE";
        let variable = |name: &str, value: &str| json!({ "name": name, "value": value });
        let mut all = vec![variable(
            "SIDECAR_AGENT",
            &format!("{}/agent.sock", self.defaults.agent_directory),
        )];
        let later = format!("$({NAMESPACE})");
        if self.namespace.is_none() {
            // The kubelet knows it, and puts it in where the settings name the variable.
            let field =
                json!({ "fieldRef": { "apiVersion": "v1", "fieldPath": "metadata.namespace" } });
            all.push(json!({ "name": NAMESPACE, "valueFrom": field }));
        }
        let about = About {
            workload: self.workload,
            namespace: self.namespace.unwrap_or(&later),
            kind: self.defaults.kind,
            identity: self.identity(),
            grace: self.grace,
            restarts: self.restarts,
            probe_ports: &self.probe_ports,
        };
        all.push(variable(
            "SIDECAR_SETTINGS",
            &settings::text(&about, self.wishes),
        ));
        if *self.identity() == Identity::Csi {
            let socket = format!("unix://{SPIFFE_DIRECTORY}/spire-agent.sock");
            all.push(variable("SPIFFE_ENDPOINT_SOCKET", &socket));
        }
        if let Some(filter) = self.wishes.log.as_ref().or(self.defaults.log.as_ref()) {
            all.push(variable("SIDECAR_LOG", filter));
        }
        all
    }

    /// The ConfigMap, and whether it need not exist: not where the pod names it.
    fn config_map(&self) -> Option<(&str, bool)> {
        let named = self.wishes.config.as_deref().map(|name| (name, false));
        let default = self.defaults.config_map.as_deref();
        named.or(default.map(|name| (name, true)))
    }

    fn identity(&self) -> &Identity {
        let wished = self.wishes.identity.as_ref();
        wished.unwrap_or(&self.defaults.identity)
    }
}

/// `None`: nothing is requested or limited.
fn resources(defaults: &Resources, wishes: &Wishes) -> Result<Option<Value>, Mistake> {
    let cpu = pair(
        "cpu",
        (&defaults.cpu, &wishes.cpu),
        (&defaults.cpu_limit, &wishes.cpu_limit),
    )?;
    let memory = pair(
        "memory",
        (&defaults.memory, &wishes.memory),
        (&defaults.memory_limit, &wishes.memory_limit),
    )?;
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (what, (request, limit)) in [("cpu", cpu), ("memory", memory)] {
        if let Some(request) = request {
            requests.insert(what.to_owned(), request.into());
        }
        if let Some(limit) = limit {
            limits.insert(what.to_owned(), limit.into());
        }
    }
    let mut all = Map::new();
    for (what, amounts) in [("requests", requests), ("limits", limits)] {
        if !amounts.is_empty() {
            all.insert(what.to_owned(), amounts.into());
        }
    }
    Ok((!all.is_empty()).then(|| all.into()))
}

/// A request and its limit: what the pod says moves a default that contradicts it.
fn pair(
    what: &str,
    (default_request, wished_request): (&Amount, &Option<Amount>),
    (default_limit, wished_limit): (&Amount, &Option<Amount>),
) -> Result<(Amount, Amount), Mistake> {
    let request = wished_request.as_ref().unwrap_or(default_request).clone();
    let limit = wished_limit.as_ref().unwrap_or(default_limit).clone();
    let size = |amount: &Amount| amount.as_deref().and_then(quantity::thousandths);
    match (size(&request), size(&limit)) {
        (Some(requested), Some(limited)) if requested > limited => {
            match (wished_request, wished_limit) {
                (Some(_), None) => Ok((request.clone(), request)),
                (None, Some(_)) => Ok((limit.clone(), limit)),
                _ => Err(Mistake(format!(
                    "the sidecar's request of {what} ({}) is more than its limit ({}): see the annotations \
                     sidecar.internal/{what} and sidecar.internal/{what}-limit",
                    request.unwrap_or_default(),
                    limit.unwrap_or_default()
                ))),
            }
        }
        _ => Ok((request, limit)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(text: &str) -> Option<Amount> {
        Some(Some(text.to_owned()))
    }

    #[test]
    fn resources_follow_the_pod() {
        let defaults = Defaults::default().resources;
        let of = |wishes: Wishes| resources(&defaults, &wishes).map(Option::unwrap_or_default);
        assert_eq!(
            of(Wishes::default()),
            Ok(
                json!({ "requests": { "cpu": "50m", "memory": "32Mi" }, "limits": { "memory": "512Mi" } })
            )
        );
        let large = of(Wishes {
            memory: some("1Gi"),
            ..Wishes::default()
        })
        .unwrap();
        assert_eq!(large["limits"]["memory"], "1Gi");
        let small = of(Wishes {
            memory_limit: some("16Mi"),
            ..Wishes::default()
        })
        .unwrap();
        assert_eq!(small["requests"]["memory"], "16Mi");
        let none = Wishes {
            cpu: Some(None),
            memory: Some(None),
            memory_limit: Some(None),
            ..Wishes::default()
        };
        assert_eq!(of(none), Ok(Value::Null));
        let wrong = Wishes {
            cpu: some("2"),
            cpu_limit: some("1"),
            ..Wishes::default()
        };
        assert!(of(wrong).unwrap_err().0.contains("cpu-limit"));
    }
}
