//! Who holds a listener decides whether it is captured: one process of the application among the holders is enough.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use sidecar_tests::world::{Agent, Pod, Running, Settings, Workload, World, wait};

use super::{GREET, SOON, call, closed, python};

/// Nobody is greeted there, for some looks of userspace.
fn stays_captured(stranger: &Workloads<'_, '_>) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(8);
    while Instant::now() < end {
        let said = call(stranger.from, stranger.to.v4(8080))?;
        ensure!(!said.contains("hello"), "past the policy: {said}");
    }
    Ok(())
}

struct Workloads<'a, 'w> {
    from: &'a Workload<'w>,
    to: &'a Workload<'w>,
}

/// A pod whose group `batch` is excluded, and what was started in that group.
fn excluding<'w>(
    world: &'w World,
    agent: &Agent<'w>,
    script: &str,
    arguments: &[&str],
) -> Result<(Pod<'w>, Running)> {
    let settings = closed().push("workload.exclude.cgroups", "batch");
    let mut pod = Pod::new(world, "b", &settings)?;
    let batch = pod.workload.cgroup().join("batch");
    fs::create_dir(&batch)?;
    pod.enrol(agent)?;
    let line = batch.display().to_string();
    wait::until_true("the group to be excluded", SOON, || {
        Ok(agent.log()?.contains(&line))
    })?;
    let mut server = python(&pod.workload, &batch, "serves", script, arguments)?;
    server.line_within("listening", SOON)?;
    Ok((pod, server))
}

/// Greets in two processes, one of which moves to another cgroup, or none. Arguments: the cgroup.
const GREET_IN_TWO: &str = r#"
import os, socket, sys
l = socket.create_server(("0.0.0.0", 8080))
if os.fork() == 0 and len(sys.argv) > 1: open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
print("listening", flush=True)
while True:
    c, peer = l.accept(); c.sendall(b"hello " + peer[0].encode()); c.close()
"#;

#[test]
fn a_listener_that_the_application_holds_as_well_is_captured() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let stranger = world.workload("a")?;
        let app = world.cgroup().join("b").join("app").display().to_string();
        let (pod, _server) = excluding(world, &agent, GREET_IN_TWO, &[&app])?;
        stays_captured(&Workloads {
            from: &stranger,
            to: &pod.workload,
        })
    });
}

#[test]
fn a_listener_that_only_excluded_processes_hold_is_left_alone() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let stranger = world.workload("a")?;
        let (pod, _server) = excluding(world, &agent, GREET_IN_TWO, &[])?;
        let expected = format!("hello {}", stranger.v4(0).ip());
        wait::until_true("the listener to be known", SOON, || {
            Ok(call(&stranger, pod.v4(8080))? == expected)
        })
    });
}

/// Greets, and has more descriptors than anybody looks at.
const GREET_WITH_MANY: &str = r#"
import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
l = socket.create_server(("0.0.0.0", 8080))
for child in range(4):
    if os.fork() == 0: break
for n in range(5000): os.dup(l.fileno())
print("listening", flush=True)
while True:
    c, peer = l.accept(); c.sendall(b"hello " + peer[0].encode()); c.close()
"#;

/// What takes too much to find out is not known, and captured.
#[test]
fn who_holds_too_much_to_look_at_is_captured() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let stranger = world.workload("a")?;
        let (pod, _server) = excluding(world, &agent, GREET_WITH_MANY, &[])?;
        // All of them.
        std::thread::sleep(Duration::from_secs(1));
        stays_captured(&Workloads {
            from: &stranger,
            to: &pod.workload,
        })
    });
}

/// On a namespace that others use, too: what was made by the application stays captured, whoever holds it later.
#[test]
fn a_listener_that_has_left_the_application_stays_captured() {
    World::play(|world| {
        let settings = Settings::default().set("authorization.inbound.default", "deny");
        let b = world.workload("b")?.with_sidecar(&settings)?;
        let stranger = world.workload("a")?;
        let group = b.app_cgroup();
        let mut server = python(&b, &group, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        fs::write(
            world.cgroup().join("cgroup.procs"),
            server.pid().to_string(),
        )?;
        stays_captured(&Workloads {
            from: &stranger,
            to: &b,
        })
    });
}
