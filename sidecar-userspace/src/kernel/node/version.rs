//! Whose programs are attached: ours, or those of an agent of another build, which are replaced.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sidecar_common::{names, settings::LoadConstants};
use tracing::info;

use super::Node;
use crate::kernel::{
    layout::fingerprint,
    load::OBJECT,
    pins::{self, PinError, Pins},
    proof::Reach,
    upgrade::{self, UpgradeError},
};

const OBJECT_PREFIX: &str = "object-";

impl Node {
    /// Whether what is attached are programs of another object of our layout.
    pub fn is_outdated(&self) -> bool {
        let links = |directory: &Path| {
            let entries = fs::read_dir(directory).into_iter().flatten().flatten();
            entries
                .filter(|entry| entry.file_name() != names::EVENTS)
                .any(|entry| entry.path().is_file())
        };
        let pods = fs::read_dir(self.shared.join("workloads"))
            .into_iter()
            .flatten()
            .flatten()
            .filter(|entry| entry.file_name().to_string_lossy().contains('@'))
            .any(|entry| links(&entry.path()));
        !self.own.join(&self.object).exists() && (pods || links(&self.own))
    }

    /// Puts our programs in the place of those of a former agent. `reach`: how far they may redirect by the self-test.
    pub fn upgrade(&mut self, reach: &Reach) -> Result<(), UpgradeError> {
        // Connections of its pods are redirected, as far as its own programs may.
        let redirects = self.own.join(names::TRACE_SPLICE).exists() && !self.reach.is_off();
        if redirects && reach.is_off() {
            return Err(UpgradeError::Refused(reach.to_string()));
        }
        let shared = Pins::lock(self.shared.clone())?;
        upgrade::try_lookup(&mut self.loader)?;
        let links = upgrade::replace(&mut self.bpf, &mut self.loader, &shared)?;
        info!(links, "the programs of a former agent are replaced by ours");
        Ok(())
    }

    /// Says whose programs are attached, for the next agent.
    pub fn sign(&self) -> Result<(), PinError> {
        let signature = self.own.join(&self.object);
        let other = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(OBJECT_PREFIX)) && *path != signature
        };
        let entries = fs::read_dir(&self.own).into_iter().flatten().flatten();
        let others: Vec<_> = entries.map(|entry| entry.path()).filter(other).collect();
        pins::mark(&signature)?;
        for other in others {
            // It says nothing any more.
            let _ = fs::remove_dir(other);
        }
        Ok(())
    }
}

/// What tells our programs from those of other builds: the object, and what is set in it before it is loaded.
pub(super) fn object_name(constants: &LoadConstants) -> String {
    let set = format!("{constants:?}");
    let bytes = OBJECT.iter().copied().chain(set.into_bytes());
    format!("{OBJECT_PREFIX}{:08x}", fingerprint(bytes))
}
