//! The decision about one pod. It changes nothing: what is to be changed is a patch.
//!
//! A pod that asks for a sidecar itself and cannot have one is refused; one whose namespace asks is then left as it is, with
//! a warning. Mistakes that somebody has to mend (annotations, ports, names) are refused either way: a pod that should be in
//! the mesh and is not would bypass it silently.

use std::{sync::LazyLock, time::Duration};

use serde_json::{Map, Value, json};

use super::{
    CONTAINER, Defaults, Kind, Mistake, STATUS,
    annotation::{InitContainers, Wishes},
    asked::{Asked, Namespace, is_marked},
    container::{PORTS, Subject},
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

/// The object under a key; an absent one, or null, is an empty one.
fn object<'a>(value: &'a Value, key: &str) -> &'a Map<String, Value> {
    static EMPTY: LazyLock<Map<String, Value>> = LazyLock::new(Map::new);
    value.get(key).and_then(Value::as_object).unwrap_or(&EMPTY)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    let found = value.get(key).and_then(Value::as_array);
    found.map_or(&[], Vec::as_slice)
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
        if let Some(why) = self.unfit() {
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
    fn unfit(&self) -> Option<String> {
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
        istio.then(|| {
            "it has Istio's sidecar already, and two would steer the same connections: let one of them have it \
             (sidecar.istio.io/inject: \"false\" or sidecar.internal/inject: \"false\")"
                .to_owned()
        })
    }

    fn patch(&self, defaults: &Defaults) -> Result<(Vec<Operation>, Vec<String>), Mistake> {
        let annotations = object(self.metadata(), "annotations");
        let wishes = Wishes::of(annotations, defaults.istio_names)?;
        self.check(&wishes, defaults)?;
        let mut warnings: Vec<String> = wishes
            .ignored
            .iter()
            .map(|key| format!("{key} has no effect on a sidecar of ours"))
            .collect();
        if self.has_ours() {
            return Ok((self.moved(&wishes, defaults), warnings));
        }
        if is_marked(annotations) {
            warnings.push(format!(
                "it says that it was injected ({STATUS}) and has no container {CONTAINER}: it gets one again"
            ));
        }
        let workload = self.workload(&wishes);
        let grace = self.spec().get("terminationGracePeriodSeconds");
        let subject = Subject {
            defaults,
            wishes: &wishes,
            workload: &workload,
            namespace: self.namespace,
            grace: grace.and_then(Value::as_u64).map(Duration::from_secs),
        };
        let mut patch = self.marked(&subject);
        self.add_volumes(&subject, &mut patch)?;
        let place = Place::of(&wishes, defaults.kind);
        let into = place.list();
        if list(self.spec(), into).is_empty() {
            patch.push(Operation::add(&["spec", into], json!([])));
        }
        let at = if place == Place::LastInit { "-" } else { "0" };
        patch.push(Operation::add(&["spec", into, at], subject.container()?));
        Ok((patch, warnings))
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

    /// The annotation that says what was put in.
    fn marked(&self, subject: &Subject<'_>) -> Vec<Operation> {
        let volumes: Vec<&str> = subject.volumes().iter().map(|(name, _)| *name).collect();
        let status = json!({
            "version": env!("CARGO_PKG_VERSION"), "container": CONTAINER, "volumes": volumes,
        });
        let mut patch = Vec::new();
        if !self.metadata().is_object() {
            patch.push(Operation::add(&["metadata"], json!({})));
        }
        if !self.metadata()["annotations"].is_object() {
            patch.push(Operation::add(&["metadata", "annotations"], json!({})));
        }
        let keys = ["metadata", "annotations", STATUS];
        patch.push(Operation::add(&keys, status.to_string()));
        patch
    }

    fn add_volumes(
        &self,
        subject: &Subject<'_>,
        patch: &mut Vec<Operation>,
    ) -> Result<(), Mistake> {
        let present = list(self.spec(), "volumes");
        if present.is_empty() {
            patch.push(Operation::add(&["spec", "volumes"], json!([])));
        }
        for (name, volume) in subject.volumes() {
            match present.iter().find(|volume| volume["name"] == name) {
                None => patch.push(Operation::add(&["spec", "volumes", "-"], volume)),
                // Left over from an injection whose container was taken out.
                Some(same) if *same == volume => {}
                Some(_) => {
                    return Err(Mistake(format!(
                        "it has a volume called {name}, which is the name of ours: give it another one"
                    )));
                }
            }
        }
        Ok(())
    }

    /// Others may have put init containers before or behind ours since: it goes where it belongs.
    fn moved(&self, wishes: &Wishes, defaults: &Defaults) -> Vec<Operation> {
        let place = Place::of(wishes, defaults.kind);
        let init = list(self.spec(), "initContainers");
        let ours = init
            .iter()
            .position(|container| container["name"] == CONTAINER);
        let wanted = match place {
            Place::FirstInit => 0,
            Place::LastInit => init.len().saturating_sub(1),
            Place::Container => return Vec::new(),
        };
        match ours {
            Some(at) if at != wanted => {
                vec![Operation::shift(&["spec", "initContainers"], at, wanted)]
            }
            _ => Vec::new(),
        }
    }

    fn has_ours(&self) -> bool {
        let marked = is_marked(object(self.metadata(), "annotations"));
        marked
            && self
                .containers()
                .any(|(_, container)| container["name"] == CONTAINER)
    }

    /// The name that stands in logs and metrics: of what the pod belongs to, so that it stays when the pod goes.
    fn workload(&self, wishes: &Wishes) -> String {
        if let Some(name) = &wishes.workload {
            return name.clone();
        }
        let metadata = self.metadata();
        let text = |key: &str| metadata.get(key).and_then(Value::as_str);
        let name = self.owner.map(str::to_owned).or_else(|| self.controller());
        let generated = || text("generateName").map(|name| name.trim_end_matches('-'));
        let name = name.or_else(|| text("name").or_else(generated).map(str::to_owned));
        // The API server sees to it that names are names.
        name.filter(|name| super::is_name(name))
            .unwrap_or_else(|| "workload".to_owned())
    }

    /// From the pod's controller, of which a ReplicaSet is named after its Deployment, and a Job may be after its CronJob.
    fn controller(&self) -> Option<String> {
        let metadata = self.metadata();
        let owners = list(metadata, "ownerReferences");
        let owner = owners.iter().find(|owner| owner["controller"] == true)?;
        let (kind, name) = (owner["kind"].as_str()?, owner["name"].as_str()?);
        let short = match kind {
            "ReplicaSet" => {
                let hash = object(metadata, "labels").get("pod-template-hash");
                hash.and_then(Value::as_str)
                    .and_then(|hash| name.strip_suffix(hash)?.strip_suffix('-'))
            }
            "Job" => name.rsplit_once('-').and_then(|(cron_job, minute)| {
                let scheduled = minute.len() >= 8 && minute.bytes().all(|c| c.is_ascii_digit());
                scheduled.then_some(cron_job)
            }),
            _ => None,
        };
        Some(short.unwrap_or(name).to_owned())
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

/// Where the sidecar's container goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    FirstInit,
    LastInit,
    /// The first of the ordinary ones.
    Container,
}

impl Place {
    fn of(wishes: &Wishes, kind: Kind) -> Self {
        match (kind, wishes.init_containers) {
            (Kind::Container, _) => Self::Container,
            (Kind::Native, Some(InitContainers::Bypass)) => Self::LastInit,
            (Kind::Native, _) => Self::FirstInit,
        }
    }

    fn list(self) -> &'static str {
        match self {
            Self::Container => "containers",
            Self::FirstInit | Self::LastInit => "initContainers",
        }
    }
}

#[cfg(test)]
mod tests;
