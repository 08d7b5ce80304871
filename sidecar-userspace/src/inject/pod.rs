//! The decision about one pod. It changes nothing: what is to be changed is a patch.
//!
//! A pod that asks for a sidecar itself and cannot have one is refused; one whose namespace asks is then left as it is, with
//! a warning. Mistakes that somebody has to mend (annotations, ports, names) are refused either way: a pod that should be in
//! the mesh and is not would bypass it silently.

mod change;
mod name;
mod probes;
mod reach;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use super::{
    CONTAINER, Defaults, Kind, Mistake,
    annotation::{InitContainers, Wishes},
    asked::{Asked, Namespace, is_marked},
    container::PORTS,
    patch::Operation,
};

/// A pod, or the template of some.
#[derive(Debug, Clone, Copy)]
pub struct Pod<'a> {
    /// An object with `metadata` and `spec`.
    pub value: &'a Value,
    /// What its namespace says.
    pub says: Namespace,
    /// The namespace's name, if it is known.
    pub namespace: Option<&'a str>,
    /// The name of what the pod belongs to, if that is known better than from the pod.
    pub owner: Option<&'a str>,
}

/// What becomes of a pod.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// It gets a sidecar by this patch; by an empty one it has it already.
    Inject {
        patch: Vec<Operation>,
        warnings: Vec<String>,
    },
    /// It stays as it is.
    Leave {
        why: String,
        /// Somebody wanted it otherwise.
        warn: bool,
    },
    /// It must not be created like this.
    Refuse(String),
}

impl Pod<'_> {
    pub fn decide(&self, defaults: &Defaults) -> Outcome {
        let asked = match self.asked(defaults) {
            Ok(asked) => asked,
            Err(Mistake(why)) => return Outcome::Refuse(why),
        };
        let leave = |why: &str| Outcome::Leave {
            why: why.to_owned(),
            warn: false,
        };
        match asked {
            Asked::No => return leave("nobody asks for a sidecar"),
            Asked::Forbidden => return leave("it is to have no sidecar"),
            Asked::ByPod | Asked::ByNamespace => {}
        }
        if let Some(why) = self.unfit(defaults) {
            return match asked {
                Asked::ByPod => Outcome::Refuse(why),
                _ => Outcome::Leave { why, warn: true },
            };
        }
        match self.patch(defaults) {
            Ok((patch, warnings)) => Outcome::Inject { patch, warnings },
            Err(Mistake(why)) => Outcome::Refuse(why),
        }
    }

    fn asked(&self, defaults: &Defaults) -> Result<Asked, Mistake> {
        let metadata = self.metadata();
        let (labels, annotations) = (object(metadata, "labels"), object(metadata, "annotations"));
        Asked::of(labels, annotations, self.says, defaults.istio_names)
    }

    /// Why a pod cannot have a sidecar, whatever it says.
    fn unfit(&self, defaults: &Defaults) -> Option<String> {
        let metadata = self.metadata();
        let spec = self.spec();
        let annotations = object(metadata, "annotations");
        if annotations.contains_key("kubernetes.io/config.mirror") {
            return Some("a static pod of the kubelet cannot be changed".to_owned());
        }
        if spec.get("hostNetwork") == Some(&Value::Bool(true)) {
            return Some(
                "it uses the node's network (hostNetwork), in which its connections cannot be told from those of others: \
                 take hostNetwork away, or say sidecar.internal/inject: \"false\""
                    .to_owned(),
            );
        }
        if spec.pointer("/os/name") == Some(&json!("windows")) {
            return Some("it runs on Windows, and sidecars need Linux".to_owned());
        }
        let istio = annotations.contains_key("sidecar.istio.io/status")
            || self
                .containers()
                .any(|(_, container)| container["name"] == "istio-proxy");
        if istio {
            return Some(
                "it has Istio's sidecar already, and two would steer the same connections: let one of them have it \
                 (sidecar.istio.io/inject: \"false\" or sidecar.internal/inject: \"false\")"
                    .to_owned(),
            );
        }
        self.works_on_the_node(defaults)
    }

    /// What somebody has to mend.
    fn check(&self, wishes: &Wishes, defaults: &Defaults) -> Result<(), Mistake> {
        if list(self.spec(), "containers").is_empty() {
            return Err(Mistake("it has no containers".to_owned()));
        }
        if defaults.kind == Kind::Container
            && wishes.init_containers == Some(InitContainers::Steered)
        {
            return Err(Mistake(
                "sidecar.internal/init-containers: steered needs native sidecars, and the injector was told to put in \
                 ordinary containers"
                    .to_owned(),
            ));
        }
        self.check_agent_volume(defaults)?;
        let marked = is_marked(object(self.metadata(), "annotations"));
        for (_, container) in self.containers() {
            let name = container["name"].as_str().unwrap_or_default();
            if name == CONTAINER && marked {
                continue;
            }
            if name == CONTAINER {
                return Err(Mistake(format!(
                    "it has a container called {CONTAINER}, which is the name of ours: give it another one"
                )));
            }
            for port in list(container, "ports") {
                let tcp = port
                    .get("protocol")
                    .is_none_or(|protocol| protocol == "TCP");
                let number = port["containerPort"].as_u64();
                let taken = PORTS
                    .iter()
                    .find(|(ours, _)| number == Some(u64::from(*ours)));
                if let (true, Some((number, what))) = (tcp, taken) {
                    return Err(Mistake(format!(
                        "container {name} has port {number}, which is the sidecar's for {what}: give it another one, or \
                         say sidecar.internal/inject: \"false\""
                    )));
                }
            }
        }
        Ok(())
    }

    /// Each with the list it is in.
    fn containers(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        ["initContainers", "containers"]
            .into_iter()
            .flat_map(|key| {
                list(self.spec(), key)
                    .iter()
                    .map(move |container| (key, container))
            })
    }

    fn metadata(&self) -> &Value {
        self.value.get("metadata").unwrap_or(&Value::Null)
    }

    fn spec(&self) -> &Value {
        self.value.get("spec").unwrap_or(&Value::Null)
    }
}

/// The object under a key; an absent one, or null, is an empty one.
fn object<'a>(value: &'a Value, key: &str) -> &'a Map<String, Value> {
    static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.get(key).and_then(Value::as_object).unwrap_or(&EMPTY)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let found = value.get(key).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
}

#[cfg(test)]
mod tests;
