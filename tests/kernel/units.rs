//! The capabilities that the systemd units leave to the agent and to a sidecar are enough: both run under them, and steer.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Agent, Pod, Settings, World, programs};

/// The names in a unit's CapabilityBoundingSet, as setpriv has them.
fn capabilities(unit: &str) -> Result<Vec<String>> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy/systemd")
        .join(unit);
    let text = fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let set = text
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = set.context("no CapabilityBoundingSet")?.split_whitespace();
    Ok(names
        .filter_map(|name| Some(name.strip_prefix("CAP_")?.to_lowercase()))
        .collect())
}

/// A program that becomes `sidecar` with those capabilities, as root and for good.
fn confined(world: &World, capabilities: &[String]) -> Result<PathBuf> {
    let set: String = capabilities
        .iter()
        .map(|name| format!(",+{name}"))
        .collect();
    let script = format!(
        "#!/bin/sh\nexec {} --bounding-set -all{set} --inh-caps -all --no-new-privs {} \"$@\"\n",
        programs::packaged("setpriv", "util-linux")?.display(),
        programs::sidecar()?.display()
    );
    let path = world.directory().join("confined");
    fs::write(&path, script)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

#[test]
fn the_agents_unit_leaves_enough() {
    World::play(|world| {
        let confined = confined(world, &capabilities("sidecar-agent.service")?)?;
        let mut agent = Agent::start(world)?;
        agent.stop()?;
        agent.restart(&confined)?;
        let status = fs::read_to_string(format!("/proc/{}/status", agent.pid()?))?;
        ensure!(status.contains("NoNewPrivs:\t1"), "not confined: {status}");
        let server = world.workload("server")?;
        // An application that is older than the enrolment.
        let mut b = Pod::new(world, "b", &Settings::default())?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        b.enrol(&agent)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        server.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        for (pod, event) in [("a", "steered"), ("b", "inbound"), ("a", "redirected")] {
            ensure!(
                agent.kernel_events(pod, event)? > 0,
                "{pod} has no {event}: {}",
                agent.metrics()?
            );
        }
        Ok(())
    });
}

#[test]
fn the_sidecars_unit_leaves_enough() {
    World::play(|world| {
        let confined = confined(world, &capabilities("sidecar@.service")?)?;
        let settings = Settings::default().binary(&confined);
        let a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?.with_sidecar(&settings)?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        let counted = a.metrics()?;
        ensure!(
            counted.kernel_events("steered") > 0,
            "not steered: {counted}"
        );
        ensure!(
            counted.kernel_events("redirected") > 0,
            "not redirected: {counted}"
        );
        Ok(())
    });
}
