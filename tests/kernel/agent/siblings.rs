//! Containers of several owners side by side in one cgroup, as Docker has them: none of them enrols the others.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Agent, Pod, Running, Settings, Workload, World, programs};

use super::{ENROL, SOON, connects};

/// Says what a sidecar says, prints the answer and stays.
const SIDECAR: &str = r#"
listener = socket.create_server(("127.0.0.1", 0))
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1])
print("answer", enrol(s, {"name": "evil", "failRule": "closed", "inboundCapture": "workload"}, listener), flush=True)
sys.stdin.read()
"#;

/// One container of a flat layout.
struct Container<'w> {
    workload: Workload<'w>,
    cgroup: PathBuf,
}

impl<'w> Container<'w> {
    fn new(world: &'w World, name: &str) -> Result<Self> {
        let cgroup = world.cgroup().join("docker").join(name);
        fs::create_dir_all(&cgroup)?;
        let workload = world.workload(name)?;
        Ok(Self { workload, cgroup })
    }

    fn start(&self, name: &str, program: &str, arguments: &[&str]) -> Result<Running> {
        self.workload
            .start_in(&self.cgroup, name, program, arguments)
    }

    fn reaches(&self, to: &str) -> Result<bool> {
        let arguments = ["ping-pong", "--to", to, "--rounds", "1"];
        let ping =
            self.workload
                .start_in(&self.cgroup, "ping", programs::traffic()?, &arguments)?;
        Ok(ping.finish(SOON)?.status.success())
    }

    /// Starts a sidecar in the network namespace of `of`; what it was told.
    fn enrols(&self, of: &Self, agent: &Agent<'_>) -> Result<(Running, String)> {
        let python = programs::packaged("python3", "python3")?;
        let socket = agent.socket().display().to_string();
        let program = format!("{ENROL}{SIDECAR}");
        let arguments = ["-c", &program, &socket];
        let mut running = of
            .workload
            .start_in(&self.cgroup, "enrols", python, &arguments)?;
        let answer = running.line_within("answer", SOON)?;
        Ok((running, answer))
    }
}

#[test]
fn no_container_enrols_those_beside_it() {
    World::play(|world| {
        let shops = world.cgroup_pattern("shop-*")?;
        let agent = Agent::start_with(world, &["--workload-cgroup", &shops])?;
        let server = world.workload("server")?;
        let to = server.v4(7000).to_string();
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let [one, two] = [Container::new(world, "c1")?, Container::new(world, "c2")?];
        let _stays = two.start("stays", "/bin/sleep", &["600"])?;
        ensure!(two.reaches(&to)?, "nothing is reached");

        let (evil, answer) = one.enrols(&one, &agent)?;
        ensure!(answer.contains("refused"), "it enrolled: {answer}");
        let advice = world.cgroup_pattern("docker")?;
        let advice = format!("--workload-cgroup {advice}");
        ensure!(answer.contains(&advice), "no word of what to do: {answer}");
        ensure!(two.reaches(&to)?, "the container beside it is cut off");
        drop(evil);

        // All that run there share a network namespace, for now: that proves nothing about the next one.
        let third = Container::new(world, "c3")?;
        let _alike = third
            .workload
            .start_in(&two.cgroup, "alike", "/bin/sleep", &["600"])?;
        let (_evil, answer) = third.enrols(&two, &agent)?;
        ensure!(answer.contains("refused"), "it enrolled: {answer}");
        ensure!(two.reaches(&to)?, "the container beside it is cut off");
        ensure!(agent.workloads()?.is_empty(), "{:?}", agent.workloads()?);

        // What the operator has named is a workload.
        let shop = Pod::enrolled(&agent, "shop-a", &Settings::default())?;
        ensure!(connects(&shop, &to)?, "the shop reaches nothing");
        ensure!(agent.kernel_events("shop-a", "steered")? > 0, "not steered");
        let listed = agent.workloads()?;
        let listed = listed.first().context("nobody is enrolled")?;
        let cgroup = listed["cgroup"].as_str().unwrap_or_default();
        ensure!(cgroup.ends_with("/shop-a"), "{listed}");
        Ok(())
    });
}
