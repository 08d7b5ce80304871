//! What a run must not leave behind: control groups, network namespaces, BPF pins and links, mounts, processes.
//!
//! Other runs may be at work on the same machine. What belongs to them is told apart by the pid of a live process in its name, or
//! by a live process that holds it.

use anyhow::{Context as _, Result};
use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Every process of a run carries this variable with the run's name, and hands it to what it starts.
pub const RUN_VARIABLE: &str = "SIDECAR_TEST_RUN";
/// What is ours has this in its name.
const MARK: &str = "sidecar";
/// The kernel takes control groups, links and namespaces apart a moment after their last user is gone.
const GRACE: Duration = Duration::from_secs(60);

/// What was there before a run.
pub struct Before {
    things: BTreeSet<String>,
    links: BTreeSet<u32>,
}

impl Before {
    /// Looks at the machine.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn look() -> Result<Self> {
        Ok(Self {
            things: things()?,
            links: links(),
        })
    }

    /// What is there now, was not before, and belongs to no other live run; `run` is the value of [`RUN_VARIABLE`].
    /// Waits a moment for what is on its way out.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn left(&self, run: &str) -> Result<Vec<String>> {
        let deadline = Instant::now() + GRACE;
        loop {
            let left = self.left_now(run)?;
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn left_now(&self, run: &str) -> Result<Vec<String>> {
        let others = Others { run };
        let mut left = processes(run)?;
        let new = things()?
            .into_iter()
            .filter(|thing| !self.things.contains(thing));
        left.extend(new.filter(|thing| !others.own(thing)));
        let new: BTreeSet<_> = links().difference(&self.links).copied().collect();
        if !new.is_empty() {
            let held = held("link_id")?;
            left.extend(
                new.difference(&held)
                    .map(|id| format!("BPF link {id}, held by no process")),
            );
        }
        Ok(left)
    }
}

/// Runs on this machine other than ours.
struct Others<'a> {
    run: &'a str,
}

impl Others<'_> {
    /// Whether a live one of them is told by a pid in the thing's name, or sits in it if it is a control group.
    fn own(&self, thing: &str) -> bool {
        let alive = |pid: u32| {
            pid != std::process::id() && Path::new("/proc").join(pid.to_string()).exists()
        };
        let in_group = || {
            let path = thing.strip_prefix("control group ").map(Path::new);
            let members = path.map(members).unwrap_or_default();
            members.into_iter().any(|pid| !is_of_run(pid, self.run))
        };
        names_live(thing, alive) || in_group()
    }
}

/// The processes in a control group and below.
fn members(group: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let mut pids: Vec<_> = listed
        .lines()
        .filter_map(|line| line.parse().ok())
        .collect();
    for below in entries(group).filter(|path| path.is_dir()) {
        pids.extend(members(&below));
    }
    pids
}

/// The ids that live processes hold file descriptors of; `kind` is `link_id`, `prog_id` or `map_id`.
///
/// # Errors
/// If /proc cannot be read.
pub fn held(kind: &str) -> Result<BTreeSet<u32>> {
    Ok(pids()?
        .into_iter()
        .flat_map(|pid| held_by(pid, kind))
        .collect())
}

/// The ids that one process holds; none if it is gone.
pub fn held_by(pid: u32, kind: &str) -> BTreeSet<u32> {
    entries(&Path::new("/proc").join(pid.to_string()).join("fdinfo"))
        .filter_map(|path| fs::read_to_string(path).ok())
        .filter_map(|text| id_in(&text, kind))
        .collect()
}

fn id_in(fdinfo: &str, kind: &str) -> Option<u32> {
    let line = fdinfo.lines().find(|line| line.starts_with(kind))?;
    line.split_once(':')?.1.trim().parse().ok()
}

/// The ids of all links in the kernel. One that goes away while it is looked at is not there.
pub fn links() -> BTreeSet<u32> {
    aya::programs::loaded_links()
        .filter_map(|link| Some(link.ok()?.id()))
        .collect()
}

/// Control groups, namespaces, pins and mounts of ours, each in words with its path.
fn things() -> Result<BTreeSet<String>> {
    let mounts =
        fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let mut found = BTreeSet::new();
    for root in mounted(&mounts, "cgroup2") {
        marked(&root, 8, true, &mut |path| {
            found.insert(format!("control group {}", path.display()))
        });
    }
    for root in mounted(&mounts, "bpf") {
        marked(&root, 4, false, &mut |path| {
            found.insert(format!("BPF pin {}", path.display()))
        });
    }
    marked(Path::new("/run/netns"), 1, false, &mut |path| {
        found.insert(format!("network namespace {}", path.display()))
    });
    for mount in mount_points(&mounts) {
        if mount.contains(MARK) && !mount.starts_with("/run/netns/") {
            found.insert(format!("mount {mount}"));
        }
    }
    Ok(found)
}

/// Calls `tell` with what is in `root` and has the mark in its name, `depth` levels down.
fn marked(root: &Path, depth: u32, directories_only: bool, tell: &mut dyn FnMut(&Path) -> bool) {
    if depth == 0 {
        return;
    }
    for path in entries(root) {
        let is_directory = path.is_dir();
        let is_ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().contains(MARK));
        if is_ours && (is_directory || !directories_only) {
            tell(&path);
        } else if is_directory {
            marked(&path, depth - 1, directories_only, tell);
        }
    }
}

/// Where file systems of that type are mounted.
pub fn mounted(mountinfo: &str, kind: &str) -> Vec<PathBuf> {
    mountinfo
        .lines()
        .filter(|line| {
            line.split_once(" - ")
                .is_some_and(|(_, end)| end.split(' ').next() == Some(kind))
        })
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from)
        .collect()
}

fn mount_points(mountinfo: &str) -> impl Iterator<Item = &str> {
    mountinfo.lines().filter_map(|line| line.split(' ').nth(4))
}

/// Whether a number in its name is the pid of a live process.
fn names_live(thing: &str, alive: impl Fn(u32) -> bool) -> bool {
    thing
        .split(|letter: char| !letter.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .any(|pid| pid > 1 && alive(pid))
}

/// Processes of that run, each in words.
fn processes(run: &str) -> Result<Vec<String>> {
    Ok(pids()?
        .into_iter()
        .filter(|pid| *pid != std::process::id() && is_of_run(*pid, run))
        .map(|pid| {
            let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            format!("process {pid}: {}", command.trim())
        })
        .collect())
}

fn is_of_run(pid: u32, run: &str) -> bool {
    let variable = format!("{RUN_VARIABLE}={run}");
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    environment
        .split(|byte| *byte == 0)
        .any(|entry| entry == variable.as_bytes())
}

fn pids() -> Result<Vec<u32>> {
    let all = fs::read_dir("/proc").context("reading /proc")?;
    Ok(all
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

fn entries(directory: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_that_outlives_its_run_is_found_by_its_environment() {
        let run = format!("unit-{}", std::process::id());
        let mut child = Command::new("sleep")
            .arg("30")
            .env(RUN_VARIABLE, &run)
            .spawn()
            .unwrap();
        // The kernel tells of the exec a moment before it shows the environment.
        let mut found = Vec::new();
        for _ in 0..500 {
            found = processes(&run).unwrap();
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(found, [format!("process {}: sleep 30", child.id())]);
        assert!(processes(&run).unwrap().is_empty());
    }

    #[test]
    fn things_of_live_runs_are_told_by_the_pid_in_their_name() {
        let alive = |pid| pid == 4711;
        assert!(names_live(
            "network namespace /run/netns/sidecar-demo-4711-client",
            alive
        ));
        assert!(!names_live(
            "network namespace /run/netns/sidecar-demo-4712-client",
            alive
        ));
        assert!(!names_live("control group /sys/fs/cgroup/sidecar", alive));
    }

    #[test]
    fn mounts_are_found_by_type_and_ids_by_kind() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/unified rw,nosuid shared:9 - cgroup2 cgroup2 rw\n31 24 0:27 / /sys/fs/bpf rw - bpf bpf rw\n";
        assert_eq!(
            mounted(mounts, "cgroup2"),
            [PathBuf::from("/sys/fs/cgroup/unified")]
        );
        assert_eq!(
            id_in("pos:\t0\nprog_type:\t1\nprog_id:\t42\n", "prog_id"),
            Some(42)
        );
        assert_eq!(id_in("pos:\t0\n", "prog_id"), None);
    }

    #[test]
    fn marked_entries_are_found_below_the_root() {
        let directory = tempfile::tempdir().unwrap();
        let pod = directory.path().join("a/b/x-sidecar-1");
        fs::create_dir_all(pod.join("sidecar-inside")).unwrap();
        let mut found = Vec::new();
        marked(directory.path(), 4, true, &mut |path| {
            found.push(path.to_owned());
            true
        });
        assert_eq!(found, [pod]);
    }
}
