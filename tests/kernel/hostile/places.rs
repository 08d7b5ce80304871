//! Places among the workloads are used again: what a former workload has left is nobody's in the name of the next one.

use std::fs;

use anyhow::{Context, ensure};
use sidecar_tests::world::{Agent, Pod, World, wait};

use super::{GREET, SOON, application, call, open};

/// A listener of a workload that has left and come back, while another one has taken its place. Nobody marks it anew, as the
/// process that holds it has moved elsewhere.
#[test]
fn a_listener_of_a_former_enrolment_is_not_the_next_ones() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let leaves = open().set("failRule", "open");
        let mut a = Pod::enrolled(&agent, "a", &leaves)?;
        let stranger = world.workload("c")?;
        let mut server = application(&a, "greet", GREET, &["0.0.0.0", "8080", "6"])?;
        server.line_within("listening", SOON)?;
        let elsewhere = world.cgroup().join("cgroup.procs");
        fs::write(&elsewhere, server.pid().to_string())?;
        let place = |name: &str| -> anyhow::Result<u64> {
            let workloads = agent.workloads()?;
            let found = workloads.iter().find(|one| one["workload"] == name);
            found
                .and_then(|one| one["slot"].as_u64())
                .context("it is not enrolled")
        };
        let before = place("a")?;
        // Keeps the pod from being empty.
        let _stays = a
            .workload
            .start_in(&a.app(), "stays", "/bin/sleep", &["600"])?;
        a.take_proxy()?.stop(SOON)?;
        wait::until_true("the pod to be detached", SOON, || {
            Ok(agent.workloads()?.is_empty())
        })?;
        let _b = Pod::enrolled(&agent, "b", &open())?;
        ensure!(
            place("b")? == before,
            "its place was not taken: this shows nothing"
        );
        a.enrol(&agent)?;
        let expected = format!("hello {}", stranger.v4(0).ip());
        wait::until_true("the listener to be noticed", SOON, || {
            let said = call(&stranger, a.v4(8080))?;
            ensure!(
                [&expected, "ECONNREFUSED"].contains(&said.as_str()),
                "{said}"
            );
            Ok(said == expected)
        })
    });
}
