//! The agent goes, in every way, under load: connections and steering do not notice.

use std::{thread, time::Duration};

use anyhow::ensure;
use sidecar_tests::{
    leaks,
    world::{Agent, Pod, Settings, World, programs, wait},
};

use super::{
    SOON, connects,
    load::{Load, said},
    rounds,
};

/// Agents killed: SIDECAR_AGENT_KILLS.
const KILLS: usize = 50;

#[test]
fn killed_again_and_again_under_load() {
    World::play(|world| {
        let kills = rounds("SIDECAR_AGENT_KILLS", KILLS)?;
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let b = Pod::enrolled(&agent, "b", &Settings::default())?;
        let pins = leaks::pins(&world.bpffs());
        let load = Load::start(&a, &b)?;
        let binary = programs::sidecar()?;
        for kill in 0..kills {
            agent.kill()?;
            // Some die before they could adopt anything, some in the middle, some after the sidecars have come back.
            thread::sleep(Duration::from_millis(100 * (kill as u64 % 3)));
            agent.launch(&binary)?;
            if kill % 3 == 1 {
                thread::sleep(Duration::from_millis(40 * (kill as u64 % 7)));
            } else {
                agent.wait()?;
            }
        }
        agent.wait()?;
        wait::until_true("both sidecars to be back", SOON, || {
            let listed = agent.workloads()?;
            Ok(listed.len() == 2 && listed.iter().all(|pod| !pod["sidecar"].is_null()))
        })?;
        load.expect_unharmed()?;
        ensure!(
            leaks::pins(&world.bpffs()) == pins,
            "what is pinned has changed: {:?}",
            leaks::pins(&world.bpffs())
        );
        ensure!(agent.kernel_events("a", "steered")? > 100, "not steered");
        println!("killed {kills} times");
        Ok(())
    });
}

/// The kernel half without any agent, for a while; then pods come and go again.
#[test]
fn without_an_agent_steering_goes_on() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let b = Pod::enrolled(&agent, "b", &Settings::default())?;
        // Else the sidecar leaves when the load is over, as it is alone then.
        let _stays = a.serving("stays", &["echo", "--listen", &a.v4(7001).to_string()])?;
        let load = Load::start(&a, &b)?;
        agent.stop()?;
        thread::sleep(Duration::from_secs(3));
        load.expect_unharmed()?;
        // One goes while nobody looks.
        drop(b);
        agent.restart(&programs::sidecar()?)?;
        said(a.proxy()?, "enrolled: steering", 2)?;
        let listed = agent.workloads()?;
        ensure!(listed.len() == 1, "{listed:?}");
        let c = Pod::enrolled(&agent, "c", &Settings::default())?;
        let to = c.v4(7000).to_string();
        let _echo = c.serving("echo", &["echo", "--listen", &to])?;
        ensure!(connects(&a, &to)?, "the new pod cannot be reached");
        ensure!(agent.kernel_events("c", "inbound")? > 0, "not steered");
        Ok(())
    });
}
