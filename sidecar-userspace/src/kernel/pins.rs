//! The pin directory on bpffs: what all sidecars of a node share, and one directory for each workload.
//!
//! ```text
//! <base>/v<ABI>-<hash of the maps>/     locked while it is changed
//!     WORKLOADS …                       shared maps, by name
//!     msg_stub                        the sk_msg program that is attached to FLOWS; what it calls is in MSG_PROGRAMS
//!     agent/                            locked by the node's agent for as long as that lives
//!         EVENTS, trace_splice         what outlives it beside the workloads
//!         object-<hash>/                whose programs are attached
//!         probes-<id>-kubelet_sockops     on the kubelet's cgroup
//!     workloads/<slot>-<name>/          locked by its sidecar for as long as that lives; links, with fail rule `closed` only
//!     workloads/<slot>-<name>@<id>/     of the pod with that cgroup: locked by the agent; links always
//! ```
//!
//! bpffs refuses names with dots: a `%` stands for each.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, OFlags, flock, statfs},
    mount::{MountFlags, mount},
};
use sidecar_common::settings::MAX_WORKLOADS;
use thiserror::Error;

use super::layout::Layout;

/// Where pins live unless told otherwise.
pub const DEFAULT_DIRECTORY: &str = "/sys/fs/bpf/sidecar";
const BPFFS: &str = "/sys/fs/bpf";
/// The agent's directory among those of the workloads.
pub const AGENT: &str = "agent";
/// Where an agent tries redirect, beside the directories of layouts.
pub const TRIAL: &str = "trial";
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

#[derive(Debug, Error)]
pub enum PinError {
    #[error("cannot {action} {path}: {source}")]
    Io {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{path} is not on a BPF file system ({source}); mount one: mount -t bpf bpf {BPFFS}")]
    NotBpffs { path: PathBuf, source: io::Error },
    #[error("workload {0:?} already has a sidecar; stop that one, or set another workload.name")]
    Taken(String),
    #[error("{MAX_WORKLOADS} workloads are enrolled on this node already")]
    Full,
    #[error(
        "{0} is no map of ours, although it is called like one: somebody else has put it there. End what uses it and remove it, or set another --bpffs"
    )]
    Foreign(PathBuf),
    #[error("{0} is held by another agent that runs; there is one a node")]
    Agent(PathBuf),
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PinError {
    move |source| PinError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

/// The shared directory, locked against other sidecars until it is dropped.
#[derive(Debug)]
pub struct Pins {
    pub directory: PathBuf,
    _lock: File,
}

/// A workload's directory; as long as this lives, the workload is known to have a sidecar.
#[derive(Debug)]
pub struct WorkloadPins {
    pub slot: u32,
    pub directory: PathBuf,
    _lock: File,
}

/// A workload's directory as found.
#[derive(Debug)]
pub struct FoundWorkload {
    pub slot: u32,
    pub name: String,
    /// The id of the pod's cgroup, if an agent enrolled it.
    pub pod: Option<u64>,
    pub directory: PathBuf,
    /// A living sidecar holds it, or an agent.
    pub alive: bool,
}

/// Longest name within a directory's name; bpffs takes 255 bytes for the whole.
const MAX_NAME: usize = 220;

/// What keeps a directory locked; the lock goes with it.
#[derive(Debug)]
pub struct Held(#[expect(dead_code, reason = "holds the lock")] File);

impl Pins {
    /// Opens the directory of objects with this layout, making it (and mounting bpffs) where it is missing; waits for the
    /// lock. Refuses maps that are not like those of the layout.
    pub fn open(base: &Path, layout: &Layout) -> Result<Self, PinError> {
        ensure_bpffs(base)?;
        let directory = base.join(layout.name());
        loop {
            let workloads = directory.join("workloads");
            fs::create_dir_all(&workloads).map_err(failed("create", &workloads))?;
            // The last sidecar may remove the directory while we wait for it.
            match Self::lock(directory.clone()) {
                Ok(pins) if workloads.is_dir() => {
                    layout.check(&pins.directory)?;
                    return Ok(pins);
                }
                Ok(_) => {}
                Err(PinError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Locks an existing directory.
    pub fn lock(directory: PathBuf) -> Result<Self, PinError> {
        let lock = open_directory(&directory)?;
        flock(&lock, FlockOperation::LockExclusive)
            .map_err(|e| failed("lock", &directory)(e.into()))?;
        Ok(Self {
            directory,
            _lock: lock,
        })
    }

    /// The shared directories under `base`, of every version that is there.
    pub fn versions(base: &Path) -> Vec<PathBuf> {
        let entries = fs::read_dir(base).into_iter().flatten().flatten();
        entries
            .map(|entry| entry.path())
            .filter(|path| path.join("workloads").is_dir())
            .collect()
    }

    pub fn workloads(&self) -> Result<Vec<FoundWorkload>, PinError> {
        let parent = self.directory.join("workloads");
        let mut found = Vec::new();
        for entry in fs::read_dir(&parent)
            .map_err(failed("read", &parent))?
            .flatten()
        {
            let file_name = entry.file_name();
            let Some((slot, name)) = file_name.to_str().and_then(|n| n.split_once('-')) else {
                continue;
            };
            let Ok(slot) = slot.parse() else { continue };
            let (name, pod) = match name.rsplit_once('@') {
                Some((name, pod)) => (name, pod.parse().ok()),
                None => (name, None),
            };
            let alive = open_directory(&entry.path())
                .is_ok_and(|lock| flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err());
            found.push(FoundWorkload {
                slot,
                name: name.replace('%', "."),
                pod,
                directory: entry.path(),
                alive,
            });
        }
        Ok(found)
    }

    /// Takes a free slot for `name`; refuses if a living sidecar has that name.
    pub fn claim(&self, name: &str) -> Result<WorkloadPins, PinError> {
        let workloads = self.workloads()?;
        let taken = |w: &FoundWorkload| w.pod.is_none() && w.name == name && w.alive;
        if workloads.iter().any(taken) {
            return Err(PinError::Taken(name.to_owned()));
        }
        self.make(&workloads, &plain(name))
    }

    /// Takes a free slot for the pod whose cgroup has the id `pod`. Names are not unique among pods.
    pub fn claim_for_pod(&self, name: &str, pod: u64) -> Result<WorkloadPins, PinError> {
        self.make(&self.workloads()?, &format!("{}@{pod}", plain(name)))
    }

    fn make(&self, workloads: &[FoundWorkload], name: &str) -> Result<WorkloadPins, PinError> {
        let used: BTreeSet<u32> = workloads.iter().map(|w| w.slot).collect();
        let slot = (0..MAX_WORKLOADS)
            .find(|slot| !used.contains(slot))
            .ok_or(PinError::Full)?;
        let directory = self
            .directory
            .join("workloads")
            .join(format!("{slot}-{name}"));
        fs::create_dir(&directory).map_err(failed("create", &directory))?;
        WorkloadPins::take(slot, directory)
    }

    /// The agent's own directory, made and locked. Fails at once if another agent holds it.
    pub fn claim_for_agent(&self) -> Result<(PathBuf, Held), PinError> {
        let directory = self.directory.join(AGENT);
        fs::create_dir_all(&directory).map_err(failed("create", &directory))?;
        let held = hold(&directory)?;
        Ok((directory, held))
    }

    /// Removes the directory of an agent that is gone.
    pub fn remove_agent(&self) -> Result<(), PinError> {
        let directory = self.directory.join(AGENT);
        match self.has_agent() || !directory.is_dir() {
            true => Ok(()),
            false => remove_tree(&directory).map_err(failed("remove", &directory)),
        }
    }

    /// Whether an agent runs that uses this directory.
    pub fn has_agent(&self) -> bool {
        let directory = self.directory.join(AGENT);
        directory.is_dir() && hold(&directory).is_err()
    }

    /// Whether nobody else who is alive uses the maps.
    pub fn is_only(&self, own: &WorkloadPins) -> Result<bool, PinError> {
        let workloads = self.workloads()?;
        let mut others = workloads.iter().filter(|w| w.directory != own.directory);
        Ok(others.all(|other| !other.alive) && !self.has_agent())
    }

    /// Removes a workload's directory with its links, which detaches them.
    pub fn remove(&self, workload: &Path) -> Result<(), PinError> {
        remove_tree(workload).map_err(failed("remove", workload))
    }

    /// Removes everything if no workload is left: maps and programs go with the last descriptor.
    pub fn remove_if_unused(&self) -> Result<bool, PinError> {
        if !self.workloads()?.is_empty() || self.has_agent() {
            return Ok(false);
        }
        remove_tree(&self.directory).map_err(failed("remove", &self.directory))?;
        if let Some(base) = self.directory.parent() {
            // Stays if another version is there.
            let _ = fs::remove_dir(base);
        }
        Ok(true)
    }
}

impl WorkloadPins {
    /// Takes over what a process left that is gone.
    pub fn take(slot: u32, directory: PathBuf) -> Result<Self, PinError> {
        let lock = open_directory(&directory)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .map_err(|e| failed("lock", &directory)(e.into()))?;
        Ok(Self {
            slot,
            directory,
            _lock: lock,
        })
    }
}

/// Locks `directory` for as long as what is returned lives; fails at once if somebody else has.
pub fn hold(directory: &Path) -> Result<Held, PinError> {
    let lock = open_directory(directory)?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Held(lock)),
        Err(_) => Err(PinError::Agent(directory.to_owned())),
    }
}

/// Removes what a process left that was killed.
pub fn discard(directory: &Path) -> Result<(), PinError> {
    match directory.is_dir() {
        true => remove_tree(directory).map_err(failed("remove", directory)),
        false => Ok(()),
    }
}

/// Leaves a word: bpffs keeps no files, but directories.
pub fn mark(directory: &Path) -> Result<(), PinError> {
    fs::create_dir_all(directory).map_err(failed("create", directory))
}

/// Makes the directory of all versions, and mounts bpffs where it is missing.
pub fn prepare(base: &Path) -> Result<(), PinError> {
    ensure_bpffs(base)?;
    fs::create_dir_all(base).map_err(failed("create", base))
}

/// As it may stand in a directory's name.
fn plain(name: &str) -> String {
    name.chars()
        .take(MAX_NAME)
        .collect::<String>()
        .replace('.', "%")
}

/// Not `fs::remove_dir_all`: bpffs cannot seek in directories that change under the reader.
fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries: Vec<_> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    for entry in entries {
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

fn open_directory(path: &Path) -> Result<File, PinError> {
    let flags = OFlags::DIRECTORY.bits() as i32;
    OpenOptions::new()
        .read(true)
        .custom_flags(flags)
        .open(path)
        .map_err(failed("open", path))
}

/// Makes sure that `base` is on bpffs; mounts one at its usual place where the system has not.
fn ensure_bpffs(base: &Path) -> Result<(), PinError> {
    let existing = base
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if statfs(existing).is_ok_and(|fs| fs.f_type as u32 == BPF_FS_MAGIC) {
        return Ok(());
    }
    let refused = |source: io::Error| PinError::NotBpffs {
        path: base.to_owned(),
        source,
    };
    if !base.starts_with(BPFFS) {
        return Err(refused(io::Error::from(io::ErrorKind::Unsupported)));
    }
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    mount("bpf", BPFFS, "bpf", flags, None).map_err(|e| refused(e.into()))
}
