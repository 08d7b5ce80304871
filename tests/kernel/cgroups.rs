//! Cgroups: what cannot be the application's is refused, with what to do; what is excluded is left alone.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::{Settings, Workload, World, cgroup, programs, wait};

use crate::peers;

const LIMIT: Duration = Duration::from_secs(60);

#[test]
fn what_cannot_be_the_applications_is_refused() {
    World::play(|world| {
        let a = world.workload("a")?;
        let directory = tempfile::tempdir()?;
        let (missing, file) = (
            directory.path().join("missing"),
            directory.path().join("file"),
        );
        fs::write(&file, "")?;
        let root = cgroup::root()?;
        let above = a.cgroup().parent().context("no parent")?;
        let proxy = a.cgroup().join("sidecar-workload/proxy");
        fs::create_dir_all(&proxy)?;
        let mut cases: Vec<(&Path, &str)> = vec![
            (
                a.cgroup(),
                "contains this process itself. Start the sidecar from",
            ),
            (above, "contains the sidecar's own cgroup"),
            (&root, "every process"),
            (&proxy, "contains the sidecar's own cgroup"),
            (&missing, "there is no cgroup"),
            (directory.path(), "is no cgroup; those of this machine"),
            (&file, "is no cgroup; those of this machine"),
        ];
        // Where version 1 is mounted beside version 2.
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let version_1 = mounts
            .lines()
            .filter(|line| line.contains(" - cgroup "))
            .filter_map(|line| line.split(' ').nth(4));
        cases.extend(version_1.map(|path| (Path::new(path), "is a cgroup of version 1")));
        for (path, why) in cases {
            let text = peers::text(path)?;
            let bpffs = world.bpffs();
            let bpffs = peers::text(&bpffs)?;
            let arguments = ["run", "--bpffs", bpffs, "--cgroup", text];
            let finished = a
                .start_in(a.cgroup(), "refused", programs::sidecar()?, &arguments)?
                .finish(LIMIT)?;
            ensure!(
                finished.code() == 2 && finished.stderr.contains(why),
                "{text}: {finished:?}"
            );
        }
        Ok(())
    });
}

/// The advice is good: from outside the sidecar starts.
#[test]
fn from_outside_it_is_taken() {
    World::play(|world| {
        let (a, outside) = (world.workload("a")?, world.workload("outside")?);
        let (bpffs, group) = (world.bpffs(), a.cgroup().display().to_string());
        let bpffs = peers::text(&bpffs)?;
        let arguments = [
            "run",
            "--bpffs",
            bpffs,
            "--cgroup",
            &group,
            "--",
            "/bin/true",
        ];
        let finished = a
            .start_in(outside.cgroup(), "taken", programs::sidecar()?, &arguments)?
            .finish(LIMIT)?;
        ensure!(finished.code() == 0, "{finished:?}");
        Ok(())
    });
}

/// Whether connections from `group` to `to` are steered; they succeed in either case.
fn is_steered(workload: &Workload<'_>, group: &Path, to: &str) -> Result<bool> {
    let before = workload.metrics()?.kernel_events("steered");
    let arguments = ["ping-pong", "--to", to, "--rounds", "10"];
    workload
        .start_in(group, "ping-pong", programs::traffic()?, &arguments)?
        .finish(LIMIT)?
        .success()?;
    Ok(workload.metrics()?.kernel_events("steered") > before)
}

/// Whether connections to port 7000 of `workload`, where a program in `group` listens, come to the sidecar.
fn is_captured(workload: &Workload<'_>, group: &Path, client: &Workload<'_>) -> Result<bool> {
    let listen = workload.v4(7000).to_string();
    let arguments = ["echo", "--listen", &listen];
    let server = workload.start_in(group, "echo", programs::traffic()?, &arguments)?;
    let server = server.listening()?;
    let captured = answers(workload, client)?;
    server.stop(LIMIT)?;
    Ok(captured)
}

fn answers(workload: &Workload<'_>, client: &Workload<'_>) -> Result<bool> {
    let before = workload.metrics()?.kernel_events("inbound");
    let to = workload.v4(7000).to_string();
    client.run_traffic("caller", &["ping-pong", "--to", &to, "--rounds", "10"])?;
    Ok(workload.metrics()?.kernel_events("inbound") > before)
}

#[test]
fn excluded_cgroups_are_left_alone() {
    World::play(|world| {
        let b = world.workload("b")?;
        let to = b.v4(7000).to_string();
        let _echo = b.serving("echo", &["echo", "--listen", &to])?;
        let a = world.workload("a")?;
        let group = |name: &str| a.cgroup().join("mine").join(name);
        // One is there before the sidecar is, with somebody who listens.
        fs::create_dir_all(group("batch"))?;
        let listen = a.v4(7000).to_string();
        let arguments = ["echo", "--listen", &listen];
        let early = a.start_in(&group("batch"), "early", programs::traffic()?, &arguments)?;
        let early = early.listening()?;
        let settings = Settings::default()
            .cgroup("mine")
            .push("workload.exclude.cgroups", "batch")
            .push("workload.exclude.cgroups", "jobs/*");
        let mut a = a;
        a.start_sidecar(&settings)?;
        let group = |name: &str| a.cgroup().join("mine").join(name);
        ensure!(!answers(&a, &b)?, "the early listener was adopted");
        // Nor by looking who listens, which is done once a second.
        std::thread::sleep(std::time::Duration::from_secs(3));
        ensure!(!answers(&a, &b)?, "the early listener was found");
        early.stop(LIMIT)?;

        // Others come later, and take those below with them.
        for name in ["jobs/1", "batch/deep"] {
            fs::create_dir_all(group(name))?;
        }
        let line = group("jobs/1").display().to_string();
        wait::until_true("the new cgroup to be seen", LIMIT, || {
            Ok(a.sidecar()?.log()?.contains(&line))
        })?;
        for name in ["batch", "batch/deep", "jobs/1"] {
            ensure!(!is_steered(&a, &group(name), &to)?, "{name} is steered");
            ensure!(!is_captured(&a, &group(name), &b)?, "{name} is captured");
        }
        for name in ["", "jobs"] {
            ensure!(
                is_steered(&a, &group(name), &to)?,
                "«{name}» is not steered"
            );
            ensure!(
                is_captured(&a, &group(name), &b)?,
                "«{name}» is not captured"
            );
        }

        // What the file no longer excludes is the workload's again.
        let text = Settings::default().text("a");
        fs::write(a.sidecar()?.configuration(), text)?;
        wait::until_true("the exclusion to end", LIMIT, || {
            is_steered(&a, &group("jobs/1"), &to)
        })?;
        a.sidecar()?.expect_no_panic()
    });
}
