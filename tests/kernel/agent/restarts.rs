//! The agent goes, in every way, under load: connections and steering do not notice.

use std::{fs, path::PathBuf, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    leaks,
    world::{Agent, Pod, Settings, World, programs, wait},
};

use super::{
    SOON, connects,
    load::{Load, said},
    rounds,
};

/// Agents killed: SIDECAR_AGENT_KILLS. The whole is 50.
const KILLS: usize = 15;
/// Agents upgraded: SIDECAR_AGENT_UPGRADES. The whole is 10.
const UPGRADES: usize = 4;

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

/// The same program with another BPF object: a byte of a name that the kernel only shows.
fn with_another_object(world: &World, number: usize) -> Result<PathBuf> {
    let mut bytes = fs::read(programs::sidecar()?)?;
    // The producer's name, in the object's debug information for people: not loaded.
    let needle = b"rustc version";
    let object = find(&bytes, b"Dual MIT/GPL\0").context("no object in the binary")?;
    let around = object.saturating_sub(2 << 20)..(object + (2 << 20)).min(bytes.len());
    let place = find(&bytes[around.clone()], needle).context("nothing to change")? + around.start;
    bytes[place + needle.len()] = b'0' + u8::try_from(number)?;
    let path = world.directory().join(format!("sidecar-{number}"));
    fs::write(&path, bytes)?;
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(path)
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes
        .windows(needle.len())
        .position(|window| window == needle)
}

#[test]
fn upgraded_again_and_again_under_load() {
    World::play(|world| {
        let upgrades = rounds("SIDECAR_AGENT_UPGRADES", UPGRADES)?;
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let mut b = Pod::enrolled(&agent, "b", &Settings::default())?;
        // Else the sidecar leaves when the load is over, as it is alone then.
        let stays = a.serving("stays", &["echo", "--listen", &a.v4(7001).to_string()])?;
        let load = Load::start(&a, &b)?;
        for upgrade in 0..upgrades {
            agent.stop()?;
            agent.restart(&with_another_object(world, upgrade)?)?;
            said(a.proxy()?, "enrolled: steering", upgrade + 2)?;
            said(b.proxy()?, "enrolled: steering", upgrade + 2)?;
        }
        load.expect_unharmed()?;
        let versions = || -> Result<usize> {
            let listed = fs::read_dir(world.bpffs())?.flatten();
            Ok(listed
                .filter(|entry| entry.file_name().to_string_lossy().starts_with('v'))
                .count())
        };
        // The pods stay with the object that they began with; new ones get the new one, and both talk to each other.
        ensure!(versions()? == 2, "{} objects", versions()?);
        let c = Pod::enrolled(&agent, "c", &Settings::default())?;
        let to = c.v4(7000).to_string();
        let _echo = c.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("across", &["ping-pong", "--to", &to])?;
        ensure!(agent.kernel_events("c", "inbound")? > 0, "not steered");

        // A sidecar that starts in another cgroup brings its pod to the new object; what was there goes with the last.
        b.take_proxy()?.stop(SOON)?;
        fs::create_dir(b.workload.cgroup().join("proxy-2"))?;
        let proxy = b.another(&agent, "proxy-2", "1337")?;
        b.set_proxy(proxy);
        b.wait()?;
        ensure!(connects(&b, &to)?, "not reached after the change");
        drop(stays);
        drop(a);
        wait::until_true("the old object to go", SOON, || Ok(versions()? == 1))
    });
}
