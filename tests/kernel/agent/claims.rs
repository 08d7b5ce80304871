//! The proxy of a pod is the cgroup that enrolled first, as long as anything runs in it: whether its connection is there or not, and
//! whichever agent asks.

use anyhow::{Result, ensure};
use sidecar_tests::world::{Agent, Pod, Running, Settings, World, programs, wait};

use super::{ENROL, SOON};

/// Says what a sidecar says, prints the answer, gives up its connection when it is told to, and stays.
const SIDECAR: &str = r#"
path, rule = sys.argv[1:]
listener = socket.create_server(("127.0.0.1", 0))
s = socket.socket(socket.AF_UNIX); s.connect(path)
print("answer", enrol(s, {"name": "claimed", "failRule": rule, "inboundCapture": "workload"}, listener), flush=True)
sys.stdin.readline()
s.close()
print("closed", flush=True)
sys.stdin.read()
"#;

/// A sidecar in the cgroup `group` of the pod, and what it was told.
fn claim(pod: &Pod<'_>, agent: &Agent<'_>, group: &str, rule: &str) -> Result<(Running, String)> {
    let python = programs::packaged("python3", "python3")?;
    let socket = agent.socket().display().to_string();
    let program = format!("{ENROL}{SIDECAR}");
    let cgroup = pod.workload.cgroup().join(group);
    let arguments = ["-c", &program, &socket, rule];
    let mut running =
        pod.workload
            .start_in(&cgroup, &format!("claims-{group}"), python, &arguments)?;
    let answer = running.line_within("answer", SOON)?;
    Ok((running, answer))
}

fn claimed(rule: &str) {
    World::play(|world| {
        let mut agent = Agent::start(world)?;
        let pod = Pod::new(world, "claimed", &Settings::default())?;
        let (mut first, answer) = claim(&pod, &agent, "proxy", rule)?;
        ensure!(answer.contains("\"enrolled\""), "{answer}");
        let refused = |agent: &Agent<'_>| -> Result<()> {
            let (_, answer) = claim(&pod, agent, "app", rule)?;
            let known = answer.contains("refused") && answer.contains("/proxy;");
            ensure!(known, "another cgroup is its proxy now: {answer}");
            Ok(())
        };
        refused(&agent)?;

        // It lives, its connection does not.
        first.write(b"\n")?;
        first.line_within("closed", SOON)?;
        let attached = usize::from(rule == "closed");
        wait::until_true("the agent to notice", SOON, || {
            let noticed = agent.log()?.contains("its sidecar has gone");
            Ok(noticed && agent.workloads()?.len() == attached)
        })?;
        refused(&agent)?;
        if rule == "closed" {
            // The next agent has never heard of it.
            agent.kill()?;
            agent.restart(&programs::sidecar()?)?;
            refused(&agent)?;
            // It comes back by itself.
            let (_again, answer) = claim(&pod, &agent, "proxy", rule)?;
            ensure!(answer.contains("\"enrolled\""), "{answer}");
        }

        // Nothing runs there any more: another one may be the proxy, as when a container starts anew.
        first.finish(SOON)?;
        wait::until_true("the claim to be free", SOON, || {
            let (_, answer) = claim(&pod, &agent, "app", rule)?;
            Ok(answer.contains("\"enrolled\""))
        })
    });
}

#[test]
fn a_later_claimant_is_refused_while_the_first_lives() {
    claimed("closed");
}

#[test]
fn a_later_claimant_is_refused_while_the_first_lives_though_detached() {
    claimed("open");
}
