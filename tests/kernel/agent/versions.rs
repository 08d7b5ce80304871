//! Agents of other builds follow each other under load: with another object of the same layout, whose programs reach pods
//! and connections that exist, and with one of another ABI, which leaves them alone.

use std::{collections::BTreeSet, fs, path::PathBuf, thread, time::Duration};

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

/// Agents upgraded: SIDECAR_AGENT_UPGRADES.
const UPGRADES: usize = 10;
/// Has an agent take its object for one of another ABI.
const OTHER_ABI: (&str, &str) = ("SIDECAR_FAULT", "other-abi");

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

/// Directories of layouts.
fn layouts(world: &World) -> Result<Vec<PathBuf>> {
    let listed = fs::read_dir(world.bpffs())?.flatten();
    let named = listed.filter(|entry| entry.file_name().to_string_lossy().starts_with('v'));
    Ok(named.map(|entry| entry.path()).collect())
}

/// What is pinned in `layout` and not a map: links, and the stub.
fn links(layout: &std::path::Path) -> Vec<PathBuf> {
    let mut pins = leaks::pins(layout);
    pins.retain(|pin| {
        let name = pin.file_name().and_then(|name| name.to_str());
        name.is_some_and(|name| name.contains('-') || name == "trace_splice")
    });
    pins
}

/// Programs of all links.
fn attached(layout: &std::path::Path) -> Result<BTreeSet<u64>> {
    links(layout)
        .iter()
        .map(|pin| leaks::program_of(pin))
        .collect()
}

#[test]
fn upgraded_again_and_again_under_load() {
    World::play(|world| {
        let upgrades = rounds("SIDECAR_AGENT_UPGRADES", UPGRADES)?;
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let b = Pod::enrolled(&agent, "b", &Settings::default())?;
        // Else the sidecar leaves when the load is over, as it is alone then.
        let _stays = a.serving("stays", &["echo", "--listen", &a.v4(7001).to_string()])?;
        let layout = layouts(world)?.pop().context("no directory")?;
        let relays = layout.join("MSG_PROGRAMS");
        let pins = leaks::pins(world.bpffs().as_path());
        let mut former = attached(&layout)?;
        let mut relay = leaks::called_by(&relays)?;
        let load = Load::start(&a, &b)?;
        for upgrade in 0..upgrades {
            agent.stop()?;
            agent.restart(&with_another_object(world, upgrade)?)?;
            said(a.proxy()?, "enrolled: steering", upgrade + 2)?;
            said(b.proxy()?, "enrolled: steering", upgrade + 2)?;
            // Not one of the former programs is left, on whatever link of whichever pod.
            let now = attached(&layout)?;
            ensure!(now.is_disjoint(&former), "{former:?} and then {now:?}");
            let called = leaks::called_by(&relays)?;
            ensure!(called != relay, "messages still run program {relay}");
            (former, relay) = (now, called);
        }
        load.expect_unharmed()?;
        ensure!(layouts(world)? == [layout.clone()], "{:?}", layouts(world)?);
        ensure!(
            leaks::pins(&world.bpffs()) == pins,
            "what is pinned has changed: {:?}",
            leaks::pins(&world.bpffs())
        );
        let c = Pod::enrolled(&agent, "c", &Settings::default())?;
        let to = c.v4(7000).to_string();
        let _echo = c.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("across", &["ping-pong", "--to", &to])?;
        ensure!(agent.kernel_events("c", "inbound")? > 0, "not steered");
        println!("{} links of each of {upgrades} agents", former.len());
        Ok(())
    });
}

/// What an upgrade mends is mended for connections that exist: here the other object does not join hops.
#[test]
fn an_upgrade_reaches_connections_that_exist() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let settings = Settings::default().protocol(7000, "tcp");
        let settings = settings.set("redirect.adaptive", "false");
        let a = Pod::enrolled(&agent, "a", &settings)?;
        let b = Pod::enrolled(&agent, "b", &settings)?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to, "--nonblocking"])?;
        let endless = ["--rounds", "1000000", "--pause-ms", "10", "--nonblocking"];
        let until = ["ping-pong", "--to", &to, "--until-input-ends"];
        let ping = a.traffic("ping-pong", &[&until[..], &endless[..]].concat())?;
        let joins = |agent: &Agent<'_>| -> Result<bool> {
            let before = agent.kernel_events("a", "joined")?;
            let redirected = agent.kernel_events("a", "redirected")?;
            thread::sleep(Duration::from_secs(1));
            ensure!(
                agent.kernel_events("a", "redirected")? > redirected,
                "nothing is redirected any more"
            );
            Ok(agent.kernel_events("a", "joined")? > before)
        };
        wait::until_true("hops to be joined", SOON, || joins(&agent))?;
        agent.stop()?;
        agent.set_environment(&[("SIDECAR_FAULT", "naive-redirect")]);
        agent.restart(&programs::sidecar()?)?;
        ensure!(!joins(&agent)?, "the old program runs on");
        ping.finish(SOON)?.success()?;
        Ok(())
    });
}

/// One link that cannot be given another program keeps all of them as they were.
#[test]
fn an_upgrade_that_fails_changes_nothing() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let b = Pod::enrolled(&agent, "b", &Settings::default())?;
        let load = Load::start(&a, &b)?;
        let layout = layouts(world)?.pop().context("no directory")?;
        let relays = layout.join("MSG_PROGRAMS");
        let (former, relay) = (attached(&layout)?, leaks::called_by(&relays)?);
        agent.stop()?;
        // A link under the name of another program, the last one that is looked at.
        let last = links(&layout.join("workloads")).into_iter().max();
        let last = last.context("no link")?;
        let directory = last.parent().context("no directory")?;
        let misnamed = directory.join("zz-cgroup_connect4");
        fs::rename(&last, &misnamed)?;
        let mut refused = agent.launch_expecting_failure(&with_another_object(world, 1)?)?;
        ensure!(
            refused.contains("cannot be given our program")
                && refused.contains("start that one again"),
            "{refused}"
        );
        ensure!(
            attached(&layout)? == former,
            "{former:?}, then {:?}",
            attached(&layout)?
        );
        ensure!(
            leaks::called_by(&relays)? == relay,
            "messages run another program"
        );
        fs::rename(&misnamed, &last)?;

        // A map that is not ours, under the name of one that is.
        let (map, aside) = (layout.join("PORTS"), layout.join("PORTS-aside"));
        fs::rename(&map, &aside)?;
        fs::rename(layout.join("CGROUPS"), &map)?;
        refused = agent.launch_expecting_failure(&programs::sidecar()?)?;
        ensure!(refused.contains("no map of ours"), "{refused}");
        fs::rename(&map, layout.join("CGROUPS"))?;
        fs::rename(&aside, &map)?;

        agent.restart(&programs::sidecar()?)?;
        said(a.proxy()?, "enrolled: steering", 2)?;
        load.expect_unharmed()
    });
}

/// Pods of another ABI go on untouched, new ones are attached with ours, and the way back is the same.
#[test]
fn changed_to_another_abi_and_back_under_load() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let mut b = Pod::enrolled(&agent, "b", &Settings::default())?;
        let _stays = a.serving("stays", &["echo", "--listen", &a.v4(7001).to_string()])?;
        let old = layouts(world)?.pop().context("no directory")?;
        let former = attached(&old.join("workloads"))?;
        let load = Load::start(&a, &b)?;
        let binary = programs::sidecar()?;

        agent.stop()?;
        agent.set_environment(&[OTHER_ABI]);
        agent.restart(&binary)?;
        said(a.proxy()?, "enrolled: steering", 2)?;
        said(b.proxy()?, "enrolled: steering", 2)?;
        ensure!(
            attached(&old.join("workloads"))? == former,
            "the old pods were touched"
        );
        ensure!(layouts(world)?.len() == 2, "{:?}", layouts(world)?);
        let listed = agent.workloads()?;
        ensure!(
            listed.len() == 2 && listed.iter().all(|pod| !pod["sidecar"].is_null()),
            "{listed:?}"
        );

        // A new pod is attached with the new object, and reaches the old ones.
        let c = Pod::enrolled(&agent, "c", &Settings::default())?;
        let to = c.v4(7000).to_string();
        let _echo = c.serving("echo", &["echo", "--listen", &to])?;
        ensure!(connects(&a, &to)?, "the new pod is not reached");
        ensure!(agent.kernel_events("c", "inbound")? > 0, "not steered");
        // `inspect` is of the first ABI, and tells of the pods of both.
        let inspected = agent.inspect()?;
        let known = |name: &str| {
            let mut pods = inspected["workloads"].as_array().into_iter().flatten();
            pods.find(|pod| pod["workload"] == name).cloned()
        };
        let (a_pod, c_pod) = (known("a").context("a")?, known("c").context("c")?);
        ensure!(
            a_pod["events"]["steered"].as_u64() > Some(0) && a_pod["sidecar"] == true,
            "{a_pod}"
        );
        ensure!(
            c_pod["other_layout"] == true && c_pod["links"].as_array().map(Vec::len) > Some(8),
            "{c_pod}"
        );
        let cgroup = c.workload.cgroup().to_string_lossy().into_owned();
        ensure!(c_pod["cgroups"] == serde_json::json!([cgroup]), "{c_pod}");

        // Back: now the new pod is the one that is left alone.
        agent.stop()?;
        agent.set_environment(&[]);
        agent.restart(&binary)?;
        said(c.proxy()?, "enrolled: steering", 2)?;
        said(a.proxy()?, "enrolled: steering", 3)?;
        ensure!(
            connects(&a, &to)?,
            "the pod of the other ABI is not reached"
        );
        ensure!(agent.kernel_events("a", "steered")? > 100, "not steered");

        // And forth again; a sidecar that starts anew brings its pod along.
        agent.stop()?;
        agent.set_environment(&[OTHER_ABI]);
        agent.restart(&binary)?;
        said(a.proxy()?, "enrolled: steering", 4)?;
        load.expect_unharmed()?;
        b.take_proxy()?.stop(SOON)?;
        b.enrol(&agent)?;
        ensure!(connects(&b, &to)?, "not reached after the change");
        ensure!(
            agent.kernel_events("b", "steered")? > 0,
            "not attached anew"
        );

        // The old directory goes with its last pod.
        drop(a);
        wait::until_true("the old layout to go", SOON, || {
            Ok(layouts(world)?.len() == 1)
        })?;
        drop((b, c));
        wait::until_true("all pods to go", SOON, || Ok(agent.workloads()?.is_empty()))?;
        agent.stop()?;
        ensure!(
            leaks::pins(&world.bpffs()).is_empty(),
            "{:?}",
            leaks::pins(&world.bpffs())
        );
        Ok(())
    });
}
