//! The agent as a CSI driver, called by real gRPC clients that play the kubelet: gRPC's C core with all that must be refused,
//! and Go's, which is the kubelet's own, in the kubelet's way. The volume is all that a pod needs of the node.

use std::fs;

use anyhow::ensure;
use sidecar_tests::world::{Agent, Pod, Settings, World, programs};

use super::{SOON, connects, load::said};
use crate::peers;

/// What a test that fails would leave mounted.
struct Mounted(String);

impl Drop for Mounted {
    fn drop(&mut self) {
        // Gone, if all went well.
        let _ = rustix::mount::unmount(self.0.as_str(), rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_pod_enrols_through_a_volume() {
    World::play(|world| {
        let directory = world.directory().join("kubelet");
        let option = ["--csi", &directory.to_string_lossy()];
        let mut agent = Agent::start_with(world, &option)?;
        let node = world.workload("node")?;
        let mut kubelet = peers::python(&node, "kubelet.py", &[&directory.to_string_lossy()])?;
        let published = kubelet.line("published ")?;
        let target = published.trim_start_matches("published ").trim();
        let _mounted = Mounted(target.to_owned());

        // A mount namespace in which the volume is the only way to the agent.
        let mut a = Pod::new(world, "a", &Settings::default())?;
        let hidden = agent.socket();
        let hidden = hidden.parent().unwrap_or(world.directory());
        let inside = world.directory().join("inside");
        fs::create_dir(&inside)?;
        let (inside, hidden) = (inside.to_string_lossy(), hidden.to_string_lossy());
        let mounts = format!(
            "mount --bind '{}' '{inside}' && mount -t tmpfs none '{hidden}' && mount -t tmpfs none '{}'",
            target,
            directory.display()
        );
        a.launch_in_mounts(&mounts, &format!("{inside}/agent.sock"))?;
        a.wait()?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        ensure!(connects(&a, &to)?, "nothing is reached");
        ensure!(agent.kernel_events("a", "steered")? > 0, "not steered");

        // The volume outlives the agent, and leads to the next one.
        agent.kill()?;
        agent.restart(&programs::sidecar()?)?;
        said(a.proxy()?, "enrolled: steering", 2)?;
        a.take_proxy()?.stop(SOON)?;

        let finished = kubelet.finish(SOON)?.success()?;
        ensure!(finished.stdout.trim_end().ends_with("ok"), "{finished:?}");
        let log = agent.log()?;
        ensure!(log.contains("serves the kubelet"), "{log}");
        agent.stop()?;
        let left: Vec<_> = fs::read_dir(directory.join("plugins_registry"))?.collect();
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    });
}

#[test]
fn the_kubelets_own_client_registers_the_driver() {
    World::play(|world| {
        let directory = world.directory().join("kubelet");
        let directory = directory.to_string_lossy();
        let mut agent = Agent::start_with(world, &["--csi", &directory])?;
        let node = world.workload("node")?;
        let mut kubelet = node.start("kubelet", programs::peer("kubelet")?, &[&directory])?;
        let published = kubelet.line("published ")?;
        let _mounted = Mounted(published.trim_start_matches("published ").trim().to_owned());
        let finished = kubelet.finish(SOON)?.success()?;
        ensure!(finished.stdout.trim_end().ends_with("ok"), "{finished:?}");
        let log = agent.log()?;
        ensure!(
            log.contains("refused by a test, 100 % «no»"),
            "the refusal is not in the log: {log}"
        );
        ensure!(log.contains("registered with the kubelet"), "{log}");
        agent.stop()?;
        Ok(())
    });
}
