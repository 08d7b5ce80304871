//! Many pods that come and go in random order: how long each waits, what each costs, and that nothing is left.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    leaks::{self, Held},
    random::Random,
    world::{Agent, Running, World, programs, wait},
};

use super::{ENROL, SOON, rounds};

/// Pods at once: SIDECAR_AGENT_PODS. The whole is 200.
const PODS: usize = 60;
/// SIDECAR_AGENT_ROUNDS. The whole is 10.
const ROUNDS: usize = 2;
const MEDIAN: Duration = Duration::from_millis(20);

/// A pod that says what a sidecar says and then waits for its input to end: 200 real sidecars would measure themselves. It
/// is a process in a network namespace of its own and two cgroups of its own; what is attached for it is real.
const SIDECAR: &str = r#"
import ctypes, time
socket_path, cgroup, name = sys.argv[1:]
os.makedirs(cgroup + "/proxy"); os.makedirs(cgroup + "/app")
open(cgroup + "/proxy/cgroup.procs", "w").write(str(os.getpid()))
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000): sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
listener = socket.socket(); listener.bind(("0.0.0.0", 15006)); listener.listen()
steering = {"name": name, "failRule": "closed", "inboundCapture": "workload", "outboundExcludePorts": [22],
            "outboundExcludeCidrs": ["10.0.0.0/8"]}
s = socket.socket(socket.AF_UNIX); s.connect(socket_path)
started = time.perf_counter()
answer = enrol(s, steering, listener)
took = time.perf_counter() - started
print("enrolled" if '"enrolled"' in answer else answer, took, flush=True)
sys.stdin.read()
"#;

#[test]
fn many_come_and_go() {
    // It measures.
    World::play_alone(|world| {
        let (pods, times) = (
            rounds("SIDECAR_AGENT_PODS", PODS)?,
            rounds("SIDECAR_AGENT_ROUNDS", ROUNDS)?,
        );
        let mut agent = Agent::start(world)?;
        let mut random = Random::new(5);
        let (before, empty) = (agent.descriptors()?, agent.memory_bytes()?);
        let mut waited = Vec::new();
        for round in 0..times {
            let mut running = Vec::new();
            for pod in 0..pods {
                let mut new = start(world, &agent, round, pod)?;
                waited.push(enrolled(&mut new)?);
                running.push(Some(new));
                // A third goes at once, in no order.
                if random.below(3) == 0 {
                    let victim = random.below(running.len() as u64) as usize;
                    if let Some(gone) = running[victim].take() {
                        end(world, gone, round, victim)?;
                    }
                }
            }
            let there = running.iter().flatten().count();
            wait::until_true("those that have gone to be detached", SOON, || {
                Ok(agent.workloads()?.len() == there)
            })?;
            let each = agent.memory_bytes()?.saturating_sub(empty) / there.max(1) as u64;
            println!("{there} pods at once, {each} bytes of the agent's memory each");
            let mut order: Vec<usize> = (0..running.len()).collect();
            for last in (1..order.len()).rev() {
                order.swap(last, random.below(last as u64 + 1) as usize);
            }
            for pod in order {
                if let Some(gone) = running[pod].take() {
                    end(world, gone, round, pod)?;
                }
            }
            wait::until_true("all to be detached", SOON, || {
                Ok(agent.workloads()?.is_empty())
            })?;
        }
        waited.sort();
        let median = waited.get(waited.len() / 2).context("nobody came")?;
        let worst = waited.last().context("nobody came")?;
        println!(
            "{} enrolments: median {median:?}, worst {worst:?}",
            waited.len()
        );
        ensure!(
            *median <= MEDIAN,
            "an enrolment takes {median:?} at the median"
        );
        ensure!(agent.descriptors()? <= before + 2, "descriptors are left");
        let held = Held::by(agent.pid()?, &world.bpffs())?;
        let left: Vec<_> = held
            .entries()?
            .into_iter()
            .filter(|(_, _, n)| *n > 0)
            .collect();
        ensure!(left.is_empty(), "entries are left: {left:?}");
        // The tracepoint, which is the node's.
        ensure!(held.count("link") <= 1, "links are left: {held:?}");
        agent.stop()?;
        held.expect_gone()?;
        ensure!(leaks::pins(&world.bpffs()).is_empty(), "pins are left");
        Ok(())
    });
}

fn cgroup(world: &World, round: usize, pod: usize) -> std::path::PathBuf {
    world.cgroup().join(format!("pod-{round}-{pod}"))
}

fn start(world: &World, agent: &Agent<'_>, round: usize, pod: usize) -> Result<Running> {
    let python = programs::packaged("python3", "python3")?;
    let mut command = world.command_beside("pods", &python)?;
    command.arg("-c").arg(format!("{ENROL}{SIDECAR}"));
    command.arg(agent.socket());
    command
        .arg(cgroup(world, round, pod))
        .arg(format!("pod-{pod}"));
    let name = format!("pod-{round}-{pod}");
    Running::start(&name, world.directory(), &mut command)
}

/// How long the agent took.
fn enrolled(pod: &mut Running) -> Result<Duration> {
    let line = pod.line("enrolled ")?;
    let seconds = line.rsplit(' ').next().context("no time")?.parse()?;
    Ok(Duration::from_secs_f64(seconds))
}

fn end(world: &World, pod: Running, round: usize, number: usize) -> Result<()> {
    let started = Instant::now();
    pod.finish(SOON)?;
    let path = cgroup(world, round, number);
    for group in [path.join("app"), path.join("proxy"), path] {
        // Those that have just ended are counted for a moment.
        wait::until_true("a cgroup to go", SOON, || {
            Ok(std::fs::remove_dir(&group).is_ok())
        })?;
    }
    ensure!(started.elapsed() < SOON, "slow");
    Ok(())
}
