//! Pods that want all the room for rules, or all of the agent's time: the others still get what they need.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use sidecar_tests::world::{Agent, Pod, Running, Settings, World, programs};

use super::{ENROL, SOON, connects};

/// With 2,048 rules of each kind they need more than the 65,536 entries that each map has.
const GREEDY: usize = 40;

/// Asks for the most rules, then for as many as it was told that it may have, and keeps them.
const SIDECAR: &str = r#"
import ctypes, re
socket_path, cgroup, name = sys.argv[1:]
os.makedirs(cgroup + "/proxy"); os.makedirs(cgroup + "/app")
open(cgroup + "/proxy/cgroup.procs", "w").write(str(os.getpid()))
if ctypes.CDLL(None, use_errno=True).unshare(0x40000000): sys.exit("unshare: " + os.strerror(ctypes.get_errno()))
listener = socket.socket(); listener.bind(("0.0.0.0", 15006)); listener.listen()
most = {"port rules": 2048, "excluded ranges": 2048, "denied combinations of range, port and protocol": 2041}
def rules():
    ranges = lambda first, count: [f"{first}.{n >> 8}.{n & 255}.1/32" for n in range(count)]
    denied = ranges(11, most["denied combinations of range, port and protocol"] - 1)
    return {"name": name, "failRule": "closed", "inboundCapture": "workload",
            "outboundExcludePorts": list(range(1, most["port rules"] + 1)),
            "outboundExcludeCidrs": ranges(10, most["excluded ranges"]),
            "outboundDeny": [{"name": "x", "cidrs": denied, "ports": []}] if denied else []}
for attempt in range(8):
    s = socket.socket(socket.AF_UNIX); s.connect(socket_path)
    answer = enrol(s, rules(), listener)
    if '"enrolled"' in answer: break
    found = re.search(r"\d+ (port rules|excluded ranges|denied combinations of range, port and protocol).*this one may have (\d+)", answer)
    if not found: break
    most[found[1]] = int(found[2])
print("answer", answer if '"enrolled"' not in answer else "enrolled", *most.values(), flush=True)
sys.stdin.read()
"#;

fn greedy(world: &World, agent: &Agent<'_>, number: usize) -> Result<Running> {
    let python = programs::packaged("python3", "python3")?;
    let mut command = world.command_beside("pods", &python)?;
    command.arg("-c").arg(format!("{ENROL}{SIDECAR}"));
    let name = format!("greedy-{number}");
    command.arg(agent.socket()).arg(world.cgroup().join(&name));
    command.arg(&name);
    let mut running = Running::start(&name, world.directory(), &mut command)?;
    let answer = running.line_within("answer", SOON)?;
    ensure!(answer.contains(" enrolled "), "{name}: {answer}");
    if number + 1 == GREEDY {
        println!("the last one got {answer}");
        ensure!(!answer.contains("2048"), "it got as much as the first");
    }
    Ok(running)
}

#[test]
fn a_pod_enrols_beside_many_that_want_the_most_rules() {
    World::play(|world| {
        let agent = Agent::start(world)?;
        let server = world.workload("server")?;
        let (to, denied) = (server.v4(7000).to_string(), server.v4(7001).to_string());
        let _echo = server.serving("echo", &["echo", "--listen", &to])?;
        let _greedy: Vec<_> = (0..GREEDY)
            .map(|number| greedy(world, &agent, number))
            .collect::<Result<_>>()?;

        let settings = Settings::default()
            .set("outbound.exclude.ports", json!([22, 53, 9000]))
            .push("outbound.deny", json!({"name": "no", "ports": [7001]}));
        let started = Instant::now();
        let normal = Pod::enrolled(&agent, "normal", &settings)?;
        println!("enrolled within {:?}", started.elapsed());
        ensure!(connects(&normal, &to)?, "nothing is reached");
        ensure!(!connects(&normal, &denied)?, "its rule does not hold");
        ensure!(agent.kernel_events("normal", "steered")? > 0, "not steered");

        // What no pod can have is refused to the one who asks, in words.
        let mut too_much = Pod::new(
            world,
            "too-much",
            &Settings::default().set(
                "outbound.exclude.ports",
                json!((1..=2000).collect::<Vec<u16>>()),
            ),
        )?;
        too_much.launch(&agent)?;
        let proxy = too_much.proxy()?;
        super::load::said(proxy, "2000 port rules are too many for this node now", 1)?;
        ensure!(agent.workloads()?.len() == GREEDY + 1, "too many enrolled");
        Ok(())
    });
}

/// Changes all its rules as often as it can, over as many connections as it gets.
const RESTLESS: &str = r#"
import threading, time
path = sys.argv[1]
listener = socket.create_server(("127.0.0.1", 0))
def rules(v):
    ranges = lambda first: [f"{first}.{v}.{n >> 8}.{n & 255}/32" for n in range(1500)]
    return {"name": "restless", "failRule": "closed", "inboundCapture": "workload",
            "outboundExcludePorts": list(range(1 + v * 3000, 1501 + v * 3000)),
            "outboundExcludeCidrs": ranges(10), "outboundDeny": [{"name": "x", "cidrs": ranges(11), "ports": []}]}
def change(n):
    s = None
    while True:
        try:
            if s is None: s = socket.socket(socket.AF_UNIX); s.connect(path)
            n += 1
            enrol(s, rules(n % 2), listener)
        except (OSError, IndexError, struct.error): s = None; time.sleep(0.01)
for n in range(4): threading.Thread(target=change, args=(n,), daemon=True).start()
print("started", flush=True)
sys.stdin.read()
"#;

#[test]
fn a_pod_that_changes_without_a_pause_gets_one_share_of_time() {
    // It measures.
    World::play_alone(|world| {
        const WATCHED: Duration = Duration::from_secs(10);
        let agent = Agent::start(world)?;
        let evil = Pod::new(world, "restless", &Settings::default())?;
        let python = programs::packaged("python3", "python3")?;
        let socket = agent.socket().display().to_string();
        let program = format!("{ENROL}{RESTLESS}");
        let cgroup = evil.workload.cgroup().join("proxy");
        let arguments = ["-c", &program, &socket];
        let mut restless = evil
            .workload
            .start_in(&cgroup, "restless", python, &arguments)?;
        restless.line_within("started", SOON)?;
        // What it may do at once is over then.
        std::thread::sleep(Duration::from_secs(5));
        let (changes, used) = (changes(&agent)?, cpu_time(agent.pid()?)?);
        std::thread::sleep(WATCHED);
        let changes = self::changes(&agent)? - changes;
        let used = cpu_time(agent.pid()?)?.saturating_sub(used);
        println!("{changes} changes and {used:?} of CPU time within {WATCHED:?}");
        ensure!(changes <= 24, "{changes} changes within {WATCHED:?}");
        ensure!(used < WATCHED / 10, "{used:?} of {WATCHED:?}");

        let started = Instant::now();
        Pod::enrolled(&agent, "other", &Settings::default())?;
        println!("another enrolled within {:?}", started.elapsed());
        Ok(())
    });
}

fn changes(agent: &Agent<'_>) -> Result<u64> {
    let log = agent.log()?;
    let enrolled = log
        .lines()
        .filter(|line| line.contains("enrolled") && line.contains("restless"));
    Ok(enrolled.count() as u64)
}

/// User and system time of a process.
fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(')').context("no stat")?;
    // From the third field on: utime and stime are the 14th and 15th, in ticks of 10 ms.
    let times = fields.split_whitespace().skip(11).take(2);
    let ticks = times
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()
        .context("no times")?;
    Ok(Duration::from_millis(10 * ticks))
}
