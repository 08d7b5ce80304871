//! What a world leaves when its process is killed, and how the next world finds it.
//!
//! Every world has a directory `/run/sidecar-tests/<pid>-<number>`, made first and removed last. Its name tells the
//! owner, and the names of everything else that belongs to it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use rustix::mount::{UnmountFlags, unmount};

use super::{cgroup, namespace};

/// Where worlds keep what they keep in files.
pub fn runtime_directory() -> PathBuf {
    PathBuf::from("/run/sidecar-tests")
}

/// What names of namespaces and control groups of the world `id` begin with.
pub fn prefix(id: &str) -> String {
    format!("sidecar-test-{id}")
}

/// Removes the remains of worlds whose process is gone.
pub fn dead_worlds() -> Result<()> {
    let Ok(entries) = fs::read_dir(runtime_directory()) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let owner = id.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if owner.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            eprintln!("removing what is left of world {id}");
            world(&id)?;
        }
    }
    Ok(())
}

/// Removes whatever there is of the world `id`.
pub fn world(id: &str) -> Result<()> {
    let prefix = prefix(id);
    cgroup::remove(&cgroup::root()?.join(&prefix))?;
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name
            .strip_prefix(&prefix)
            .is_some_and(|rest| rest.starts_with('-'))
        {
            namespace::remove(&name);
        }
    }
    let directory = runtime_directory().join(id);
    // Not mounted is as good as unmounted.
    let _ = unmount(directory.join("bpf"), UnmountFlags::DETACH);
    match fs::remove_dir_all(&directory) {
        // Somebody else swept it at the same time.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => Ok(result?),
    }
}
