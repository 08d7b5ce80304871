//! Workloads do not mix, and who is not enrolled is not touched.

use std::net::SocketAddr;

use anyhow::{Result, bail, ensure};
use serde::Deserialize;
use sidecar_tests::{
    leaks,
    report::Report,
    world::{Settings, Workload, World, workload::LIMIT},
};

const LOOPBACK: &str = "127.0.0.1:9000";
const CONNECTIONS: &str = "500";

/// Drives from fixed local ports, which nobody else is given: every pod uses the same ones.
fn driving(workload: &Workload<'_>, name: &str, to: &str) -> Result<sidecar_tests::world::Running> {
    let more = [
        "--connections",
        CONNECTIONS,
        "--source-port",
        "20000",
        "--concurrency",
        "8",
    ];
    workload.traffic(name, &[&["drive", "--to", to], more.as_slice()].concat())
}

/// Two pods use the very same addresses and ports on their loopback at once: once with each other's equal, once to
/// the outside, where either is steered to 127.0.0.1:15001 from the same port.
#[test]
fn equal_loopback_tuples_do_not_meet() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        let c = world.workload("c")?;
        let serve = |workload: &Workload<'_>, name: &str, listen: &str| {
            workload.serving(
                name,
                &["serve", "--listen", listen, "--connections", CONNECTIONS],
            )
        };
        let outside = [c.v4(7001), c.v4(7002)].map(|address: SocketAddr| address.to_string());
        let rounds = [
            [(&a, &a, LOOPBACK), (&b, &b, LOOPBACK)],
            [(&a, &c, outside[0].as_str()), (&b, &c, outside[1].as_str())],
        ];
        for round in rounds {
            let servers = [
                serve(round[0].1, "serve0", round[0].2)?,
                serve(round[1].1, "serve1", round[1].2)?,
            ];
            let clients = [
                driving(round[0].0, "drive", round[0].2)?,
                driving(round[1].0, "drive", round[1].2)?,
            ];
            for running in clients.into_iter().chain(servers) {
                running
                    .finish(LIMIT)?
                    .success()?
                    .account::<Report>()?
                    .expect_exact(500)?;
            }
        }
        for workload in [&a, &b] {
            ensure!(
                workload.metrics()?.kernel_events("steered") >= 500,
                "not steered: {}",
                workload.metrics()?
            );
        }
        Ok(())
    });
}

#[derive(Debug, Deserialize)]
struct Latency {
    p50_us: f64,
}

/// The median round trip, the best of several runs: what the path costs, not what else the machine does.
fn latency_us(client: &Workload<'_>, to: SocketAddr) -> Result<f64> {
    let mut best = f64::MAX;
    for _ in 0..5 {
        let program = client.run_traffic(
            "ping-pong",
            &["ping-pong", "--to", &to.to_string(), "--rounds", "3000"],
        )?;
        best = best.min(program.account::<Latency>()?.p50_us);
    }
    Ok(best)
}

/// Two workloads without a sidecar on a node with two that have one: no program runs for them, and their round trips
/// take as long as before.
#[test]
fn who_is_not_enrolled_is_not_touched() {
    World::play_alone(|world| {
        let (c, d) = (world.workload("c")?, world.workload("d")?);
        let echo = d.v4(7000);
        let _echo = d.serving("echo", &["echo", "--listen", &echo.to_string()])?;
        let (mut without_us, mut with_us) = (f64::MAX, f64::MAX);
        // What else the machine does comes and goes; what the sidecars cost would stay.
        for _ in 0..5 {
            without_us = without_us.min(latency_us(&c, echo)?);
            with_us = with_us.min(latency_beside_sidecars(world, &c, &d, echo)?);
            println!("round trip {without_us:.1} µs, {with_us:.1} µs with sidecars elsewhere");
            if with_us < without_us * 1.3 + 2.0 {
                return Ok(());
            }
        }
        bail!("{without_us:.1} µs became {with_us:.1} µs")
    });
}

/// The round trip between `c` and `d` while two others have sidecars. No program may be attached to either.
fn latency_beside_sidecars(
    world: &World,
    c: &Workload<'_>,
    d: &Workload<'_>,
    echo: SocketAddr,
) -> Result<f64> {
    let a = world.workload("a")?.with_sidecar(&Settings::default())?;
    let _b = world.workload("b")?.with_sidecar(&Settings::default())?;
    ensure!(
        leaks::attached_to_cgroup(&a.app_cgroup())? > 0,
        "even the enrolled one has no programs"
    );
    ensure!(
        leaks::attached_to_namespace(&a.namespace().path())? > 0,
        "the enrolled namespace has no program"
    );
    for workload in [c, d] {
        ensure!(
            leaks::attached_to_cgroup(workload.cgroup())? == 0,
            "programs on {}",
            workload.name()
        );
        ensure!(
            leaks::attached_to_namespace(&workload.namespace().path())? == 0,
            "programs on {}",
            workload.name()
        );
    }
    latency_us(c, echo)
}

/// In an enrolled pod, a process outside the steered group goes its own way.
#[test]
fn a_neighbour_outside_the_group_is_not_steered() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let before = a.metrics()?.kernel_events("steered");
        let program = sidecar_tests::world::programs::traffic()?;
        a.start_in(a.cgroup(), "outside", &program, &["ping-pong", "--to", &to])?
            .finish(LIMIT)?
            .success()?;
        ensure!(
            a.metrics()?.kernel_events("steered") == before,
            "steered: {}",
            a.metrics()?
        );
        a.run_traffic("inside", &["ping-pong", "--to", &to])?;
        ensure!(
            a.metrics()?.kernel_events("steered") > before,
            "not steered: {}",
            a.metrics()?
        );
        Ok(())
    });
}
