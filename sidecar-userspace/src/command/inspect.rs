//! `inspect`: the workloads of this node and what the kernel half counted for each.

use std::{collections::BTreeMap, process::ExitCode};

use anyhow::Result;
use serde::Serialize;
use sidecar_common::settings::ROLE_EXCLUDED;

use super::{look_from_the_node, require_root};
use crate::{
    cli::Inspect,
    kernel::{
        layout::Layout,
        links,
        pins::{AGENT, FoundWorkload, Pins},
        proof::Proof,
        tables::Tables,
    },
    model::Level,
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
    /// It is attached with an object of another ABI, whose maps we do not understand: what follows is not known, but for the
    /// links.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    other_layout: bool,
    /// An agent attached it: the id of the pod's cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<u64>,
    cgroups: Vec<String>,
    excluded_cgroups: Vec<String>,
    outbound_port: u16,
    /// How far it goes.
    redirect: Level,
    /// What the next level lacks.
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect_limit: Option<Proof>,
    credit_bytes: u32,
    links: Vec<String>,
    events: BTreeMap<&'static str, u64>,
    bytes: BTreeMap<&'static str, u64>,
}

#[derive(Serialize)]
struct Node {
    workloads: Vec<Workload>,
    /// Cgroups from which connections reach pods without their proxies.
    kubelets: Vec<String>,
    /// Entries of the shared maps, by pin directory and map.
    entries: BTreeMap<String, BTreeMap<&'static str, usize>>,
}

pub fn run(args: Inspect) -> Result<ExitCode> {
    require_root("inspect")?;
    look_from_the_node();
    let mut node = Node {
        workloads: Vec::new(),
        kubelets: Vec::new(),
        entries: BTreeMap::new(),
    };
    for directory in Pins::versions(&args.pins.bpffs) {
        let shared = Pins::lock(directory)?;
        let kubelets = links::watched_for_probes(&shared.directory.join(AGENT));
        node.kubelets.extend(kubelets.into_iter().map(shown));
        let own = shared.directory.file_name() == Some(Layout::own()?.name().as_ref());
        let tables = match own {
            true => Some(Tables::open(&shared.directory)?),
            false => None,
        };
        if let Some(tables) = &tables {
            let directory = shared.directory.display().to_string();
            node.entries.insert(directory, tables.entries()?);
        }
        for found in shared.workloads()? {
            node.workloads.push(workload(found, tables.as_ref())?);
        }
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&node)?);
    } else {
        print(&node);
    }
    Ok(ExitCode::SUCCESS)
}

/// What is known of a workload; `tables`: if we understand them.
fn workload(found: FoundWorkload, tables: Option<&Tables>) -> Result<Workload> {
    let links = std::fs::read_dir(&found.directory);
    let links = links.into_iter().flatten().flatten();
    let mut links: Vec<_> = links
        .map(|link| link.file_name().to_string_lossy().into_owned())
        .collect();
    links.sort();
    let mut workload = Workload {
        workload: found.name,
        slot: found.slot,
        pins: found.directory.display().to_string(),
        sidecar: found.alive,
        other_layout: tables.is_none(),
        pod: found.pod,
        cgroups: found.pod.map(shown).into_iter().collect(),
        excluded_cgroups: Vec::new(),
        outbound_port: 0,
        redirect: Level::Off,
        redirect_limit: None,
        credit_bytes: 0,
        links,
        events: BTreeMap::new(),
        bytes: BTreeMap::new(),
    };
    let Some(tables) = tables else {
        return Ok(workload);
    };
    let settings = tables.workload(found.slot)?;
    workload.outbound_port = settings.outbound_port;
    workload.redirect = Level::of_flags(settings.flags);
    workload.redirect_limit = Proof::of_number(settings.redirect_limit);
    workload.credit_bytes = settings.credit_bytes;
    let excluded = tables.cgroups_in_role(found.slot, ROLE_EXCLUDED);
    let mut own = tables.cgroups_of(found.slot);
    own.retain(|id| !excluded.contains(id));
    workload.cgroups = own.into_iter().map(shown).collect();
    workload.excluded_cgroups = excluded.into_iter().map(shown).collect();
    for (counter, n) in tables.counts(found.slot)? {
        let part = match counter.is_bytes() {
            false => &mut workload.events,
            true => &mut workload.bytes,
        };
        if n > 0 {
            part.insert(counter.name(), n);
        }
    }
    Ok(workload)
}

/// A cgroup for people.
fn shown(id: u64) -> String {
    match Cgroup::with_id(id) {
        Some(cgroup) => cgroup.path().display().to_string(),
        None => format!("gone ({id})"),
    }
}

fn print(node: &Node) {
    if node.workloads.is_empty() {
        println!("no workload is enrolled on this node");
    }
    for kubelet in &node.kubelets {
        println!("probes from {kubelet} reach applications without their proxies");
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
        if workload.other_layout {
            println!("    attached with an object of another ABI: no more is known");
            continue;
        }
        println!("    outbound  port {}", workload.outbound_port);
        match workload.redirect_limit {
            None => println!("    redirect  {}", workload.redirect),
            Some(Proof::Configuration) => println!(
                "    redirect  {}: the configuration says so",
                workload.redirect
            ),
            Some(proof) => println!(
                "    redirect  {}: this kernel lacks \"{}\", see `sidecar check`",
                workload.redirect,
                proof.name()
            ),
        }
        for (counter, n) in &workload.events {
            println!("    {counter:<16} {n}");
        }
        for (path, n) in &workload.bytes {
            println!("    bytes {path:<10} {n}");
        }
    }
}
