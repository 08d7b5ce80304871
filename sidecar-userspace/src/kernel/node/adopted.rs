//! Pods that a former agent attached, and that nobody holds now.

use sidecar_common::settings::WORKLOAD_FAIL_CLOSED;
use tracing::{info, warn};

use super::Node;
use crate::kernel::{
    attach::AttachError,
    pins::{PinError, Pins, WorkloadPins},
    workload::Attached,
};

/// A pod that a former agent attached.
pub struct Adopted {
    pub name: String,
    /// The id of its cgroup.
    pub pod: u64,
    pub fails_closed: bool,
    pub attached: Attached,
}

impl Node {
    /// The pods in our directory, whose agent is gone.
    pub(super) fn adopt(&mut self, shared: &Pins) -> Result<Vec<Adopted>, AttachError> {
        let mut adopted = Vec::new();
        for (name, pod, pins) in orphans(shared)? {
            let flags = self.tables.workload(pins.slot)?.flags;
            adopted.push(Adopted {
                name,
                pod,
                fails_closed: flags & WORKLOAD_FAIL_CLOSED != 0,
                attached: Attached::adopt(pins, &self.tables)?,
            });
        }
        Ok(adopted)
    }

    /// Those that were attached by an agent of another layout.
    pub(super) fn adopt_others(&self) -> Result<Vec<Adopted>, AttachError> {
        let mut adopted = Vec::new();
        for directory in Pins::versions(&self.base) {
            if directory == self.shared {
                continue;
            }
            let shared = Pins::lock(directory.clone())?;
            let found = orphans(&shared)?;
            info!(directory = %directory.display(), pods = found.len(), "attached with another layout: left as they are");
            if found.is_empty() {
                shared.remove_if_unused()?;
            }
            adopted.extend(found.into_iter().map(|(name, pod, pins)| Adopted {
                name,
                pod,
                // Until its sidecar says.
                fails_closed: true,
                attached: Attached::foreign(pins),
            }));
        }
        Ok(adopted)
    }
}

/// Pods that no agent holds: name, id of the cgroup, and their pins, held from now on.
fn orphans(shared: &Pins) -> Result<Vec<(String, u64, WorkloadPins)>, PinError> {
    let mut orphans = Vec::new();
    for found in shared.workloads()? {
        let Some(pod) = found.pod else { continue };
        match WorkloadPins::take(found.slot, found.directory) {
            Ok(pins) => orphans.push((found.name, pod, pins)),
            Err(error) => warn!(workload = found.name, %error, "left to whoever holds it"),
        }
    }
    Ok(orphans)
}
