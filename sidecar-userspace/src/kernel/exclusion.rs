//! Step accept: cgroups of the workload whose processes are left alone.
//!
//! The kernel half knows a cgroup by its id, and the deepest one that it knows decides: an excluded one within the
//! application's takes its processes out of the workload. The id must be known before a socket is made, so that new
//! cgroups are looked for all the time.

use std::{collections::BTreeSet, fs, sync::Arc, time::Duration};

use sidecar_common::settings::{Cgroup as CgroupEntry, ROLE_EXCLUDED, ROLE_PROXY};
use tracing::{info, warn};

use super::{load::LoadError, tables::Tables};
use crate::{config::SnapshotHandle, model::cgroup::CgroupPattern, sys::cgroup::Cgroup};

/// How often new cgroups are looked for.
pub const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Excluded cgroups of one workload: all workloads of a node share the map.
const MAX_EXCLUDED: usize = 1024;

/// Excludes the cgroups below `application` that one of `patterns` matches, and no others; gives those that there are.
pub fn apply(
    tables: &mut Tables,
    (slot, enrolment): (u32, u64),
    application: &Cgroup,
    patterns: &[CgroupPattern],
) -> Result<Vec<Cgroup>, LoadError> {
    let mut found = Vec::new();
    let depth = patterns
        .iter()
        .map(CgroupPattern::depth)
        .max()
        .unwrap_or_default();
    find(application, patterns, depth, &mut Vec::new(), &mut found);
    let known: BTreeSet<u64> = tables
        .cgroups_in_role(slot, ROLE_EXCLUDED)
        .into_iter()
        .collect();
    let mut wanted = BTreeSet::new();
    for cgroup in &found {
        // One that has just gone needs no rule.
        let Ok(id) = cgroup.id() else { continue };
        wanted.insert(id);
        if !known.contains(&id) {
            if tables
                .cgroup(id)
                .is_some_and(|entry| entry.role == ROLE_PROXY)
            {
                warn!(cgroup = %cgroup.path().display(), "the proxy runs here: this cgroup cannot be excluded");
                continue;
            }
            if known.len() + wanted.len() > MAX_EXCLUDED {
                warn!(cgroup = %cgroup.path().display(), "{MAX_EXCLUDED} cgroups are excluded already");
                continue;
            }
            let entry = CgroupEntry {
                workload: slot,
                role: ROLE_EXCLUDED,
                enrolment,
            };
            tables.set_cgroup(id, entry)?;
            info!(cgroup = %cgroup.path().display(), "its processes are left alone");
        }
    }
    for id in known.difference(&wanted) {
        tables.forget_cgroup(*id)?;
    }
    Ok(found)
}

/// Keeps up with cgroups that come and go, and with the configuration, for as long as it is polled.
pub async fn follow(
    mut tables: Tables,
    whose: (u32, u64),
    application: Cgroup,
    config: Arc<SnapshotHandle>,
) {
    let mut in_force = !config.load().workload.exclude_cgroups.is_empty();
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let snapshot = config.load();
        let patterns = &snapshot.workload.exclude_cgroups;
        let wanted = !patterns.is_empty();
        if !wanted && !in_force {
            continue;
        }
        in_force = wanted;
        if let Err(error) = apply(&mut tables, whose, &application, patterns) {
            warn!(%error, "cgroups cannot be excluded");
        }
    }
}

/// `names`: those of the cgroups from the application's down to `cgroup`.
fn find(
    cgroup: &Cgroup,
    patterns: &[CgroupPattern],
    depth: usize,
    names: &mut Vec<String>,
    found: &mut Vec<Cgroup>,
) {
    if names.len() == depth {
        return;
    }
    let entries = fs::read_dir(cgroup.path()).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())) {
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let below = cgroup.below(&name);
        names.push(name);
        if patterns.iter().any(|pattern| pattern.matches(names)) {
            // Those further down go with it.
            found.push(below);
        } else {
            find(&below, patterns, depth, names, found);
        }
        names.pop();
    }
}
