//! `inspect`: the workloads of this node and what the kernel half counted for each.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use sidecar_common::settings::ROLE_EXCLUDED;

use super::{look_from_the_node, require_root};
use crate::{
    cli::Inspect,
    kernel::{pins::Pins, tables::Tables},
    sys::cgroup::Cgroup,
};

#[derive(Serialize)]
struct Workload {
    workload: String,
    slot: u32,
    /// Directory of pins.
    pins: String,
    /// A living sidecar holds it, or the node's agent.
    sidecar: bool,
    /// An agent attached it: the id of the pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<u64>,
    cgroups: Vec<String>,
    excluded_cgroups: Vec<String>,
    outbound_port: u16,
    redirect: bool,
    credit_bytes: u32,
    links: Vec<String>,
    events: BTreeMap<&'static str, u64>,
    bytes: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Node {
    workloads: Vec<Workload>,
    /// Entries of the shared maps, by pin directory and map.
    entries: BTreeMap<String, BTreeMap<&'static str, usize>>,
}

pub fn run(args: Inspect) -> Result<ExitCode> {
    require_root("inspect")?;
    look_from_the_node();
    let mut node = Node {
        workloads: Vec::new(),
        entries: BTreeMap::new(),
    };
    for directory in Pins::versions(&args.pins.bpffs) {
        let shared = Pins::lock(directory)?;
        let tables = Tables::open(&shared.directory)?;
        node.entries
            .insert(shared.directory.display().to_string(), tables.entries()?);
        for found in shared.workloads()? {
            let settings = tables.workload(found.slot)?;
            let counts = tables.counts(found.slot)?;
            let part = |bytes: bool| {
                let part = counts
                    .iter()
                    .filter(|(counter, n)| counter.is_bytes() == bytes && *n > 0);
                part.map(|(counter, n)| (counter.name(), *n)).collect()
            };
            let cgroup = |id| {
                Cgroup::with_id(id)
                    .map_or(format!("gone ({id})"), |c| c.path().display().to_string())
            };
            let links = std::fs::read_dir(&found.directory)
                .into_iter()
                .flatten()
                .flatten();
            let excluded = tables.cgroups_in_role(found.slot, ROLE_EXCLUDED);
            node.workloads.push(Workload {
                workload: found.name,
                slot: found.slot,
                pins: found.directory.display().to_string(),
                sidecar: found.alive,
                pod: found.pod,
                cgroups: tables
                    .cgroups_of(found.slot)
                    .into_iter()
                    .filter(|id| !excluded.contains(id))
                    .map(&cgroup)
                    .collect(),
                excluded_cgroups: excluded.iter().copied().map(&cgroup).collect(),
                outbound_port: settings.outbound_port,
                redirect: settings.flags & sidecar_common::settings::WORKLOAD_REDIRECT != 0,
                credit_bytes: settings.credit_bytes,
                links: links
                    .map(|link| link.file_name().to_string_lossy().into_owned())
                    .collect(),
                events: part(false),
                bytes: part(true),
            });
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&node)?);
    } else {
        print(&node);
    }
    Ok(ExitCode::SUCCESS)
}

fn print(node: &Node) {
    if node.workloads.is_empty() {
        println!("no workload is enrolled on this node");
    }
    for workload in &node.workloads {
        let state = match (workload.pod, workload.sidecar) {
            (None, true) => "running",
            (None, false) => "its sidecar is gone",
            (Some(_), true) => "enrolled with the agent",
            (Some(_), false) => "enrolled; the agent is gone, steering goes on",
        };
        println!("{} (slot {}): {state}", workload.workload, workload.slot);
        for cgroup in &workload.cgroups {
            println!("    cgroup    {cgroup}");
        }
        for cgroup in &workload.excluded_cgroups {
            println!("    excluded  {cgroup}");
        }
        let redirect = if workload.redirect { "on" } else { "off" };
        println!(
            "    outbound  port {}, redirect {redirect}",
            workload.outbound_port
        );
        for (counter, n) in &workload.events {
            println!("    {counter:<16} {n}");
        }
        for (path, n) in &workload.bytes {
            println!("    bytes {path:<10} {n}");
        }
    }
}
