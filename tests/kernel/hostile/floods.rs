//! One pod uses up what it can: only its own.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use sidecar_tests::world::{Agent, Pod, Running, Workload, World, wait};

use super::{GREET, SOON, application, call, call_from, closed, greets, open};

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

/// Connects from an address and port that a connection to the sidecar has already: refused by the kernel after a place was kept for
/// each, again and again. Arguments: own address, address and port of a destination.
const MANY_CONNECTIONS: &str = r#"
import errno, socket, sys, time
own, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
def bound():
    s = socket.socket(); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1); s.bind((own, 33333))
    return s
first = bound(); first.connect((address, port))
refused = 0
while True:
    s = bound(); e = s.connect_ex((address, port)); s.close()
    if e == errno.ENOBUFS:
        refused += 1; time.sleep(0.001)
        if refused == 1: print("full", flush=True)
    else: assert e == errno.EADDRNOTAVAIL, errno.errorcode.get(e)
"#;

/// Uses up what the pod's application may hand over.
fn flood(pod: &Pod<'_>, to: &Workload<'_>) -> Result<Running> {
    let (own, to) = (pod.v4(0).ip().to_string(), to.v4(0).ip().to_string());
    let mut flood = application(pod, "flood", MANY_CONNECTIONS, &[&own, &to, "9000"])?;
    flood.line_within("full", SOON)?;
    Ok(flood)
}

#[test]
fn connections_of_one_pod_take_no_room_from_another() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let hog = Pod::enrolled(&agent, "hog", &open())?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let stranger = world.workload("a")?;
        let _outside = greets(&stranger, "9000")?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        let mut flood = flood(&hog, &stranger)?;
        let (client, own) = (stranger.v4(0).ip(), pod.v4(0).ip());
        // In and out, and with the right names at both ends.
        let said = call(&stranger, pod.v4(8080))?;
        ensure!(said == format!("hello {client}"), "inbound: {said}");
        let said = call_from(&pod.workload, &pod.app(), stranger.v4(9000))?;
        ensure!(said == format!("hello {own}"), "outbound: {said}");
        ensure!(flood.ended()?.is_none(), "the flood has ended: {flood}");
        let refused = agent.kernel_events("hog", "connect_refused")?;
        ensure!(refused > 0, "it had no bound");
        ensure!(agent.kernel_events("b", "connect_refused")? == 0);
        Ok(())
    });
}

/// What the application has used up is not the proxy's: its own connections are known as such, also where only that keeps it from
/// calling itself.
#[test]
fn an_application_takes_no_room_from_its_own_proxy() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let pod = Pod::enrolled(&agent, "b", &open())?;
        let stranger = world.workload("a")?;
        let second = Ipv4Addr::new(10, 77, 0, 200);
        pod.workload.namespace().add_address(IpAddr::V4(second))?;
        let _outside = greets(&stranger, "9000")?;
        let mut server = application(&pod, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        let mut flood = flood(&pod, &stranger)?;
        let client = stranger.v4(0).ip();
        for _ in 0..10 {
            let said = call(&stranger, (second, 8080).into())?;
            ensure!(said == format!("hello {client}"), "{said}");
        }
        ensure!(flood.ended()?.is_none(), "the flood has ended: {flood}");
        let inbound = agent.kernel_events("b", "inbound")?;
        ensure!(inbound == 10, "10 connections became {inbound}");
        ensure!(agent.kernel_events("b", "handover_failed")? == 0);
        Ok(())
    });
}

/// Asks for what it may not have. Arguments: address, how often, and whether it goes on living.
const DENIED: &str = r#"
import socket, sys
for n in range(int(sys.argv[2])):
    s = socket.socket(); s.setblocking(False); s.connect_ex((sys.argv[1], 1 + n % 60000)); s.close()
print("denied", flush=True)
"#;

/// All pods tell the agent through one ring buffer.
#[test]
fn events_of_one_pod_hide_none_of_another() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let denied = || {
            let denied = serde_json::json!([{ "name": "nobody", "cidrs": ["203.0.113.0/24"] }]);
            open().set("outbound.deny", denied)
        };
        let hog = Pod::enrolled(&agent, "hog", &denied())?;
        let pod = Pod::enrolled(&agent, "b", &denied())?;
        let process = Pid::from_raw(i32::try_from(agent.pid()?)?).context("it has no pid")?;
        kill_process(process, Signal::STOP)?;
        let arguments = ["203.0.113.1", "20000"];
        let flooded = application(&hog, "flood", DENIED, &arguments)?.finish(SOON);
        let asked = application(&pod, "asks", DENIED, &["203.0.113.2", "1"])?.finish(SOON);
        kill_process(process, Signal::CONT)?;
        flooded?.success()?;
        asked?.success()?;
        wait::until_true("the other pod's denial to be told", SOON, || {
            let log = agent.log()?;
            let mut lines = log.lines();
            Ok(lines.any(|line| line.contains("denied") && line.contains("203.0.113.2:1 ")))
        })?;
        // What is not told is counted.
        let counted = agent.kernel_events("hog", "denied")?;
        ensure!(counted == 20_000, "{counted} were counted");
        Ok(())
    });
}
