//! Step agent: a pod whose sidecar has no privilege enrols, is steered, and is gone when the agent is uninstalled.

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use sidecar_tests::world::{Agent, Pod, Settings, World};

pub fn one_pod(world: &World) -> Result<Value> {
    let mut agent = Agent::start(world)?;
    let pod = Pod::enrolled(&agent, "pod", &Settings::default())?;
    let outside = world.workload("outside")?;
    for (client, server, event) in [("pod", "outside", "steered"), ("outside", "pod", "inbound")] {
        let to = match server {
            "pod" => pod.v4(7200),
            _ => outside.v4(7200),
        };
        let to = to.to_string();
        let (listen, call) = (["names", "--listen", &to], ["call", "--to", &to]);
        let _server = match server {
            "pod" => pod.serving("names", &listen)?,
            _ => outside.serving("names", &listen)?,
        };
        let called = match client {
            "pod" => pod.run_traffic("call", &call)?,
            _ => outside.run_traffic("call", &call)?,
        };
        ensure!(
            called.stdout.contains(&to),
            "{client} got no answer: {called:?}"
        );
        let count = agent.kernel_events("pod", event)?;
        ensure!(count > 0, "the connection to {server} was not {event}");
    }
    let enrolled = agent.workloads()?.len();
    drop(pod);
    agent.stop()?;
    let uninstalled = agent.uninstall()?.success()?;
    Ok(json!({"enrolled": enrolled, "uninstall": uninstalled.stdout.trim()}))
}
