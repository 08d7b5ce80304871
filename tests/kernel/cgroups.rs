//! `--cgroup`: what cannot be the application's is refused, with what to do.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context, ensure};
use sidecar_tests::world::{World, cgroup, programs};

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
            let text = path.to_str().context("a path that is not text")?;
            let bpffs = world.bpffs();
            let bpffs = bpffs.to_str().context("a path that is not text")?;
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
        let bpffs = bpffs.to_str().context("a path that is not text")?;
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
