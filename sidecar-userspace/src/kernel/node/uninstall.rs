//! The end of all that agents have done on a node.

use std::path::Path;

use crate::kernel::{
    attach::AttachError,
    census::Census,
    layout::Layout,
    pins::{self, Pins},
    tables::Tables,
};

/// What [`everything`] did.
#[derive(Debug, Default)]
pub struct Removed {
    /// Pods that were detached, and directories of pins.
    pub what: Vec<String>,
    /// What is not an agent's.
    pub kept: Vec<String>,
    /// What is still there, and why.
    pub left: Vec<String>,
}

/// Removes everything that agents have left under `base`: pods, links, maps, programs. Fails if an agent runs.
pub fn everything(base: &Path) -> Result<Removed, AttachError> {
    let mut removed = Removed::default();
    if !base.exists() {
        return Ok(removed);
    }
    let _alone = pins::hold(base)?;
    let mut held = Census::default();
    pins::discard(&base.join(pins::TRIAL))?;
    for directory in Pins::versions(base) {
        let shared = Pins::lock(directory.clone())?;
        // Of a layout that we do not understand, the pins are all there is to remove.
        let ours = directory.file_name().and_then(|name| name.to_str());
        let mut tables = match Layout::own().is_ok_and(|own| Some(own.name()) == ours) {
            true => Tables::open(&directory).ok(),
            false => None,
        };
        held.add(&directory);
        for found in shared.workloads()? {
            match found.pod {
                None => removed.kept.push(format!(
                    "{}: of a sidecar without agent",
                    found.directory.display()
                )),
                Some(_) => {
                    shared.remove(&found.directory)?;
                    if let Some(tables) = &mut tables {
                        tables.clear(found.slot);
                    }
                    removed.what.push(format!("pod {}", found.name));
                }
            }
        }
        drop(tables);
        shared.remove_agent()?;
        match shared.remove_if_unused()? {
            true => removed.what.push(directory.display().to_string()),
            false => held.keep_shared(),
        }
    }
    removed.left.extend(held.remaining());
    Ok(removed)
}
