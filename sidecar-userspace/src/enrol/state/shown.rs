//! What the agent tells of its pods.

use std::rc::Rc;

use serde::Serialize;
use sidecar_common::record::Counter;

use super::{Pod, State};
use crate::{
    kernel::proof::Proof,
    model::{FailRule, Level, Steering},
};

/// A pod as `/workloads` shows it.
#[derive(Debug, Serialize)]
pub struct Shown {
    pub workload: String,
    pub namespace: String,
    pub cgroup: String,
    pub slot: u32,
    pub pins: String,
    pub fail_rule: FailRule,
    /// Of the connected sidecar.
    pub sidecar: Option<ShownSidecar>,
}

#[derive(Debug, Serialize)]
pub struct ShownSidecar {
    pub pid: u32,
    pub uid: u32,
    pub cgroup: String,
    pub release: String,
}

/// What the kernel half counted for a pod.
#[derive(Debug)]
pub struct Counted {
    pub steering: Rc<Steering>,
    pub slot: u32,
    pub counts: Vec<(Counter, u64)>,
    /// How far redirect goes, and what the next level lacks.
    pub redirect: Option<(Level, Option<Proof>)>,
}

impl State {
    /// The pods, for people.
    pub fn show(&self) -> Vec<Shown> {
        let shown = |pod: &Pod| Shown {
            workload: pod.steering.name.clone(),
            namespace: pod.steering.namespace.clone(),
            cgroup: pod.cgroup.path().display().to_string(),
            slot: pod.attached.slot(),
            pins: pod.attached.directory().display().to_string(),
            fail_rule: pod.steering.fail_rule,
            sidecar: pod.sidecar.as_ref().map(|sidecar| ShownSidecar {
                pid: sidecar.pid,
                uid: sidecar.uid,
                cgroup: sidecar.cgroup.path().display().to_string(),
                release: sidecar.release.clone(),
            }),
        };
        self.pods.values().map(shown).collect()
    }

    /// What the kernel half counted, by pod.
    pub fn counts(&mut self) -> Vec<Counted> {
        let node = &mut self.node;
        let counts = self.pods.values().filter_map(|pod| {
            Some(Counted {
                steering: pod.steering.clone(),
                slot: pod.attached.slot(),
                counts: node.counts(&pod.attached).ok()?,
                redirect: node.redirect_of(&pod.attached),
            })
        });
        counts.collect()
    }

    /// Pods, and those of them with a sidecar.
    pub fn population(&self) -> (usize, usize) {
        let served = self.pods.values().filter(|pod| pod.sidecar.is_some());
        (self.pods.len(), served.count())
    }
}
