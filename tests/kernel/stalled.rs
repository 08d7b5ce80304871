//! Connections whose reader does not read cost nothing but what they hold, and are served when he reads again.

use std::{fs, thread, time::Duration};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use sidecar_tests::world::{Settings, Workload, World};

const UPLOADS: usize = 2400;
/// Time to look at what the stalled ones cost.
const LOOK: Duration = Duration::from_secs(5);
/// A reader of its own among so many others waits for half a second at most, one of many that begin to read at the same time
/// for a tenth; and some for a busy machine.
const ONE_WITHIN_MS: f64 = 1000.0;
const MANY_WITHIN_MS: f64 = 200.0;

#[derive(Debug, Deserialize)]
struct Resumed {
    after_ms: Vec<f64>,
}

/// CPU time that the workload's sidecar has taken.
fn cpu_time(workload: &Workload<'_>) -> Result<Duration> {
    let tasks = format!("/proc/{}/task", workload.sidecar()?.pid()?);
    let mut nanoseconds = 0;
    for task in fs::read_dir(tasks)? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = text.split(' ').next().context("an empty schedstat")?;
        nanoseconds += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

fn timers(workload: &Workload<'_>) -> Result<usize> {
    let path = format!("/proc/{}/fd", workload.sidecar()?.pid()?);
    let links = fs::read_dir(path)?.flatten();
    Ok(links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .filter(|target| target.to_string_lossy().contains("timerfd"))
        .count())
}

/// Clients send to an application that does not read; it does not block, so that what is sent is redirected to it, and the
/// sidecar has to ask when it has read.
#[test]
fn stalled_uploads_cost_nothing() {
    World::play_alone(|world| {
        let settings = Settings::default()
            .protocol(7000, "tcp")
            .set("redirect.adaptive", false)
            .set("redirect.credit", "64KiB");
        let b = world.workload("b")?.with_sidecar(&settings)?;
        let a = world.workload("a")?;
        for pod in [&a, &b] {
            // The machine's memory is not what is tested.
            pod.namespace()
                .sysctl("net.ipv4.tcp_wmem", "4096 16384 65536")?;
            pod.namespace()
                .sysctl("net.ipv4.tcp_rmem", "4096 65536 65536")?;
        }
        let to = b.v4(7000).to_string();
        let mut serve = b.serving("serve", &["crowd-serve", "--listen", &to])?;
        let before = b.sidecar()?.descriptors()?;
        let mut clients = a.traffic(
            "join",
            &[
                "crowd-join",
                "--to",
                &to,
                "--write",
                "--connections",
                &UPLOADS.to_string(),
            ],
        )?;
        clients.line_within("full", Duration::from_secs(120))?;
        // Until the waits are long.
        thread::sleep(Duration::from_secs(3));
        let held_back = || -> Result<u64> { Ok(b.metrics()?.kernel_events("held_back")) };
        let (asked, spent) = (held_back()?, cpu_time(&b)?);
        thread::sleep(LOOK);
        let spent = (cpu_time(&b)? - spent).as_secs_f64() / LOOK.as_secs_f64();
        let asked = (held_back()? - asked) as f64 / LOOK.as_secs_f64();
        let descriptors = b.sidecar()?.descriptors()?.saturating_sub(before);
        println!(
            "{UPLOADS} stalled uploads: {spent:.4} CPUs, {asked:.0} questions a second, {descriptors} descriptors, {} timers",
            timers(&b)?
        );
        // One reads again, when all have been quiet for long; then, many.
        let mut resumed_ms = |count: &str| -> Result<Vec<f64>> {
            serve.write(format!("{count}\n").as_bytes())?;
            let said = format!("resumed {count} ");
            let line = serve.line_within(&said, Duration::from_secs(60))?;
            let account = line.trim_start_matches(&said);
            let mut after_ms = serde_json::from_str::<Resumed>(account)?.after_ms;
            after_ms.sort_by(f64::total_cmp);
            Ok(after_ms)
        };
        let one = resumed_ms("1")?.last().copied().unwrap_or(f64::NAN);
        thread::sleep(Duration::from_secs(3));
        let many = resumed_ms("400")?;
        let half = many.get(many.len() / 2).copied().unwrap_or(f64::NAN);
        let last = many.last().copied().unwrap_or(f64::NAN);
        println!(
            "served again: one after {one:.1} ms, half of 400 after {half:.1} ms, all after {last:.1} ms"
        );
        ensure!(asked > 0.0, "nothing was redirected to the application");
        // A machine's speed and load are not the matter. Before, it was fifty times as many, and a timer for each.
        ensure!(asked < 6_000.0, "{asked} questions a second");
        ensure!(spent < 0.08, "{spent} of a CPU");
        ensure!(
            descriptors <= 2 * UPLOADS + 16,
            "{descriptors} descriptors for {UPLOADS} connections"
        );
        ensure!(
            one < ONE_WITHIN_MS && half < MANY_WITHIN_MS,
            "served too late"
        );
        Ok(())
    });
}
