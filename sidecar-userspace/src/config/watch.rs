//! The snapshot in force, and its replacement while the sidecar runs.
//!
//! A bad file changes nothing but the counters and the log.

use std::{
    fmt,
    path::Path,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::SystemTime,
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{ConfigErrors, Source};
use crate::model::Snapshot;

mod files;

pub use files::FileWatcher;

/// Where everybody gets the snapshot from. Lives as long as the sidecar.
#[derive(Debug)]
pub struct SnapshotHandle {
    current: ArcSwap<Snapshot>,
    /// Without a file reloading changes nothing.
    source: Source,
    /// Held through a reload, so that one ends before the next begins.
    status: Mutex<ReloadStatus>,
    /// The generation in force, for those who must act on a change.
    changed: watch::Sender<u64>,
    /// Set once, before the first reload.
    follower: OnceLock<Arc<dyn Follow>>,
}

/// Whoever has to be able to follow a new configuration.
pub trait Follow: fmt::Debug + Send + Sync {
    /// `new` is about to be in force.
    ///
    /// # Errors
    ///
    /// Why it cannot be: it is refused as a whole.
    fn prepare(&self, new: &Snapshot) -> Result<(), String>;

    /// `new` is in force: what only the one before needed may go.
    fn commit(&self, new: &Snapshot);
}

/// What became of the reloads so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReloadStatus {
    /// Of the snapshot in force.
    pub generation: u64,
    /// Reloads that found a good file, changed or not.
    pub successes: u64,
    /// Reloads that found a bad file.
    pub failures: u64,
    /// When a good file was last read, at start or later.
    pub last_success: SystemTime,
    /// Whether the file is bad now, so that an older one is in force.
    pub stale: bool,
}

impl SnapshotHandle {
    /// `source`: what `snapshot` was compiled from and what reloads read.
    pub fn new(snapshot: Snapshot, source: impl Into<Source>) -> Arc<Self> {
        let generation = snapshot.generation;
        Arc::new(Self {
            current: ArcSwap::from_pointee(snapshot),
            source: source.into(),
            status: Mutex::new(ReloadStatus {
                generation,
                successes: 0,
                failures: 0,
                last_success: SystemTime::now(),
                stale: false,
            }),
            changed: watch::Sender::new(generation),
            follower: OnceLock::new(),
        })
    }

    /// Reloads ask `follower` from now on. Only the first one counts.
    pub fn follow(&self, follower: Arc<dyn Follow>) {
        let _ = self.follower.set(follower);
    }

    /// The snapshot in force, to be kept for as long as one connection lasts.
    pub fn load(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The generation in force, now and after each change.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn status(&self) -> ReloadStatus {
        self.lock_status().clone()
    }

    pub fn path(&self) -> Option<&Path> {
        self.source.file.as_deref()
    }

    /// Reads the file again and, if it is good, puts it in force for connections accepted from now on.
    /// What is read at start only stays as it was. Reads a file: not to be called where connections are served.
    ///
    /// # Errors
    ///
    /// Those of [`Source::load`], logged as well; the old snapshot stays in force.
    pub fn reload(&self) -> Result<Arc<Snapshot>, ConfigErrors> {
        let Some(path) = self.path() else {
            tracing::info!("no configuration file: nothing to reload");
            return Ok(self.load());
        };
        let mut status = self.lock_status();
        let old = self.load();
        let follower = self.follower.get();
        let new = self.load_again(path).and_then(|mut new| {
            keep_what_is_read_at_start(&old, &mut new);
            let prepared = follower.map_or(Ok(()), |follower| follower.prepare(&new));
            prepared.map_err(|why| ConfigErrors::impossible(path, why))?;
            Ok(new)
        });
        let mut new = match new {
            Ok(new) => new,
            Err(errors) => {
                status.failures += 1;
                status.stale = true;
                let generation = status.generation;
                tracing::error!(
                    generation,
                    "configuration refused, the old one stays in force:\n{errors}"
                );
                return Err(errors);
            }
        };
        status.successes += 1;
        status.last_success = SystemTime::now();
        status.stale = false;
        new.generation = old.generation;
        if new == *old {
            tracing::info!(
                generation = old.generation,
                "configuration read again: unchanged"
            );
            return Ok(old);
        }
        new.generation += 1;
        status.generation = new.generation;
        let new = Arc::new(new);
        self.current.store(new.clone());
        if let Some(follower) = follower {
            follower.commit(&new);
        }
        self.changed.send_replace(new.generation);
        tracing::info!(
            generation = new.generation,
            services = new.services().len(),
            routes = new.routes().len(),
            "configuration in force"
        );
        Ok(new)
    }

    /// What came through a pipe, as in `-c <(generate)`, is gone: reading it again would find an empty file, which is
    /// a valid one.
    fn load_again(&self, path: &Path) -> Result<Snapshot, ConfigErrors> {
        match std::fs::metadata(path) {
            Ok(metadata) if !metadata.is_file() => {
                let error = std::io::Error::other("not a regular file, so it cannot be read again");
                Err(ConfigErrors::unreadable(path, &error))
            }
            _ => self.source.load(),
        }
    }

    // Nobody panics while holding the lock, and counters stay usable if somebody did.
    fn lock_status(&self) -> std::sync::MutexGuard<'_, ReloadStatus> {
        self.status.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn keep_what_is_read_at_start(old: &Snapshot, new: &mut Snapshot) {
    if new.listeners != old.listeners {
        tracing::warn!("listeners are read at start only: restart the sidecar to move them");
        new.listeners = old.listeners.clone();
    }
    if new.workers != old.workers {
        let (in_force, asked) = (old.workers, new.workers);
        tracing::warn!(%in_force, %asked, "workers are read at start only: restart the sidecar to change them");
        new.workers = old.workers;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::load;

    fn handle(text: &str) -> (tempfile::TempDir, PathBuf, Arc<SnapshotHandle>) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar.yaml");
        std::fs::write(&path, text).unwrap();
        let handle = SnapshotHandle::new(load(&path).unwrap(), Some(path.clone()));
        (directory, path, handle)
    }

    #[test]
    fn a_good_file_replaces_the_snapshot_and_an_old_one_lives_on() {
        let (_directory, path, handle) = handle("failRule: closed\n");
        let (before, mut changed) = (handle.load(), handle.subscribe());
        std::fs::write(&path, "failRule: open\nservices: [{ name: a }]\n").unwrap();
        let after = handle.reload().unwrap();
        assert_eq!((before.generation, after.generation), (1, 2));
        assert!(before.service_named("a").is_none());
        assert!(handle.load().service_named("a").is_some());
        assert!(changed.has_changed().unwrap());
        assert_eq!(*changed.borrow_and_update(), 2);
        // The same file again is a success and no change.
        handle.reload().unwrap();
        let status = handle.status();
        assert_eq!(
            (status.generation, status.successes, status.failures),
            (2, 2, 0)
        );
        assert!(!changed.has_changed().unwrap());
    }

    #[test]
    fn a_bad_file_leaves_the_old_snapshot_in_force() {
        let (_directory, path, handle) = handle("failRule: open\n");
        let before = handle.load();
        for bad in ["failRule: opne\n", "failRule: [", "unknown: 1\n"] {
            std::fs::write(&path, bad).unwrap();
            assert!(handle.reload().is_err(), "{bad}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(handle.reload().is_err());
        assert!(Arc::ptr_eq(&before, &handle.load()));
        let status = handle.status();
        assert_eq!(
            (status.generation, status.failures, status.stale),
            (1, 4, true)
        );
        std::fs::write(&path, "failRule: open\n").unwrap();
        handle.reload().unwrap();
        assert!(!handle.status().stale);
    }

    #[test]
    fn what_is_read_at_start_stays() {
        let (_directory, path, handle) = handle("");
        std::fs::write(
            &path,
            "listeners: { outbound: 1 }\nworkers: 7\nfailRule: open\n",
        )
        .unwrap();
        let after = handle.reload().unwrap();
        assert_eq!(after.listeners, Snapshot::builtin().listeners);
        assert_eq!(after.workers, Snapshot::builtin().workers);
        assert_eq!(after.generation, 2);
    }

    #[test]
    fn nothing_but_a_file_is_read_again() {
        let path = PathBuf::from("/dev/null");
        let handle = SnapshotHandle::new(load(&path).unwrap(), Some(path));
        let errors = handle.reload().unwrap_err();
        assert!(errors.to_string().contains("regular file"), "{errors}");
        let without_file = SnapshotHandle::new(Snapshot::builtin(), None);
        assert_eq!(without_file.reload().unwrap().generation, 1);
    }
}
