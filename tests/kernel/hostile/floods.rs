//! One pod uses up what it can: only its own.

use anyhow::ensure;
use sidecar_tests::world::{Agent, Pod, World};

use super::{GREET, SOON, application, call, call_from, closed, open};

/// Listens on more ports than are remembered for one workload, and stays.
const MANY_LISTENERS: &str = r#"
import resource, socket, time
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
held = []
for port in range(20000, 25000):
    s = socket.socket(); s.bind(("0.0.0.0", port)); s.listen(1); held.append(s)
print("listening on", len(held), flush=True)
time.sleep(600)
"#;

#[test]
fn listeners_of_one_pod_take_no_capture_from_another() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let hog = Pod::enrolled(&agent, "hog", &closed())?;
        let pod = Pod::enrolled(&agent, "b", &closed())?;
        let stranger = world.workload("a")?;
        let mut flood = application(&hog, "flood", MANY_LISTENERS, &[])?;
        flood.line_within("listening on 5000", SOON)?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8081", "6"])?;
        server.line_within("listening", SOON)?;
        let captured = ["nothing", "ECONNRESET"];
        for to in [pod.v4(8081), hog.v4(20000), hog.v4(24999)] {
            let said = call(&stranger, to)?;
            ensure!(captured.contains(&said.as_str()), "{to}: {said}");
        }
        let lost = agent.kernel_events("hog", "listener_lost")?;
        ensure!(lost > 0, "nothing was too much");
        ensure!(agent.kernel_events("b", "listener_lost")? == 0);
        Ok(())
    });
}

/// Connects in a network namespace of its own, where nobody accepts: each connection waits for its other end.
const MANY_CONNECTIONS: &str = r#"
import ctypes, errno, os, resource, socket, subprocess, sys, time
resource.setrlimit(resource.RLIMIT_NOFILE, (16384, 16384))
assert ctypes.CDLL(None).unshare(0x40000000) == 0
subprocess.check_call(["ip", "link", "set", "lo", "up"])
l = socket.socket(); l.bind(("127.0.0.1", 15002)); l.listen(0)
held, refused = [], 0
for n in range(9000):
    s = socket.socket(); s.setblocking(False)
    e = s.connect_ex(("203.0.113.1", 80)); held.append(s)
    refused += e not in (0, errno.EINPROGRESS)
print("waiting, refused", refused, flush=True)
time.sleep(600)
"#;

#[test]
fn connections_of_one_pod_take_no_room_from_another() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let hog = Pod::enrolled(&agent, "hog", &open())?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let stranger = world.workload("a")?;
        let outside = super::python(
            &stranger,
            stranger.cgroup(),
            "outside",
            GREET,
            &["0.0.0.0", "9000", "6"],
        )?;
        let mut outside = outside;
        outside.line_within("listening", SOON)?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        let mut flood = application(&hog, "flood", MANY_CONNECTIONS, &[])?;
        let said = flood.line_within("waiting", SOON)?;
        println!("{said}; {}", agent.kernel_events("hog", "connect_refused")?);
        let (client, own) = (stranger.v4(0).ip(), pod.v4(0).ip());
        // In and out, and with the right names at both ends.
        let said = call(&stranger, pod.v4(8080))?;
        ensure!(said == format!("hello {client}"), "inbound: {said}");
        let said = call_from(&pod.workload, &pod.app(), stranger.v4(9000))?;
        ensure!(said == format!("hello {own}"), "outbound: {said}");
        let refused = agent.kernel_events("hog", "connect_refused")?;
        ensure!(refused > 500, "{refused} refused: it had no bound");
        ensure!(agent.kernel_events("b", "connect_refused")? == 0);
        Ok(())
    });
}
