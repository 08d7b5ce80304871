//! The node's agent and sidecars without privilege: real processes of another user, without a capability, in cgroups of
//! their own, that are steered because an agent attaches for them.

mod anew;
mod claims;
mod csi;
mod enrolment;
mod failed;
mod foreign;
mod greedy;
mod hostile;
mod impostors;
mod lifecycle;
mod load;
mod many;
mod probes;
mod restarts;
mod siblings;
mod upgrade;
mod versions;

use std::time::Duration;

use anyhow::Result;
use sidecar_tests::world::Pod;

/// Longer than anything takes, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(90);

/// For Python programs that say what a sidecar says: `agent` is connected to the agent's socket, the answer is its JSON.
const ENROL: &str = r#"
import array, json, os, socket, struct, sys
def enrol(agent, steering, listener):
    text = json.dumps({"kind": "enrol", "outboundPort": 15001, "steering": steering,
                       "listeners": {"workers": 1, "outbound": 1}}).encode()
    try:
        agent.sendmsg([b"SCR\x01" + struct.pack("<I", len(text)) + text],
                      [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()] * 5))])
    except BrokenPipeError: pass  # Refused before it was asked: the answer is there.
    head = agent.recv(8, socket.MSG_WAITALL)
    return agent.recv(struct.unpack("<I", head[4:])[0], socket.MSG_WAITALL).decode()
"#;

/// Whether one connection of the pod's application to `to` brings an answer.
fn connects(pod: &Pod<'_>, to: &str) -> Result<bool> {
    let arguments = ["ping-pong", "--to", to, "--rounds", "1"];
    let finished = pod.traffic("connects", &arguments)?.finish(SOON)?;
    Ok(finished.status.success())
}

/// Repetitions of a test that has a long form, which the variable asks for.
fn rounds(variable: &str, usual: usize) -> Result<usize> {
    match std::env::var(variable) {
        Ok(text) => Ok(text.parse()?),
        Err(_) => Ok(usual),
    }
}
