//! The kubelet's cgroups: its probes cannot prove an identity, and are let through to the application for coming from there.

use std::path::{Path, PathBuf};

use tracing::warn;

use super::State;
use crate::sys::cgroup::Cgroup;

/// Where distributions run it, below the mount point: kubeadm and most others, kind, Bottlerocket, Talos, k3s, RKE2, k0s, MicroK8s.
const USUAL: [&str; 11] = [
    "system.slice/kubelet.service",
    "kubelet.slice/kubelet.service",
    "runtime.slice/kubelet.service",
    "podruntime/kubelet",
    "system.slice/k3s.service",
    "system.slice/k3s-agent.service",
    "system.slice/rke2-server.service",
    "system.slice/rke2-agent.service",
    "system.slice/k0scontroller.service",
    "system.slice/k0sworker.service",
    "system.slice/snap.microk8s.daemon-kubelite.service",
];
/// Says on the command line that there is none.
const NONE: &str = "none";

/// Where to look for it.
#[derive(Debug, Default)]
pub struct Kubelets {
    candidates: Vec<Cgroup>,
    /// What was said last, so that it is said once.
    said: Option<String>,
}

impl Kubelets {
    /// `asked`: of the command line; empty: the usual ones.
    pub fn new(mount_point: &Path, asked: &[PathBuf]) -> Self {
        let usual = || USUAL.iter().map(PathBuf::from).collect();
        let paths: Vec<PathBuf> = match asked {
            [] => usual(),
            asked => asked
                .iter()
                .filter(|path| path.as_os_str() != NONE)
                .cloned()
                .collect(),
        };
        let below = |path: PathBuf| match path.starts_with(mount_point) {
            true => Cgroup::at(path),
            false => Cgroup::at(mount_point.join(path.strip_prefix("/").unwrap_or(&path))),
        };
        Self {
            candidates: paths.into_iter().map(below).collect(),
            said: None,
        }
    }
}

impl State {
    /// Looks which of them are there: each start of the kubelet has a new one.
    pub fn look_for_kubelets(&mut self) {
        let (mut there, mut refused) = (Vec::new(), None);
        for candidate in &self.kubelets.candidates {
            if candidate.id().is_err() {
                continue;
            }
            match self.holds_pods(candidate) {
                false => there.push(candidate.clone()),
                true => refused = Some(candidate.path().display().to_string()),
            }
        }
        let error = match self.node.let_through(&there) {
            Ok(()) => refused.map(|cgroup| {
                format!("{cgroup} has pods in it, whose connections would pass as the kubelet's: name the kubelet's own with --kubelet-cgroup")
            }),
            Err(error) => Some(error.to_string()),
        };
        if error != self.kubelets.said {
            if let Some(error) = &error {
                warn!(%error, "probes of the kubelet are treated as anybody's connections");
            }
            self.kubelets.said = error;
        }
    }

    /// The program of a cgroup runs for all that is below it.
    fn holds_pods(&self, cgroup: &Cgroup) -> bool {
        let named = |child: &Cgroup| child.name().starts_with("kubepods");
        cgroup.contains(self.host.own())
            || self.pods.values().any(|pod| cgroup.contains(&pod.cgroup))
            || cgroup.children().iter().any(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(asked: &[&str]) -> Vec<String> {
        let asked: Vec<PathBuf> = asked.iter().map(PathBuf::from).collect();
        let kubelets = Kubelets::new(Path::new("/sys/fs/cgroup"), &asked);
        let shown = |cgroup: &Cgroup| cgroup.path().display().to_string();
        kubelets.candidates.iter().map(shown).collect()
    }

    #[test]
    fn the_usual_ones_are_looked_for_unless_others_are_named() {
        assert_eq!(paths(&[]).len(), USUAL.len());
        assert!(paths(&["none"]).is_empty());
        let named = "/sys/fs/cgroup/my.slice/kubelet";
        for spelling in [named, "/my.slice/kubelet", "my.slice/kubelet"] {
            assert_eq!(paths(&[spelling]), [named]);
        }
    }
}
