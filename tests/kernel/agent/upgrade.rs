//! A sidecar is replaced while connections go through it.

use anyhow::ensure;
use sidecar_tests::world::{Agent, Pod, Settings, World, agent::PROXY_UID, wait};

use super::{
    SOON,
    load::{Load, said},
    rounds,
};

/// Sidecars replaced: SIDECAR_UPGRADES. The whole is 10.
const UPGRADES: usize = 10;

#[test]
fn a_new_sidecar_takes_over_and_nothing_fails() {
    World::play(|world| {
        let upgrades = rounds("SIDECAR_UPGRADES", UPGRADES)?;
        let agent = Agent::start(world)?;
        // Connections that stay open may take their time.
        let settings = Settings::default().set("timeouts.drain", "5m");
        let mut a = Pod::enrolled(&agent, "a", &settings)?;
        let mut b = Pod::enrolled(&agent, "b", &settings)?;
        let load = Load::start(&a, &b)?;
        let mut old = Vec::new();
        for upgrade in 0..upgrades {
            let pod = if upgrade % 2 == 0 { &mut a } else { &mut b };
            let new = pod.another(&agent, "proxy", PROXY_UID)?;
            said(&new, "enrolled: steering", 1)?;
            let former = pod.take_proxy()?;
            said(&former, "ending when the connections have", 1)?;
            old.push(former);
            pod.set_proxy(new);
            pod.wait()?;
        }
        load.expect_unharmed()?;
        for former in old {
            // With nothing left to do they end by themselves.
            let finished = former.finish(SOON)?;
            ensure!(finished.code() == 0, "{finished:?}");
        }
        ensure!(agent.workloads()?.len() == 2, "{:?}", agent.workloads()?);
        println!("{upgrades} sidecars replaced");
        Ok(())
    });
}

/// Only the pod's own sidecar can be taken over from.
#[test]
fn a_stranger_in_the_pod_gets_no_listeners() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let mut a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let stranger = a.another(&agent, "app", PROXY_UID)?.finish(SOON)?;
        ensure!(
            stranger.code() == 1 && stranger.stderr.contains("does not hand them over"),
            "{stranger:?}"
        );
        ensure!(a.is_ready()?, "the sidecar suffered");
        wait::until_true("the sidecar to stay", SOON, || {
            Ok(agent.workloads()?.len() == 1)
        })
    });
}
