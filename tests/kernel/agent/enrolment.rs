//! Enrolment: who gets what, when it is ready, what follows a change, what is left.

use std::fs;

use anyhow::{Result, ensure};
use rustix::process::Signal;
use sidecar_tests::{
    leaks::{self, Held},
    world::{Agent, Pod, Running, Settings, World, programs, wait},
};

use super::{SOON, connects};

fn status(pid: u32, field: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(line.unwrap_or_default().trim().to_owned())
}

#[test]
fn a_sidecar_without_privilege_is_steered() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let b = Pod::enrolled(&agent, "b", &Settings::default())?;
        for pod in [&a, &b] {
            let pid = pod.proxy()?.pid();
            let capabilities = status(pid, "CapEff:")? + &status(pid, "CapBnd:")?;
            ensure!(
                capabilities.bytes().all(|byte| byte == b'0'),
                "it has capabilities: {capabilities}"
            );
            ensure!(
                status(pid, "Uid:")?.starts_with("1337"),
                "it is another user"
            );
        }
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        for (pod, event) in [("a", "steered"), ("b", "inbound"), ("a", "redirected")] {
            let count = agent.kernel_events(pod, event)?;
            ensure!(count > 0, "{pod} has no {event}: {}", agent.metrics()?);
        }
        // The addresses are those that there would be without a sidecar.
        let names = b.v4(7001).to_string();
        let _names = b.serving("names", &["names", "--listen", &names])?;
        let called = a.run_traffic("call", &["call", "--to", &names])?;
        ensure!(called.stdout.contains(&names), "{called:?}");

        let listed = agent.workloads()?;
        ensure!(listed.len() == 2, "{listed:?}");
        ensure!(listed[0]["sidecar"]["uid"] == 1337, "{listed:?}");
        let inspected = agent.inspect()?;
        let found = inspected["workloads"].as_array().map_or(0, Vec::len);
        ensure!(found == 2, "{inspected}");
        Ok(())
    });
}

/// The application is started when the sidecar is ready: steered from its first connection.
#[test]
fn ready_means_steered() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        agent.kill()?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let mut a = Pod::new(world, "a", &Settings::default())?;
        a.launch(&agent)?;
        wait::until_true("the sidecar to wait", SOON, || {
            Ok(a.proxy()?.stderr()?.contains("waiting for the agent"))
        })?;
        ensure!(!a.is_ready()?, "it is ready without an agent");
        agent.restart(&programs::sidecar()?)?;
        a.wait()?;
        ensure!(connects(&a, &to)?, "it does not connect");
        ensure!(agent.kernel_events("a", "steered")? == 1, "not steered");
        Ok(())
    });
}

#[test]
fn rules_follow_the_configuration() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        ensure!(connects(&a, &to)?, "it does not connect");
        let denied = Settings::default().push(
            "outbound.deny",
            serde_json::json!({"name": "no-echo", "ports": [7000]}),
        );
        fs::write(world.directory().join("a.yaml"), denied.text("a"))?;
        a.proxy()?.signal(Signal::HUP)?;
        // The proxy refuses it, too, and may be the first to know.
        wait::until_true("the kernel half's denial", SOON, || {
            Ok(!connects(&a, &to)? && agent.kernel_events("a", "denied")? > 0)
        })?;
        wait::until_true("the agent to say so", SOON, || {
            Ok(agent.log()?.contains("no-echo"))
        })?;
        fs::write(
            world.directory().join("a.yaml"),
            Settings::default().text("a"),
        )?;
        a.proxy()?.signal(Signal::HUP)?;
        wait::until_true("the denial to end", SOON, || connects(&a, &to))
    });
}

#[test]
fn a_pod_of_the_nodes_network_is_refused() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let configuration = world.directory().join("host.yaml");
        fs::write(&configuration, Settings::default().text("host"))?;
        let mut command = world.command_beside("host", &programs::sidecar()?)?;
        command.arg("proxy").arg("--agent").arg(agent.socket());
        command.arg("-c").arg(&configuration);
        let proxy = Running::start("host", world.directory(), &mut command)?;
        wait::until_true("the refusal", SOON, || {
            Ok(proxy.stderr()?.contains("hostNetwork"))
        })?;
        ensure!(agent.workloads()?.is_empty(), "it was attached");
        proxy.stop(SOON)?;
        Ok(())
    });
}

/// Kills the sidecar; what its pod can still do; then it comes back in place.
fn killed(fail_rule: &str, still_connects: bool) {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let settings = Settings::default().set("failRule", fail_rule);
        let mut a = Pod::enrolled(&agent, "a", &settings)?;
        let inbound = a.v4(7001).to_string();
        let _echo_a = a.serving("echo", &["echo", "--listen", &inbound])?;
        // Somebody lives on in the pod.
        ensure!(connects(&a, &to)?, "it does not connect");
        let proxy = a.take_proxy()?;
        proxy.signal(Signal::KILL)?;
        proxy.finish(SOON)?;
        wait::until_true("the agent to notice", SOON, || {
            Ok(agent.log()?.contains("its sidecar has gone"))
        })?;
        ensure!(
            connects(&a, &to)? == still_connects,
            "outbound, {fail_rule}: connects is not {still_connects}"
        );
        let call = ["ping-pong", "--to", &inbound, "--rounds", "1"];
        let called = server.traffic("inbound", &call)?.finish(SOON)?;
        ensure!(
            called.status.success() == still_connects,
            "inbound, {fail_rule}: connects is not {still_connects}"
        );
        let before = agent.kernel_events("a", "steered").unwrap_or(0);
        a.enrol(&agent)?;
        ensure!(connects(&a, &to)?, "it does not connect again");
        let steered = agent.kernel_events("a", "steered")?;
        ensure!(steered > 0 && steered != before, "not steered: {steered}");
        server.run_traffic("inbound", &call)?;
        Ok(())
    });
}

#[test]
fn killed_and_closed_it_refuses() {
    killed("closed", false);
}

#[test]
fn killed_and_open_it_is_bypassed() {
    killed("open", true);
}

/// A pod that goes takes everything of its with it, and so does the last agent.
#[test]
fn nothing_is_left() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let b = Pod::enrolled(&agent, "b", &Settings::default())?;
        let to = b.v4(7000).to_string();
        let echo = b.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        let held = Held::by(agent.pid()?, &world.bpffs())?;
        ensure!(held.count("link") >= 2 * 9, "too few links: {held:?}");
        drop(echo);
        drop(a);
        drop(b);
        wait::until_true("the pods to be detached", SOON, || {
            Ok(agent.workloads()?.is_empty())
        })?;
        let finished = agent.stop()?;
        ensure!(finished.code() == 0, "{finished:?}");
        let pinned = leaks::pins(&world.bpffs());
        ensure!(pinned.is_empty(), "still pinned: {pinned:?}");
        held.expect_gone()?;
        let uninstalled = agent.uninstall()?;
        ensure!(
            uninstalled.code() == 0 && uninstalled.stdout.contains("nothing is left"),
            "{uninstalled:?}"
        );
        Ok(())
    });
}

/// An agent that ends leaves pods as they are; `uninstall` does not.
#[test]
fn uninstall_removes_everything() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let mut a = Pod::enrolled(&agent, "a", &Settings::default())?;
        let busy = agent.uninstall()?;
        ensure!(
            busy.code() == 1 && busy.stderr.contains("another agent"),
            "{busy:?}"
        );
        let held = Held::by(agent.pid()?, &world.bpffs())?;
        agent.stop()?;
        ensure!(connects(&a, &to)?, "the agent took steering with it");
        a.take_proxy()?.stop(SOON)?;
        ensure!(!connects(&a, &to)?, "refusal ended with the agent");
        let uninstalled = agent.uninstall()?;
        ensure!(
            uninstalled.code() == 0 && uninstalled.stdout.contains("removed pod a"),
            "{uninstalled:?}"
        );
        ensure!(connects(&a, &to)?, "it is still refused");
        held.expect_gone()
    });
}
