//! Hostile and odd neighbours of the kernel half: they attack maps, sockets and joins, not only the agent's socket. What they
//! get is what a stranger gets, and nobody else notices.

mod addresses;
mod clients;
mod floods;
mod handed;
mod holders;
mod listeners;
mod places;
pub mod programs;
mod storage;
mod thief;

use std::{net::SocketAddr, path::Path, time::Duration};

use anyhow::Result;
use sidecar_tests::world::{Pod, Running, Settings, Workload, programs as installed};

/// Longer than anything takes, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(90);

/// Nobody may call the application.
fn closed() -> Settings {
    Settings::default()
        .set("lifecycle.exitWhenAlone", false)
        .set("authorization.inbound.default", "deny")
}

/// A pod whose application is left alone by its sidecar's end.
fn open() -> Settings {
    Settings::default().set("lifecycle.exitWhenAlone", false)
}

/// Runs a Python program in a cgroup of the workload.
fn python(
    workload: &Workload<'_>,
    group: &Path,
    name: &str,
    script: &str,
    arguments: &[&str],
) -> Result<Running> {
    let python = installed::packaged("python3", "python3")?;
    let words = [&["-c", script], arguments].concat();
    workload.start_in(group, name, python, &words)
}

/// As [`python`], as the pod's application.
fn application(pod: &Pod<'_>, name: &str, script: &str, arguments: &[&str]) -> Result<Running> {
    python(&pod.workload, &pod.app(), name, script, arguments)
}

/// Greets whoever connects from a program of the workload's that no sidecar knows, over TCP.
fn greets(workload: &Workload<'_>, port: &str) -> Result<Running> {
    let arguments = ["0.0.0.0", port, "6"];
    let name = format!("greet-{port}");
    let mut server = python(workload, workload.cgroup(), &name, GREET, &arguments)?;
    server.line_within("listening", SOON)?;
    Ok(server)
}

/// Greets whoever connects, by the name that it sees. Arguments: address, port, protocol (262: Multipath TCP), family.
const GREET: &str = r#"
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
l = socket.socket(family, socket.SOCK_STREAM, int(sys.argv[3]))
l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
l.bind((sys.argv[1], int(sys.argv[2]))); l.listen(64)
print("listening", flush=True)
while True:
    c, peer = l.accept()
    try: c.sendall(b"hello " + peer[0].encode())
    except OSError: pass
    c.close()
"#;

/// Says what one connection brings: the greeting, or the error. Arguments: address, port.
const CALL: &str = r#"
import errno, socket, sys
try:
    s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 10)
    s.settimeout(10)
    print("said", s.recv(100).decode() or "nothing", flush=True)
except OSError as e: print("said", errno.errorcode.get(e.errno, str(e)), flush=True)
"#;

/// What a connection from `workload`, which has no sidecar, brings.
fn call(workload: &Workload<'_>, to: SocketAddr) -> Result<String> {
    call_from(workload, workload.cgroup(), to)
}

fn call_from(workload: &Workload<'_>, group: &Path, to: SocketAddr) -> Result<String> {
    let (ip, port) = (to.ip().to_string(), to.port().to_string());
    let running = python(workload, group, "call", CALL, &[&ip, &port])?;
    let said = running.finish(SOON)?.success()?.stdout;
    Ok(said.trim().trim_start_matches("said ").to_owned())
}
