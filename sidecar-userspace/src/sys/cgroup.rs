//! cgroup v2: where it is mounted, where we are in it, and cgroups of our own.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process, thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use thiserror::Error;

#[derive(Debug, Error)]
pub enum CgroupError {
    #[error("cgroup v2 is not mounted; mount it: mount -t cgroup2 none /sys/fs/cgroup/unified")]
    NotMounted,
    #[error("this process is in no cgroup v2")]
    NotAMember,
    #[error(
        "there is no cgroup {0}: make it first (mkdir), or leave --cgroup out and name a command"
    )]
    Missing(PathBuf),
    #[error("{path} is no cgroup; those of this machine are below {mount_point}")]
    NotACgroup { path: PathBuf, mount_point: PathBuf },
    #[error(
        "{path} is a cgroup of version 1, which knows no BPF programs; those of version 2 are below {mount_point}"
    )]
    Version1 { path: PathBuf, mount_point: PathBuf },
    #[error("cannot {action} cgroup {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// What a path is on.
#[derive(Debug, PartialEq, Eq)]
enum FileSystem {
    Cgroup1,
    Cgroup2,
    Other,
}

impl FileSystem {
    fn of(path: &Path) -> Self {
        let kind = rustix::fs::statfs(path).map(|found| found.f_type);
        match kind {
            // CGROUP_SUPER_MAGIC and CGROUP2_SUPER_MAGIC of linux/magic.h.
            Ok(0x0027_e0eb) => Self::Cgroup1,
            Ok(0x6367_7270) => Self::Cgroup2,
            _ => Self::Other,
        }
    }
}

/// A cgroup v2 directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Where cgroup v2 is mounted: alone, or beside v1.
    pub fn mount_point() -> Result<PathBuf, CgroupError> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        // 35 24 0:30 / /sys/fs/cgroup rw,… - cgroup2 cgroup2 rw
        mounts
            .lines()
            .find_map(|line| {
                let (left, right) = line.split_once(" - ")?;
                let root = left.split(' ').nth(3)?;
                let path = left.split(' ').nth(4)?;
                (right.starts_with("cgroup2 ") && root == "/").then(|| PathBuf::from(path))
            })
            .ok_or(CgroupError::NotMounted)
    }

    /// The cgroup of this process.
    pub fn own() -> Result<Self, CgroupError> {
        let mount_point = Self::mount_point()?;
        let memberships = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = memberships
            .lines()
            .find_map(|line| line.strip_prefix("0::/"));
        Ok(Self {
            path: mount_point.join(own.ok_or(CgroupError::NotAMember)?),
        })
    }

    /// An existing cgroup, by its directory or by its path below the mount point.
    pub fn open(path: &Path) -> Result<Self, CgroupError> {
        let mount_point = Self::mount_point()?;
        let below = path.strip_prefix("/").map(|path| mount_point.join(path));
        let candidates = [Some(path.to_owned()), below.ok()].into_iter().flatten();
        let mut missing = true;
        let mut version_1 = false;
        for candidate in candidates {
            // Links and dots would hide which cgroup contains which.
            let Ok(found) = fs::canonicalize(candidate) else {
                continue;
            };
            missing = false;
            match FileSystem::of(&found) {
                FileSystem::Cgroup2 if found.is_dir() => return Ok(Self { path: found }),
                FileSystem::Cgroup1 => version_1 = true,
                FileSystem::Cgroup2 | FileSystem::Other => {}
            }
        }
        let path = path.to_owned();
        Err(match (missing, version_1) {
            (true, _) => CgroupError::Missing(path),
            (_, true) => CgroupError::Version1 { path, mount_point },
            _ => CgroupError::NotACgroup { path, mount_point },
        })
    }

    /// The one with this directory, be it there or not.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The child `name`, made if it is missing.
    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        let path = self.path.join(name);
        match fs::create_dir(&path) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => Err(CgroupError::Io {
                action: "create",
                path,
                source,
            }),
            _ => Ok(Self { path }),
        }
    }

    /// The child `name`, be it there or not.
    pub fn below(&self, name: &str) -> Self {
        Self {
            path: self.path.join(name),
        }
    }

    pub fn parent(&self) -> Option<Self> {
        Some(Self {
            path: self.path.parent()?.to_owned(),
        })
    }

    /// The last part of the path.
    pub fn name(&self) -> &str {
        self.path
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether `other` is this cgroup or below it.
    pub fn contains(&self, other: &Self) -> bool {
        other.path.starts_with(&self.path)
    }

    /// The id by which BPF knows it: the inode of the directory.
    pub fn id(&self) -> Result<u64, CgroupError> {
        fs::metadata(&self.path)
            .map(|m| m.ino())
            .map_err(self.failed("look at"))
    }

    /// A descriptor to attach programs to.
    pub fn open_directory(&self) -> Result<File, CgroupError> {
        File::open(&self.path).map_err(self.failed("open"))
    }

    /// Moves this process, with all its threads, here.
    pub fn enter(&self) -> Result<(), CgroupError> {
        fs::write(self.path.join("cgroup.procs"), process::id().to_string())
            .map_err(self.failed("enter"))
    }

    /// Processes in this cgroup itself.
    pub fn processes(&self) -> Result<Vec<u32>, CgroupError> {
        let text =
            fs::read_to_string(self.path.join("cgroup.procs")).map_err(self.failed("read"))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// Processes in this cgroup and below it.
    pub fn all_processes(&self) -> Vec<u32> {
        let mut found = self.processes().unwrap_or_default();
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            found.extend(Self { path: entry.path() }.all_processes());
        }
        found
    }

    /// Sends a signal to every process in this cgroup and below it.
    pub fn signal(&self, signal: Signal) {
        for pid in self.all_processes() {
            if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
                // Gone in the meantime: that is what was wanted.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Whether a process is in this cgroup or below it.
    pub fn populated(&self) -> bool {
        fs::read_to_string(self.path.join("cgroup.events"))
            .is_ok_and(|events| events.lines().any(|line| line == "populated 1"))
    }

    /// CPU time that its processes have taken, and those below it, also those that have ended. `None` if the kernel does not say.
    pub fn cpu_time(&self) -> Option<Duration> {
        let text = fs::read_to_string(self.path.join("cpu.stat")).ok()?;
        let used = text
            .lines()
            .find_map(|line| line.strip_prefix("usage_usec "))?;
        used.trim().parse().ok().map(Duration::from_micros)
    }

    /// Removes the empty cgroup; processes that have just ended may still be counted for a moment.
    pub fn remove(&self) -> Result<(), CgroupError> {
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            match fs::remove_dir(&self.path) {
                Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5));
                }
                result => return result.map_err(self.failed("remove")),
            }
        }
    }

    /// Removes this cgroup and those that the application made in it.
    pub fn remove_tree(&self) -> Result<(), CgroupError> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        for entry in entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            Self { path: entry.path() }.remove_tree()?;
        }
        self.remove()
    }

    /// The cgroup with `id`, wherever it is; `None` if it is gone.
    pub fn with_id(id: u64) -> Option<Self> {
        Self::with_ids(&BTreeSet::from([id])).remove(&id)
    }

    /// Those of the cgroups with `ids` that are there, found in one walk.
    pub fn with_ids(ids: &BTreeSet<u64>) -> BTreeMap<u64, Self> {
        let mut found = BTreeMap::new();
        let mut pending: Vec<_> = Self::mount_point().into_iter().collect();
        while let Some(path) = pending.pop() {
            if found.len() == ids.len() {
                break;
            }
            // The directory itself, not where it stands in the one above: a mount point would be the other's.
            if let Ok(id) = fs::metadata(&path).map(|m| m.ino())
                && ids.contains(&id)
            {
                found.insert(id, Self { path: path.clone() });
            }
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            pending.extend(
                entries
                    .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
                    .map(|e| e.path()),
            );
        }
        found
    }

    /// The children that there are.
    pub fn children(&self) -> Vec<Self> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        entries
            .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
            .map(|e| Self { path: e.path() })
            .collect()
    }

    fn failed(&self, action: &'static str) -> impl FnOnce(io::Error) -> CgroupError {
        let path = self.path.clone();
        move |source| CgroupError::Io {
            action,
            path,
            source,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_cgroup_is_told_from_what_is_not_there() {
        let directory = tempfile::tempdir().unwrap();
        let error = |path: &Path| Cgroup::open(path).unwrap_err().to_string();
        let text = error(directory.path());
        assert!(
            text.contains("is no cgroup; those of this machine are below /"),
            "{text}"
        );
        let text = error(&directory.path().join("gone"));
        assert!(
            text.contains("there is no cgroup") && text.contains("mkdir"),
            "{text}"
        );
    }

    #[test]
    fn a_cgroup_is_found_by_either_path_and_behind_links() {
        let mount_point = Cgroup::mount_point().unwrap();
        let own = Cgroup::own().unwrap();
        let below = Path::new("/").join(own.path().strip_prefix(&mount_point).unwrap());
        assert_eq!(Cgroup::open(&below).unwrap(), own);
        let directory = tempfile::tempdir().unwrap();
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(own.path(), &link).unwrap();
        assert_eq!(Cgroup::open(&link).unwrap(), own);
    }
}
