//! From start to end, and every way to end: exit codes, signals, draining, being killed, being taken over.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use rustix::process::Signal;
use serde::Deserialize;
use sidecar_tests::{
    leaks::{self, Held},
    world::{
        Finished, Running, Settings, Sidecar, Workload, World, programs, wait, workload::LIMIT,
    },
};

/// Longer than anything takes, on a machine that has much else to do.
const SOON: Duration = Duration::from_secs(90);
/// Less than what it would take to give up waiting, more than it takes to be told.
const AT_ONCE: Duration = Duration::from_secs(20);

/// Runs `sidecar run -- sh -c SCRIPT` to its end.
fn ran(world: &World, name: &str, script: &str) -> Result<Finished> {
    let workload = world.workload(name)?;
    let settings = Settings::default().command(&["sh", "-c", script]);
    Sidecar::launch(&workload, &settings)?.finish(SOON)
}

#[test]
fn the_exit_code_is_that_of_the_command() {
    World::play(|world| {
        for (name, script, code) in [
            ("zero", "exit 0", 0),
            ("seven", "exit 7", 7),
            ("killed", "kill -9 $$", 137),
        ] {
            let finished = ran(world, name, script)?;
            ensure!(
                finished.code() == code,
                "{script}: {} instead of {code}\n{}",
                finished.code(),
                finished.stderr
            );
        }
        Ok(())
    });
}

#[test]
fn the_command_runs_steered_with_its_own_output() {
    World::play(|world| {
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let a = world.workload("a")?;
        let traffic = programs::traffic()?.display().to_string();
        let settings =
            Settings::default().command(&[&traffic, "call", "--to", &to, "--send", "hello"]);
        let finished = Sidecar::launch(&a, &settings)?.finish(SOON)?.success()?;
        let line = finished
            .stdout
            .lines()
            .find(|line| line.contains("\"received\""));
        ensure!(
            line.is_some_and(|line| line.contains("hello") && line.contains(&to)),
            "{finished:?}"
        );
        Ok(())
    });
}

#[test]
fn signals_reach_the_command() {
    World::play(|world| {
        let a = world.workload("a")?;
        let script = "trap 'exit 3' TERM; trap 'echo hung up' HUP; echo trapping; while :; do sleep 0.05; done";
        let mut sidecar = Sidecar::launch(&a, &Settings::default().command(&["sh", "-c", script]))?;
        sidecar.running()?.line("trapping")?;
        let finished = sidecar.stop()?;
        ensure!(finished.code() == 3, "{finished:?}");
        Ok(())
    });
}

#[test]
fn mistakes_end_with_code_2() {
    World::play(|world| {
        let a = world.workload("a")?;
        let usage = a
            .start("usage", programs::sidecar()?, &["run", "--no-such-option"])?
            .finish(SOON)?;
        ensure!(usage.code() == 2, "{usage:?}");
        let settings = Settings::default().set("outbound.unknwon", "refuse");
        let finished = Sidecar::launch(&a, &settings)?.finish(SOON)?;
        ensure!(finished.code() == 2, "{finished:?}");
        ensure!(
            finished.stderr.contains("unknwon") && finished.stderr.contains("a.yaml"),
            "{}",
            finished.stderr
        );
        let missing = a
            .start(
                "missing",
                programs::sidecar()?,
                &["run", "-c", "/nowhere.yaml"],
            )?
            .finish(SOON)?;
        ensure!(
            missing.code() == 2 && missing.stderr.contains("/nowhere.yaml"),
            "{missing:?}"
        );
        Ok(())
    });
}

/// A second sidecar of the same name is refused, and neither the first one nor its application notice.
#[test]
fn a_name_is_taken_once() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let to = a.v4(7000).to_string();
        let _echo = a.serving("echo", &["echo", "--listen", &to])?;
        let second = Sidecar::launch(&a, &Settings::default())?.finish(SOON)?;
        ensure!(
            second.code() == 1 && second.stderr.contains("already has a sidecar"),
            "{second:?}"
        );
        b.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        Ok(())
    });
}

/// After a clean end nothing of it is in the kernel, the BPF file system or the control groups.
#[test]
fn a_clean_end_leaves_nothing() {
    World::play(|world| {
        let mut a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?.with_sidecar(&Settings::default())?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        drop(b);
        let held = Held::by(a.sidecar()?.pid()?, &world.bpffs())?;
        println!(
            "{} programs, {} maps, {} links",
            held.count("prog"),
            held.count("map"),
            held.count("link")
        );
        ensure!(
            held.count("prog") > 0 && held.count("map") > 0,
            "it held nothing to begin with"
        );
        let finished = a.take_sidecar()?.stop()?;
        ensure!(finished.code() == 0, "{finished:?}");
        held.expect_gone()?;
        let pinned = leaks::pins(&world.bpffs());
        ensure!(pinned.is_empty(), "still pinned: {pinned:?}");
        let groups: Vec<_> = directories(a.cgroup())?;
        ensure!(groups.is_empty(), "control groups are left: {groups:?}");
        Ok(())
    });
}

fn directories(path: &Path) -> Result<Vec<PathBuf>> {
    Ok(fs::read_dir(path)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.is_dir())
        .collect())
}

#[derive(Debug, Deserialize)]
struct Answered {
    answer: String,
    error: Option<String>,
}

/// What is under way when SIGTERM comes may come to its end.
#[test]
fn sigterm_drains() {
    World::play(|world| {
        let settings = Settings::default().set("timeouts.drain", "1m");
        let mut a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let mut server = b.serving(
            "late-serve",
            &["late-serve", "--listen", &to, "--seconds", "2"],
        )?;
        let client = a.traffic("late-ask", &["late-ask", "--to", &to])?;
        server.line("half-closed")?;
        let finished = a.take_sidecar()?.stop()?;
        let answered: Answered = client.finish(SOON)?.success()?.account()?;
        ensure!(
            answered.answer == "answer to question" && answered.error.is_none(),
            "{answered:?}"
        );
        ensure!(finished.code() == 0, "{finished:?}");
        Ok(())
    });
}

/// A connection that never ends holds the sidecar up for its drain time, and a second SIGTERM not even that long.
#[test]
fn draining_is_bounded_and_can_be_cut_short() {
    World::play(|world| {
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let mut patient = world
            .workload("patient")?
            .with_sidecar(&Settings::default().set("timeouts.drain", "4s"))?;
        let _client = endless(&patient, &to)?;
        let started = Instant::now();
        patient.take_sidecar()?.stop()?;
        let took = started.elapsed();
        let bounds = Duration::from_millis(3900)..Duration::from_secs(4) + AT_ONCE;
        ensure!(bounds.contains(&took), "patient: ended after {took:?}");

        let mut hasty = world
            .workload("hasty")?
            .with_sidecar(&Settings::default().set("timeouts.drain", "5m"))?;
        let _client = endless(&hasty, &to)?;
        hasty.sidecar()?.signal(Signal::TERM)?;
        // Two signals at once would be one.
        wait::until_true("the drain to begin", SOON, || {
            Ok(hasty.get(15021, "/healthz/ready")?.status == 503)
        })?;
        let started = Instant::now();
        hasty.take_sidecar()?.stop()?;
        let took = started.elapsed();
        ensure!(took < AT_ONCE, "hasty: ended after {took:?}");
        Ok(())
    });
}

/// A client whose connection stays open and busy.
fn endless(workload: &Workload<'_>, to: &str) -> Result<Running> {
    let arguments = [
        "ping-pong",
        "--to",
        to,
        "--rounds",
        "2000",
        "--idle-ms",
        "600000",
    ];
    let client = workload.traffic("endless", &arguments)?;
    wait::until_true("the connection to be relayed", SOON, || {
        let outbound = ["direction=\"outbound\""];
        Ok(workload
            .metrics()?
            .sum("sidecar_connections_open", &outbound)
            > 0.0)
    })?;
    Ok(client)
}

/// Calls `to` from the control group of a sidecar that is gone: whether an answer came, and how long it took.
fn calls_without(workload: &Workload<'_>, group: &Path, to: &str) -> Result<(bool, Duration)> {
    let started = Instant::now();
    let arguments = ["ping-pong", "--to", to, "--rounds", "1"];
    let finished = workload
        .start_in(group, "bereft", programs::traffic()?, &arguments)?
        .finish(SOON)?;
    Ok((finished.status.success(), started.elapsed()))
}

/// Kills the sidecar; what its workload can still do; then a new one takes over, and leaves nothing in the end.
fn killed(fail_rule: &str, still_connects: bool) {
    World::play(|world| {
        let settings = Settings::default().set("failRule", fail_rule);
        let mut a = world.workload("a")?.with_sidecar(&settings)?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let inbound = a.v4(7000).to_string();
        let _echo_a = a.serving("echo", &["echo", "--listen", &inbound])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        let group = a.app_cgroup();
        let held = Held::by(a.sidecar()?.pid()?, &world.bpffs())?;
        a.take_sidecar()?.kill()?;

        let (connected, took) = calls_without(&a, &group, &to)?;
        ensure!(
            connected == still_connects,
            "outbound, {fail_rule}: connected is {connected}"
        );
        ensure!(
            took < AT_ONCE,
            "outbound, {fail_rule}: it took {took:?} to tell"
        );
        let (connected, took) = calls_without(&b, b.cgroup(), &inbound)?;
        ensure!(
            connected == still_connects,
            "inbound, {fail_rule}: connected is {connected}"
        );
        ensure!(
            took < AT_ONCE,
            "inbound, {fail_rule}: it took {took:?} to tell"
        );

        a.start_sidecar(&settings)?;
        let before = a.metrics()?.kernel_events("steered");
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        ensure!(
            a.metrics()?.kernel_events("steered") > before,
            "not steered after the take-over: {}",
            a.metrics()?
        );
        b.run_traffic("ping-pong", &["ping-pong", "--to", &inbound])?;
        let now = Held::by(a.sidecar()?.pid()?, &world.bpffs())?;
        a.take_sidecar()?.stop()?;
        held.expect_gone()?;
        now.expect_gone()
    });
}

#[test]
fn killed_and_closed_it_refuses() {
    killed("closed", false);
}

#[test]
fn killed_and_open_it_is_bypassed() {
    killed("open", true);
}

#[test]
fn an_existing_control_group_is_steered() {
    World::play(|world| {
        let a = world
            .workload("a")?
            .with_sidecar(&Settings::default().cgroup("mine"))?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        a.run_traffic("ping-pong", &["ping-pong", "--to", &to])?;
        ensure!(
            a.metrics()?.kernel_events("steered") > 0,
            "not steered: {}",
            a.metrics()?
        );
        Ok(())
    });
}

#[derive(Debug, Deserialize)]
struct Ended {
    end: String,
}

/// A destination that refuses, and one that does not answer: a reset for the application in the connect timeout, and
/// the reason in the log.
#[test]
fn a_dead_destination_is_a_reset_with_a_reason() {
    World::play(|world| {
        let a = world
            .workload("a")?
            .with_sidecar(&Settings::default().set("timeouts.connect", "1s"))?;
        let b = world.workload("b")?;
        let iptables = programs::packaged("iptables", "iptables")?;
        b.run(
            "drop",
            iptables,
            &["-A", "INPUT", "-p", "tcp", "--dport", "7009", "-j", "DROP"],
        )?;
        for (port, reason) in [(7001, "connect_refused"), (7009, "connect_timeout")] {
            let to = b.v4(port).to_string();
            let mut client = a.traffic("raw", &["raw", "--to", &to, "--patience-ms", "120000"])?;
            client.write(b"hello")?;
            let started = Instant::now();
            let ended: Ended = client.finish(LIMIT)?.success()?.account()?;
            let took = started.elapsed();
            ensure!(ended.end == "reset", "{to}: {ended:?}");
            // The kernel itself would try for two minutes.
            ensure!(took < AT_ONCE, "{to}: told after {took:?}");
            wait::until_true(
                &format!("a line on {to} with {reason} in the log"),
                SOON,
                || {
                    let log = a.sidecar()?.log()?;
                    Ok(log
                        .lines()
                        .any(|line| line.contains(&to) && line.contains(reason)))
                },
            )?;
        }
        Ok(())
    });
}

/// A new file comes into force on SIGHUP or by itself; a bad one leaves the old in force and says so.
#[test]
fn configuration_is_reloaded() {
    World::play(|world| {
        let a = world.workload("a")?.with_sidecar(&Settings::default())?;
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let connects = || -> Result<bool> {
            let finished = a
                .traffic("ping-pong", &["ping-pong", "--to", &to, "--rounds", "1"])?
                .finish(SOON)?;
            Ok(finished.status.success())
        };
        let write =
            |text: &str| fs::write(a.sidecar()?.configuration(), text).map_err(anyhow::Error::from);
        let refusing = Settings::default().set("outbound.unknown", "registryOnly");
        ensure!(connects()?, "passthrough is the built-in setting");

        write(&refusing.text("a"))?;
        a.sidecar()?.signal(Signal::HUP)?;
        wait::until_true("refusal after SIGHUP", SOON, || Ok(!connects()?))?;

        write("outbound: {unknown: perhaps}\n")?;
        a.sidecar()?.signal(Signal::HUP)?;
        wait::until_true("an error in the log", SOON, || {
            Ok(a.sidecar()?.log()?.contains("perhaps"))
        })?;
        ensure!(!connects()?, "a bad file changed something");

        write(&Settings::default().text("a"))?;
        wait::until_true("the change of the file alone", SOON, connects)
    });
}
