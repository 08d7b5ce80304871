//! Control groups of version 2, wherever they are mounted.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail};

use super::wait;

const EMPTY_LIMIT: Duration = Duration::from_secs(60);

/// Where cgroup v2 is mounted: beside version 1 that is not /sys/fs/cgroup.
pub fn root() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        after
            .starts_with("cgroup2 ")
            .then(|| before.split(' ').nth(4))?
    });
    match mount {
        Some(path) => Ok(path.into()),
        None => bail!("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup/unified"),
    }
}

/// A control group. Dropping it kills every process in it and below it, and removes it.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new(path: PathBuf) -> Result<Self> {
        fs::create_dir(&path)
            .with_context(|| format!("making the control group {}", path.display()))?;
        Ok(Self { path })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            eprintln!("left behind: {}: {error:#}", self.path.display());
        }
    }
}

/// Kills everything in the tree at `path` and removes it; one that is not there is fine.
pub fn remove(path: &Path) -> Result<()> {
    if !path.exists() {
        return Ok(());
    }
    fs::write(path.join("cgroup.kill"), "1")
        .with_context(|| format!("killing what is in {}", path.display()))?;
    wait::until_true("a control group to empty", EMPTY_LIMIT, || {
        let events = fs::read_to_string(path.join("cgroup.events"))?;
        Ok(events.lines().any(|line| line == "populated 0"))
    })?;
    remove_tree(path).with_context(|| format!("removing {}", path.display()))
}

/// Control groups are removed from the leaves up, directories only.
fn remove_tree(path: &Path) -> io::Result<()> {
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
