//! Probes of the kubelet under strict mutual TLS and a policy that lets nobody in: known by its cgroup, and by nothing else.

use std::{fs, os::unix::fs::chown, path::Path};

use anyhow::{Result, ensure};
use sidecar_tests::world::{
    Agent, Pod, Settings, Workload, World, agent::PROXY_UID, programs, wait,
};

use super::SOON;
use crate::{mesh, peers};

/// curl in one of the node's cgroups, once; whether it was answered.
fn probe(node: &Workload<'_>, cgroup: &Path, url: &str) -> Result<bool> {
    let curl = programs::packaged("curl", "curl")?;
    let arguments = ["-sS", "-f", "-o", "/dev/null", "--max-time", "10", url];
    let finished = node
        .start_in(cgroup, "curl", curl, &arguments)?
        .finish(SOON)?;
    Ok(finished.status.success())
}

#[test]
fn the_kubelet_probes_a_strict_pod_and_nobody_else_does() {
    World::play(|world| {
        // Its processes are the node's: not enrolled, in a network from which pods are reached.
        let node = world.workload("node")?;
        let kubelet = node.cgroup().join("kubelet.service");
        let others = node.cgroup().join("others.service");
        fs::create_dir(&kubelet)?;
        fs::create_dir(&others)?;
        let option = ["--kubelet-cgroup", &kubelet.to_string_lossy()];
        let mut agent = Agent::start_with(world, &option)?;
        let authority = mesh::authority(&node)?;
        // The sidecar has no privilege, and keys are read by their owner only.
        let owner = Some(PROXY_UID.parse()?);
        chown(&authority, owner, owner)?;
        for entry in fs::read_dir(&authority)? {
            chown(entry?.path(), owner, owner)?;
        }
        let settings = mesh::identity(&authority, "ns/default/sa/b")
            .set("inbound.mtls", "strict")
            .set("failRule", "closed");
        let b = Pod::enrolled(&agent, "b", &settings)?;
        let directory = tempfile::tempdir()?;
        fs::write(directory.path().join("healthz"), "fine")?;
        let _nginx = peers::nginx(&b.workload, b.v4(8080), directory.path(), "")?;
        let v4 = format!("http://{}/healthz", b.v4(8080));

        ensure!(!probe(&node, &others, &v4)?, "anybody is let in");
        let refused = agent.kernel_events("b", "inbound")?;
        ensure!(refused > 0, "it was not steered");
        for _ in 0..50 {
            ensure!(probe(&node, &kubelet, &v4)?, "the kubelet is refused");
        }
        ensure!(!probe(&node, &others, &v4)?, "anybody is let in afterwards");
        ensure!(
            agent.kernel_events("b", "probe")? == 50,
            "{}",
            agent.metrics()?
        );
        // Below its cgroup is its, too; nothing of its connections stays.
        let helper = kubelet.join("helper");
        fs::create_dir(&helper)?;
        ensure!(probe(&node, &helper, &v4)?, "a child is refused");
        let lost = agent.metrics()?.sum("sidecar_agent_probes_lost_total", &[]);
        ensure!(lost == 0.0, "{lost} were lost");

        let inspected = agent.inspect()?;
        ensure!(
            inspected["kubelets"] == serde_json::json!([kubelet.to_string_lossy()]),
            "{inspected}"
        );
        let entries = inspected["entries"].as_object().into_iter().flatten();
        let noted: Vec<_> = entries.map(|(_, maps)| maps["PROBES"].clone()).collect();
        ensure!(
            noted == [serde_json::json!(0)],
            "connections stay noted: {noted:?}"
        );

        // The kubelet starts anew, in another cgroup of that name.
        fs::remove_dir(&helper)?;
        fs::remove_dir(&kubelet)?;
        ensure!(!probe(&node, &others, &v4)?, "anybody is let in");
        fs::create_dir(&kubelet)?;
        wait::until_true("the new kubelet to be known", SOON, || {
            probe(&node, &kubelet, &v4)
        })?;

        // Without an agent, and with the next one.
        agent.stop()?;
        ensure!(probe(&node, &kubelet, &v4)?, "the agent took it with it");
        agent.restart(&programs::sidecar()?)?;
        ensure!(
            probe(&node, &kubelet, &v4)?,
            "the next agent does not know it"
        );
        ensure!(!probe(&node, &others, &v4)?, "anybody is let in");
        Ok(())
    });
}

/// A cgroup with pods in it would make every pod the kubelet.
#[test]
fn a_cgroup_with_pods_is_no_kubelet() {
    World::play(|world| {
        let all = world.cgroup().to_string_lossy().into_owned();
        let agent = Agent::start_with(world, &["--kubelet-cgroup", &all])?;
        let log = agent.log()?;
        ensure!(log.contains("has pods in it"), "{log}");
        let _a = Pod::enrolled(&agent, "a", &Settings::default())?;
        ensure!(agent.get("/ready")?.status == 200, "not ready");
        Ok(())
    });
}
