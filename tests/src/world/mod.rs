//! The world of a kernel test: workloads on one node, each in a network namespace and a control group of its own, with or
//! without a sidecar.
//!
//! ```no_run
//! use sidecar_tests::world::{Settings, World};
//!
//! World::play(|world| {
//!     let a = world.workload("a")?.with_sidecar(&Settings::default())?;
//!     let b = world.workload("b")?.with_sidecar(&Settings::default())?;
//!     let server = b.traffic("serve", &["serve", "--listen", &b.v4(8080).to_string(), "--connections", "1"])?;
//!     Ok(())
//! });
//! ```

use std::{
    fs::{self, File},
    net::{Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
};

use anyhow::{Context, Result, ensure};
use rustix::mount::{MountFlags, mount};

pub mod agent;
pub mod cgroup;
pub mod http;
pub mod metrics;
pub mod namespace;
pub mod process;
pub mod programs;
pub mod settings;
pub mod sidecar;
mod sweep;
pub mod wait;
pub mod workload;

pub use agent::{Agent, Pod};
pub use metrics::Metrics;
pub use process::{Finished, Running};
pub use settings::Settings;
pub use sidecar::Sidecar;
pub use workload::Workload;

use cgroup::Cgroup;
use namespace::Namespace;

/// Lines of each program's output that are shown when a test fails.
const SHOWN_LINES: usize = 40;

/// A node of its own. Dropping it ends and removes everything in it.
pub struct World {
    id: String,
    directory: PathBuf,
    cgroup: Cgroup,
    bridge: Namespace,
    /// Workloads made so far: gives each its addresses.
    workloads: AtomicU32,
    /// Held while the world exists: heavy tests have the machine to themselves.
    _turn: File,
}

impl World {
    /// Plays a test in a world of its own, and shows what its programs said if it fails.
    pub fn play(test: impl FnOnce(&Self) -> Result<()>) {
        Self::play_in_turn(Turn::Shared, test);
    }

    /// As [`World::play`], while no other world exists but idle ones: for tests that measure.
    pub fn play_alone(test: impl FnOnce(&Self) -> Result<()>) {
        Self::play_in_turn(Turn::Alone, test);
    }

    /// A world for a measurement: as [`World::play_alone`], for programs that are no tests.
    pub fn alone() -> Result<Self> {
        Self::new(Turn::Alone)
    }

    /// As [`World::play`], for a test that mostly waits: it disturbs nobody, and nobody waits for it.
    pub fn play_idle(test: impl FnOnce(&Self) -> Result<()>) {
        Self::play_in_turn(Turn::Idle, test);
    }

    fn play_in_turn(turn: Turn, test: impl FnOnce(&Self) -> Result<()>) {
        let played = Self::new(turn).and_then(|world| world.run(test));
        // In one line: a backtrace would only lead to here.
        played.unwrap_or_else(|error| panic!("{error:#}"));
    }

    fn run(self, test: impl FnOnce(&Self) -> Result<()>) -> Result<()> {
        let result = test(&self);
        if let Err(error) = &result {
            // Once more at the end, by whoever panics: what is shown between may be long.
            eprintln!("{error:#}");
            self.show();
        }
        result
    }

    fn new(turn: Turn) -> Result<Self> {
        ensure!(
            rustix::process::geteuid().is_root(),
            "namespaces and kernel programs need root: run this with sudo"
        );
        fs::create_dir_all(sweep::runtime_directory())?;
        let turn = turn.take()?;
        sweep::dead_worlds()?;

        static WORLDS: AtomicU32 = AtomicU32::new(0);
        let id = format!(
            "{}-{}",
            std::process::id(),
            WORLDS.fetch_add(1, Ordering::Relaxed)
        );
        let directory = sweep::runtime_directory().join(&id);
        fs::create_dir(&directory)?;
        fs::create_dir(directory.join("bpf"))?;
        mount(
            "bpf",
            directory.join("bpf"),
            "bpf",
            MountFlags::empty(),
            None,
        )
        .context("mounting a BPF file system")?;
        let prefix = sweep::prefix(&id);
        let cgroup = Cgroup::new(cgroup::root()?.join(&prefix))?;
        let bridge = Namespace::new(&format!("{prefix}-net"))?;
        bridge.bridge()?;
        Ok(Self {
            id,
            directory,
            cgroup,
            bridge,
            workloads: AtomicU32::new(0),
            _turn: turn,
        })
    }

    /// A new workload, without a sidecar so far.
    pub fn workload(&self, name: &str) -> Result<Workload<'_>> {
        let workload = self.apart(name)?;
        let port = format!("w-{name}");
        workload.namespace().plug_into(
            &self.bridge,
            &port,
            &[workload.v4(0).ip(), workload.v6(0).ip()],
        )?;
        Ok(workload)
    }

    /// A new workload that is not connected to anybody.
    fn apart(&self, name: &str) -> Result<Workload<'_>> {
        let number = 1 + self.workloads.fetch_add(1, Ordering::Relaxed);
        let host = u8::try_from(number).context("a world holds 255 workloads")?;
        let (v4, v6) = (
            Ipv4Addr::new(10, 77, 0, host),
            Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number as u16),
        );
        let namespace = Namespace::new(&format!("{}-{name}", sweep::prefix(&self.id)))?;
        let cgroup = Cgroup::new(self.cgroup.path().join(name))?;
        Ok(Workload::new(self, name, namespace, cgroup, v4, v6))
    }

    /// Two new workloads whose namespaces a veth pair joins with nothing in between: for measurements, which a bridge's work
    /// would be part of. They reach nobody else.
    pub fn pair(&self, one: &str, other: &str) -> Result<(Workload<'_>, Workload<'_>)> {
        let (one, other) = (self.apart(one)?, self.apart(other)?);
        one.namespace().join(
            other.namespace(),
            &[one.v4(0).ip(), one.v6(0).ip()],
            &[other.v4(0).ip(), other.v6(0).ip()],
        )?;
        Ok((one, other))
    }

    /// A command beside the workloads, as a node's own programs are: in a network namespace that none of them has, and in
    /// the cgroup `group` of the world.
    pub fn command_beside(&self, group: &str, program: &Path) -> Result<Command> {
        let cgroup = self.cgroup.path().join(group);
        fs::create_dir_all(&cgroup)?;
        workload::command(&self.bridge, &cgroup, program)
    }

    /// Runs `work` where [`World::command_beside`] runs programs.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.bridge.enter(work)
    }

    /// The cgroup of the whole world.
    pub fn cgroup(&self) -> &Path {
        self.cgroup.path()
    }

    /// The path of a cgroup in that of the world, below the mount point: as an agent's option names it.
    pub fn cgroup_pattern(&self, name: &str) -> Result<String> {
        let below = self.cgroup.path().strip_prefix(cgroup::root()?)?;
        Ok(format!("/{}/{name}", below.display()))
    }

    /// A directory for files of this world.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The BPF file system of this world, in which its sidecars share maps.
    pub fn bpffs(&self) -> PathBuf {
        self.directory.join("bpf")
    }

    /// Shows the last lines of everything that programs of this world said.
    pub fn show(&self) {
        let mut files: Vec<PathBuf> = fs::read_dir(&self.directory)
            .into_iter()
            .flatten()
            .filter_map(|entry| Some(entry.ok()?.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|end| end == "out" || end == "err")
            })
            .collect();
        files.sort();
        for path in files {
            let said = fs::read(&path)
                .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
                .unwrap_or_default();
            let lines: Vec<&str> = said.lines().collect();
            if !lines.is_empty() {
                let shown = &lines[lines.len().saturating_sub(SHOWN_LINES)..];
                eprintln!(
                    "--- {} ({} lines)\n{}",
                    path.display(),
                    lines.len(),
                    shown.join("\n")
                );
            }
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show();
        }
        if let Err(error) = sweep::world(&self.id) {
            eprintln!("left behind: world {}: {error:#}", self.id);
        }
    }
}

/// Whether other worlds may exist at the same time, in this process or another.
enum Turn {
    Shared,
    Alone,
    Idle,
}

impl Turn {
    /// Waits for the turn, which lasts until the file is closed.
    fn take(self) -> Result<File> {
        let file = File::create(sweep::runtime_directory().join("turn.lock"))?;
        match self {
            Self::Shared => file.lock_shared()?,
            Self::Alone => {
                if file.try_lock().is_err() {
                    eprintln!("waiting until other tests on this machine have ended");
                    file.lock()?;
                }
            }
            Self::Idle => {}
        }
        Ok(file)
    }
}
