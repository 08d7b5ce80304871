//! `detach`: removes what a killed sidecar left attached by its workload's fail rule.

use std::process::ExitCode;

use anyhow::{Result, bail};

use super::require_root;
use crate::{
    cli::Detach,
    kernel::{pins::Pins, tables::Tables},
    sys::cgroup::Cgroup,
};

pub fn run(args: Detach) -> Result<ExitCode> {
    require_root("detach")?;
    let mut detached = Vec::new();
    for directory in Pins::versions(&args.pins.bpffs) {
        let shared = Pins::lock(directory)?;
        let mut tables = Tables::open(&shared.directory)?;
        for found in shared.workloads()? {
            let named = args.workloads.contains(&found.name);
            // An agent's pods live on without it, and the next one takes them over.
            if found.pod.is_some() && !named {
                continue;
            }
            if found.alive && named {
                bail!(
                    "workload {} has a running sidecar: stop that instead",
                    found.name
                );
            }
            if !found.alive && (named || args.workloads.is_empty()) {
                let cgroups = tables.cgroups_of(found.slot);
                shared.remove(&found.directory)?;
                tables.clear(found.slot);
                cgroups
                    .into_iter()
                    .filter_map(Cgroup::with_id)
                    .for_each(|cgroup| remove_empty(&cgroup));
                println!("detached {}", found.name);
                detached.push(found.name);
            }
        }
        drop(tables);
        shared.remove_if_unused()?;
    }
    if let Some(missing) = args.workloads.iter().find(|name| !detached.contains(name)) {
        bail!("no workload {missing} is enrolled here; `sidecar inspect` lists them");
    }
    if detached.is_empty() {
        println!("nothing is left behind");
    }
    Ok(ExitCode::SUCCESS)
}

/// Removes a cgroup that `sidecar run` made, and the one above it, if nothing runs in them any more.
fn remove_empty(cgroup: &Cgroup) {
    let Some(parent) = cgroup
        .parent()
        .filter(|parent| parent.name().starts_with("sidecar-"))
    else {
        return;
    };
    if !cgroup.populated() {
        // Somebody may just have entered it: then it stays.
        let _ = cgroup.remove();
        let _ = parent.remove();
    }
}
