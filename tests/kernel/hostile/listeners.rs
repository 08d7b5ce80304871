//! Listeners of every kind and origin: what is not known to be closed is captured.

use std::time::{Duration, Instant};

use anyhow::ensure;
use sidecar_tests::world::{Agent, Pod, World, wait};

use super::{GREET, SOON, application, call, closed, open, python};

/// Go listens so by default.
const MPTCP: &str = "262";
const TCP: &str = "6";

#[test]
fn multipath_tcp_is_captured() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &closed())?;
        let stranger = world.workload("a")?;
        for (port, protocol) in [(8080, TCP), (8081, MPTCP)] {
            let arguments = ["0.0.0.0", &port.to_string(), protocol];
            let mut server = application(&pod, "greet", GREET, &arguments)?;
            server.line_within("listening", SOON)?;
            // Also right after the listener came, when nobody has looked yet: refused or captured, never past the policy.
            let end = Instant::now() + Duration::from_secs(4);
            while Instant::now() < end {
                let said = call(&stranger, pod.v4(port))?;
                ensure!(
                    !said.contains("hello"),
                    "past the policy at port {port}: {said}"
                );
            }
            ensure!(
                call(&stranger, pod.v4(port))? != "ECONNREFUSED",
                "port {port} counts as closed"
            );
        }
        Ok(())
    });
}

/// The application sees its client, not the proxy.
#[test]
fn multipath_tcp_sees_its_client() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let stranger = world.workload("a")?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8081", MPTCP])?;
        server.line_within("listening", SOON)?;
        let expected = format!("hello {}", stranger.v4(0).ip());
        wait::until_true("the listener to be noticed", SOON, || {
            let said = call(&stranger, pod.v4(8081))?;
            ensure!(said == expected || said == "ECONNREFUSED", "{said}");
            Ok(said == expected)
        })
    });
}

/// Binds in one cgroup, and serves in another: socket activation, a hand-over, SCM_RIGHTS.
const HANDED_IN: &str = r#"
import os, socket, sys
l = socket.create_server((sys.argv[1], int(sys.argv[2])))
open(sys.argv[3] + "/cgroup.procs", "w").write(str(os.getpid()))
print("listening", flush=True)
while True:
    c, peer = l.accept()
    try: c.sendall(b"hello " + peer[0].encode())
    except OSError: pass
    c.close()
"#;

#[test]
fn a_listener_that_was_handed_in_is_captured() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &closed())?;
        let stranger = world.workload("a")?;
        let app = pod.app().display().to_string();
        let outside = world.cgroup();
        let mut server = python(
            &pod.workload,
            outside,
            "handed",
            HANDED_IN,
            &["0.0.0.0", "8080", &app],
        )?;
        server.line_within("listening", SOON)?;
        wait::until_true("the listener to be noticed", SOON, || {
            let said = call(&stranger, pod.v4(8080))?;
            ensure!(!said.contains("hello"), "past the policy: {said}");
            Ok(said != "ECONNREFUSED")
        })?;
        Ok(())
    });
}

/// A closed port is closed, and one that is open on loopback only is closed to others.
#[test]
fn a_closed_port_is_refused_as_without_a_sidecar() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let stranger = world.workload("a")?;
        let mut on_loopback = application(&pod, "loopback", GREET, &["127.0.0.1", "8080", TCP])?;
        let mut everywhere = application(&pod, "everywhere", GREET, &["::", "8081", TCP])?;
        on_loopback.line_within("listening", SOON)?;
        everywhere.line_within("listening", SOON)?;
        let client = stranger.v4(0).ip().to_string();
        wait::until_true("the ports to be known", SOON, || {
            Ok(call(&stranger, pod.v4(8079))? == "ECONNREFUSED")
        })?;
        for (port, expected) in [
            (8079, "ECONNREFUSED".to_owned()),
            (8080, "ECONNREFUSED".to_owned()),
            // The sidecar's own listener is nobody's business.
            (15006, "ECONNREFUSED".to_owned()),
            (8081, format!("hello ::ffff:{client}")),
        ] {
            let said = call(&stranger, pod.v4(port))?;
            ensure!(said == expected, "port {port}: {said}, not {expected}");
        }
        let closed = agent.kernel_events("b", "inbound_closed")?;
        ensure!(closed >= 3, "{closed} refused as closed");
        drop(everywhere);
        wait::until_true("the port to be closed again", SOON, || {
            Ok(call(&stranger, pod.v4(8081))? == "ECONNREFUSED")
        })
    });
}

/// Without an agent nobody looks, and what was seen is believed for some seconds only: then everything is captured.
#[test]
fn without_an_agent_unknown_ports_are_captured() {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &closed())?;
        let stranger = world.workload("a")?;
        agent.kill()?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8080", MPTCP])?;
        server.line_within("listening", SOON)?;
        wait::until_true("what was seen to be out of date", SOON, || {
            let said = call(&stranger, pod.v4(8080))?;
            ensure!(!said.contains("hello"), "past the policy: {said}");
            Ok(said != "ECONNREFUSED")
        })
    });
}
