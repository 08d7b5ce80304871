//! Whether another container than the sidecar reaches the node's agent. Whoever of a pod asks the agent first is its proxy, so that
//! only the sidecar's container may have a way to it: neither by the volume that is put in, nor by one of the pod's own.

use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::{Outcome, Pod, list};
use crate::inject::{
    CONTAINER, Defaults, Mistake,
    container::{AGENT_DRIVER, AGENT_VOLUME},
};

/// What a mount leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The directory of the agent's socket: nobody has another use for it.
    Agent,
    /// A directory of the node in which that is one of many.
    Around,
}

impl Pod<'_> {
    /// A mistake: a container that is no sidecar mounts the agent's own volume.
    pub(super) fn check_agent_volume(&self, defaults: &Defaults) -> Result<(), Mistake> {
        match self.leading_to(Way::Agent, defaults) {
            None => Ok(()),
            Some((container, volume)) => Err(Mistake(format!(
                "container {container} mounts {volume}, by which it reaches the node's agent and could make itself the proxy of this pod: \
                 only the sidecar may, take that mount away"
            ))),
        }
    }

    /// Why a pod that works on the node's own files cannot have a sidecar.
    pub(super) fn works_on_the_node(&self, defaults: &Defaults) -> Option<String> {
        let (container, volume) = self.leading_to(Way::Around, defaults)?;
        Some(format!(
            "container {container} mounts {volume} with a directory of the node in which the agent's socket ({}) is, and could make \
             itself the proxy of this pod: mount a smaller part of the node, or say sidecar.internal/inject: \"false\"",
            defaults.agent_directory
        ))
    }

    /// The decision about a container for debugging that is added to a pod that runs.
    pub fn decide_debugging(&self, defaults: &Defaults) -> Outcome {
        if !self.has_ours() {
            return Outcome::Leave {
                why: "it has none".to_owned(),
                warn: false,
            };
        }
        if let Err(Mistake(why)) = self.check_agent_volume(defaults) {
            return Outcome::Refuse(why);
        }
        match self.works_on_the_node(defaults) {
            Some(why) => Outcome::Refuse(why),
            None => Outcome::Inject {
                patch: Vec::new(),
                warnings: Vec::new(),
            },
        }
    }

    /// A container and its volume, if there is such a way.
    fn leading_to(&self, way: Way, defaults: &Defaults) -> Option<(&str, &str)> {
        let debugging = list(self.spec(), "ephemeralContainers").iter();
        let containers = self.containers().map(|(_, container)| container);
        let others = containers
            .chain(debugging)
            .filter(|container| container["name"] != CONTAINER);
        others
            .flat_map(|container| {
                let mounts = list(container, "volumeMounts").iter();
                mounts.map(move |mount| (container, mount))
            })
            .find(|(_, mount)| self.way_of(mount, defaults) == Some(way))
            .map(|(container, mount)| (named(container), named(mount)))
    }

    fn way_of(&self, mount: &Value, defaults: &Defaults) -> Option<Way> {
        let name = mount["name"].as_str()?;
        if name == AGENT_VOLUME {
            return Some(Way::Agent);
        }
        let volumes = list(self.spec(), "volumes");
        let volume = volumes.iter().find(|volume| volume["name"] == name)?;
        if volume["csi"]["driver"] == AGENT_DRIVER {
            return Some(Way::Agent);
        }
        let path = volume["hostPath"]["path"].as_str()?;
        let mounted = plain(&Path::new(path).join(mount["subPath"].as_str().unwrap_or_default()));
        let agent = plain(Path::new(&defaults.agent_directory));
        match (mounted.starts_with(&agent), agent.starts_with(&mounted)) {
            (true, _) => Some(Way::Agent),
            (_, true) => Some(Way::Around),
            _ => None,
        }
    }
}

fn named(value: &Value) -> &str {
    value["name"].as_str().unwrap_or_default()
}

/// As the node has it: without dots, and with /var/run for what it is a link to.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::ParentDir => {
                plain.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    match plain.strip_prefix("/var/run") {
        Ok(rest) => Path::new("/run").join(rest),
        Err(_) => plain,
    }
}
