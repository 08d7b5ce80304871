//! The cgroups of pods, which podman makes below `libpod_parent` of each hierarchy and, of version 2 beside version 1, leaves there.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use sidecar_tests::world::cgroup;

const PARENT: &str = "libpod_parent";

/// Removes those of a pod that has gone.
pub fn remove(pod: &str) -> Result<()> {
    let v2 = cgroup::root()?.join(PARENT);
    cgroup::remove(&v2.join(pod))?;
    for parent in parents() {
        remove_empty(&parent.join(pod));
        // Its last pod was ours.
        remove_empty(&parent.join("conmon"));
        let _ = fs::remove_dir(parent);
    }
    Ok(())
}

/// Ends and removes pods of tests that were killed: their containers' root is in the directory of a world whose process is gone.
pub fn sweep() -> Result<()> {
    let v2 = cgroup::root()?.join(PARENT);
    for pod in below(&v2) {
        let mounts = members(&pod)
            .into_iter()
            .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok());
        let is_orphan = mounts
            .filter_map(|mounts| owner(&mounts))
            .any(|pid| !Path::new("/proc").join(pid.to_string()).exists());
        if let Some(name) = pod.file_name().and_then(|name| name.to_str())
            && is_orphan
        {
            eprintln!("removing the pod {name} of a test that was killed");
            remove(name)?;
        }
    }
    Ok(())
}

/// The process whose world a container's root is in.
fn owner(mountinfo: &str) -> Option<u32> {
    let (_, after) = mountinfo.split_once("/run/sidecar-tests/")?;
    after.split('-').next()?.parse().ok()
}

fn members(group: &Path) -> Vec<u32> {
    let listed = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    let own = listed.lines().filter_map(|line| line.parse().ok());
    own.chain(below(group).iter().flat_map(|group| members(group)))
        .collect()
}

fn below(group: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(group).into_iter().flatten();
    entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.is_dir())
        .collect()
}

/// A cgroup with a process in it stays.
fn remove_empty(group: &Path) {
    for inner in below(group) {
        remove_empty(&inner);
    }
    let _ = fs::remove_dir(group);
}

/// In the hierarchies of version 1, and in that of version 2 wherever it is.
fn parents() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let mut all: Vec<_> = below(root)
        .iter()
        .map(|hierarchy| hierarchy.join(PARENT))
        .collect();
    all.push(root.join(PARENT));
    all.retain(|path| path.is_dir());
    all
}

#[test]
fn the_owner_of_a_container_is_read_from_its_root() {
    let mounts = "1 2 0:9 / / rw - overlay overlay rw,upperdir=/run/sidecar-tests/4711-0/node/root/overlay/x/diff";
    assert_eq!(owner(mounts), Some(4711));
    assert_eq!(owner("1 2 0:9 / / rw - ext4 /dev/vda rw"), None);
}
