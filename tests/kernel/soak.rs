//! A million connections, every byte of which is known to both ends, a tenth of them such that messages go past the proxies, while
//! pods come and go: nothing is lost, and nothing is left in any map.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use sidecar_tests::{
    report::Report,
    world::{Agent, Pod, Running, Settings, World, wait},
};

/// All of it: SIDECAR_SOAK_CONNECTIONS says otherwise.
const CONNECTIONS: u64 = 1_000_000;
/// One of so many is a conversation long enough to be joined.
const CONVERSATION: u64 = 10;
/// Of one direction of a conversation.
const CONVERSATION_BYTES: &str = "16384";
/// Pods that come and go meanwhile; a world has room for 255.
const VISITORS: u64 = 200;
const BETWEEN_VISITORS: Duration = Duration::from_secs(5);
/// Of each visitor.
const VISITS: u64 = 200;
const LIMIT: Duration = Duration::from_secs(3600);
const DEADLINE: [&str; 2] = ["--deadline-seconds", "3600"];
const SHORT: u16 = 7000;
const LONG: u16 = 7001;
const VISITED: u16 = 7002;

/// Maps that hold something of each connection.
const OF_CONNECTIONS: [&str; 3] = ["HALF_FLOWS", "HANDOVERS", "PAIRINGS"];

#[test]
#[ignore = "takes 10 to 20 minutes: cargo test --profile test-release -p sidecar-tests --test kernel soak:: -- --ignored --nocapture"]
fn a_million_connections_are_exact_and_leave_nothing() {
    World::play_alone(|world| {
        let connections = match std::env::var("SIDECAR_SOAK_CONNECTIONS") {
            Ok(said) => said.parse().context("SIDECAR_SOAK_CONNECTIONS")?,
            Err(_) => CONNECTIONS,
        };
        let started = Instant::now();
        let mut agent = Agent::start(world)?;
        let (a, b) = (pod(&agent, "a")?, pod(&agent, "b")?);
        let (long, short) = (
            connections / CONVERSATION,
            connections - connections / CONVERSATION,
        );
        let answering = b.v4(SHORT).to_string();
        let _answering = b.serving("answer", &["answer", "--listen", &answering])?;
        let churn = [
            "churn",
            "--to",
            &answering,
            "--connections",
            &short.to_string(),
        ];
        let mut churning = a.traffic("churn", &[&churn[..], &DEADLINE].concat())?;
        let conversing = b.v4(LONG).to_string();
        let both = ["--mode", "nonblocking", "--connections", &long.to_string()];
        let both = [&both[..], &DEADLINE].concat();
        let serving = b.serving(
            "serve",
            &[&["serve", "--listen", &conversing], &both[..]].concat(),
        )?;
        let drive = [
            "drive",
            "--to",
            &conversing,
            "--style",
            "turns",
            "--limit-bytes",
            CONVERSATION_BYTES,
        ];
        let mut driving = a.traffic("drive", &[&drive[..], &both].concat())?;

        let mut visitors = 0;
        while churning.ended()?.is_none() || driving.ended()?.is_none() {
            ensure!(started.elapsed() < LIMIT, "not done after {LIMIT:?}");
            if visitors < VISITORS {
                visit(&agent, &b, visitors)?;
                visitors += 1;
            }
            std::thread::sleep(BETWEEN_VISITORS);
        }
        exact(churning, short)?;
        exact(driving, long)?;
        exact(serving, long)?;
        let joined = agent.kernel_events("a", "joined")? + agent.kernel_events("b", "joined")?;
        println!(
            "{short} short connections, {long} conversations with {joined} joined messages, {visitors} pods came and went, {:?}",
            started.elapsed()
        );
        ensure!(joined > long, "{joined} messages went past the proxies");

        let mut left = Vec::new();
        let waited = wait::until_true("every map to be empty", Duration::from_secs(60), || {
            left = entries(&agent)?;
            Ok(left.iter().all(|(_, count)| *count == 0))
        });
        ensure!(waited.is_ok(), "left in maps: {left:?}");
        drop((a, b));
        agent.stop()?.success()?;
        agent.uninstall()?.success()?;
        Ok(())
    });
}

fn pod<'w>(agent: &Agent<'w>, name: &str) -> Result<Pod<'w>> {
    let settings = Settings::default()
        .set("lifecycle.exitWhenAlone", false)
        .set("redirect.adaptive", false)
        .protocol(LONG, "tcp")
        .protocol(SHORT, "tcp");
    let pod = Pod::enrolled(agent, name, &settings)?;
    // Enough local ports for the pace, and none that waits a minute for a connection long gone.
    let namespace = pod.workload.namespace();
    namespace.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
    namespace.sysctl("net.ipv4.ip_local_reserved_ports", "7000-7002,15000-15090")?;
    namespace.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
    Ok(pod)
}

/// A pod comes, talks with one that stays, and goes.
fn visit(agent: &Agent<'_>, host: &Pod<'_>, number: u64) -> Result<()> {
    let visitor = pod(agent, &format!("visitor-{number}"))?;
    let to = host.v4(VISITED).to_string();
    let count = VISITS.to_string();
    let both = ["--mode", "nonblocking", "--connections", &count];
    let serving = host.serving(
        "visited",
        &[&["serve", "--listen", &to], &both[..]].concat(),
    )?;
    let drive = ["drive", "--to", &to, "--limit-bytes", CONVERSATION_BYTES];
    let driving = visitor.traffic("visit", &[&drive[..], &both].concat())?;
    exact(driving, VISITS)?;
    exact(serving, VISITS)
}

fn exact(program: Running, connections: u64) -> Result<()> {
    let report: Report = program.finish(LIMIT)?.success()?.account()?;
    report.expect_exact(connections)
}

fn entries(agent: &Agent<'_>) -> Result<Vec<(String, u64)>> {
    let inspected = agent.inspect()?;
    let directories = inspected["entries"].as_object().context("no entries")?;
    let maps = directories.values().filter_map(|maps| maps.as_object());
    let of_connections = maps
        .flatten()
        .filter(|(name, _)| OF_CONNECTIONS.contains(&name.as_str()));
    let counted: Vec<_> = of_connections
        .map(|(name, count)| (name.clone(), count.as_u64().unwrap_or(u64::MAX)))
        .collect();
    ensure!(
        counted.len() >= OF_CONNECTIONS.len(),
        "inspect tells of {counted:?} only"
    );
    Ok(counted)
}
