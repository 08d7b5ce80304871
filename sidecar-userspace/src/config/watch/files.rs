//! Reading files again when they change: the configuration's, and those that it names.
//!
//! What is watched is the directory, since editors and Kubernetes do not write a file but replace it: by a rename,
//! or by moving the symbolic link `..data` through which a ConfigMap's files are reached.

use std::{
    collections::BTreeSet,
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{self, Receiver, RecvTimeoutError, Sender},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use notify::{
    Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher,
    event::{AccessKind, AccessMode},
};

use super::SnapshotHandle;

/// Files are read when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(100);
/// Files are read after this even if something keeps happening.
const PATIENCE: Duration = Duration::from_secs(1);

/// A thread that acts when files change. Dropping it ends the thread.
#[derive(Debug)]
pub struct FileWatcher {
    signals: Sender<Signal>,
    thread: Option<JoinHandle<()>>,
}

enum Signal {
    Happened(notify::Result<Event>),
    Stop,
}

impl FileWatcher {
    /// Calls [`SnapshotHandle::reload`] when the configuration changes. `None`: the handle has no file.
    ///
    /// # Errors
    ///
    /// No inotify instance or watch is left, or no thread. The file is then read on SIGHUP only.
    pub fn start(handle: Arc<SnapshotHandle>) -> Result<Option<Self>, notify::Error> {
        let Some(path) = handle.path().map(Path::to_owned) else {
            return Ok(None);
        };
        // Counted and logged there.
        let reload = move || drop(handle.reload());
        Self::watch("config-watch", vec![path], reload).map(Some)
    }

    /// Calls `changed` on a thread called `name` when one of `paths` changes.
    ///
    /// # Errors
    ///
    /// No inotify instance or watch is left, a directory cannot be watched, or there is no thread.
    pub fn watch(
        name: &str,
        paths: Vec<PathBuf>,
        changed: impl Fn() + Send + 'static,
    ) -> Result<Self, notify::Error> {
        let (signals, received) = mpsc::channel();
        let events = signals.clone();
        // A send fails only once the thread has ended.
        let watcher = notify::recommended_watcher(move |event| {
            let _ = events.send(Signal::Happened(event));
        })?;
        let mut places = Places {
            paths,
            watcher,
            directories: BTreeSet::new(),
            names: BTreeSet::new(),
        };
        places.update()?;
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&changed, &mut places, &received))
            .map_err(notify::Error::io)?;
        let thread = Some(thread);
        Ok(Self { signals, thread })
    }
}

impl Drop for FileWatcher {
    fn drop(&mut self) {
        let _ = self.signals.send(Signal::Stop);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            tracing::error!("a thread that watched files had panicked");
        }
    }
}

fn run(changed: &impl Fn(), places: &mut Places, signals: &Receiver<Signal>) {
    while let Ok(Signal::Happened(event)) = signals.recv() {
        if !places.concerned_by(&event) {
            continue;
        }
        if !wait_for_quiet(places, signals) {
            return;
        }
        changed();
        if let Err(error) = places.update() {
            tracing::warn!("cannot watch a file's directory: {error}");
        }
    }
}

/// Whether to go on.
fn wait_for_quiet(places: &Places, signals: &Receiver<Signal>) -> bool {
    let latest = Instant::now() + PATIENCE;
    let mut until = Instant::now() + QUIET;
    loop {
        let timeout = until.min(latest).saturating_duration_since(Instant::now());
        match signals.recv_timeout(timeout) {
            Ok(Signal::Happened(event)) if places.concerned_by(&event) => {
                until = Instant::now() + QUIET;
            }
            Ok(Signal::Happened(_)) => {}
            Ok(Signal::Stop) | Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => return true,
        }
    }
}

/// Where a change of the files shows: their directories and, of symbolic links, those of what they stand for.
struct Places {
    paths: Vec<PathBuf>,
    watcher: RecommendedWatcher,
    directories: BTreeSet<PathBuf>,
    /// Names in those directories.
    names: BTreeSet<std::ffi::OsString>,
}

impl Places {
    /// Follows symbolic links anew. Fails only for the files' own directories: what a link stands for may be gone.
    fn update(&mut self) -> notify::Result<()> {
        let own: BTreeSet<PathBuf> = self.paths.iter().map(|path| directory_of(path)).collect();
        let targets = self
            .paths
            .iter()
            .filter_map(|path| path.canonicalize().ok());
        let targets: Vec<PathBuf> = targets.collect();
        let files = || self.paths.iter().chain(&targets).map(PathBuf::as_path);
        let names = files()
            .filter_map(|file| file.file_name().map(OsStr::to_owned))
            .collect();
        let directories: BTreeSet<PathBuf> = files().map(directory_of).collect();

        for gone in self.directories.difference(&directories) {
            // The kernel drops the watch of a directory that is deleted; then there is nothing to drop here.
            let _ = self.watcher.unwatch(gone);
        }
        let mut result = Ok(());
        for new in directories.difference(&self.directories) {
            let watched = self.watcher.watch(new, RecursiveMode::NonRecursive);
            if own.contains(new) && watched.is_err() {
                result = watched;
            }
        }
        self.directories = directories;
        self.names = names;
        result
    }

    fn concerned_by(&self, event: &notify::Result<Event>) -> bool {
        let event = match event {
            Ok(event) => event,
            Err(error) => {
                tracing::warn!("watching files: {error}");
                return true;
            }
        };
        // Reading the file is an event too, and must not lead to reading it.
        let read = match event.kind {
            EventKind::Access(kind) => kind != AccessKind::Close(AccessMode::Write),
            _ => false,
        };
        let named = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default();
            self.names.contains(name) || name.as_bytes().starts_with(b"..")
        };
        !read && (event.need_rescan() || event.paths.iter().any(named))
    }
}

fn directory_of(file: &Path) -> PathBuf {
    let parent = file
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    parent.unwrap_or(Path::new(".")).to_owned()
}

#[cfg(test)]
mod tests {

    use std::{fs, os::unix::fs::symlink};

    use super::*;
    use crate::{config, model::FailRule};

    fn watch(path: &Path) -> (Arc<SnapshotHandle>, FileWatcher) {
        let handle = SnapshotHandle::new(config::load(path).unwrap(), Some(path.to_owned()));
        let watcher = FileWatcher::start(handle.clone()).unwrap();
        (handle, watcher.expect("a watcher for the file"))
    }

    fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
        let latest = Instant::now() + Duration::from_secs(60);
        while !holds() {
            assert!(Instant::now() < latest, "{what} within a minute");
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn is(handle: &SnapshotHandle, rule: FailRule) -> bool {
        handle.load().fail_rule == rule
    }

    #[test]
    fn a_file_written_in_place_or_replaced_is_seen() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar.yaml");
        fs::write(&path, "").unwrap();
        let (handle, _watcher) = watch(&path);
        fs::write(&path, "failRule: open").unwrap();
        eventually("the new text", || is(&handle, FailRule::Open));
        let aside = directory.path().join("aside");
        fs::write(&aside, "failRule: closed").unwrap();
        fs::rename(&aside, &path).unwrap();
        eventually("the new file", || is(&handle, FailRule::Closed));
        fs::write(&path, "failRule: ajar").unwrap();
        eventually("the bad file", || handle.status().failures > 0);
        assert!(is(&handle, FailRule::Closed));
    }

    #[test]
    fn a_config_map_is_seen_every_time() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let publish = |version: &str, text: &str| {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("sidecar.yaml"), text).unwrap();
            symlink(version, at("..data_tmp")).unwrap();
            fs::rename(at("..data_tmp"), at("..data")).unwrap();
        };
        publish("..1", "");
        symlink("..data/sidecar.yaml", at("sidecar.yaml")).unwrap();
        let (handle, _watcher) = watch(&at("sidecar.yaml"));
        publish("..2", "failRule: open");
        fs::remove_dir_all(at("..1")).unwrap();
        eventually("the second version", || is(&handle, FailRule::Open));
        publish("..3", "failRule: closed");
        fs::remove_dir_all(at("..2")).unwrap();
        eventually("the third version", || is(&handle, FailRule::Closed));
        assert_eq!(handle.status().failures, 0);
    }

    #[test]
    fn the_target_of_a_link_elsewhere_is_seen() {
        let (links, files) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (link, file) = (
            links.path().join("sidecar.yaml"),
            files.path().join("real.yaml"),
        );
        fs::write(&file, "").unwrap();
        symlink(&file, &link).unwrap();
        let (handle, _watcher) = watch(&link);
        fs::write(&file, "failRule: open").unwrap();
        eventually("the target's new text", || is(&handle, FailRule::Open));
    }

    #[test]
    fn reading_and_neighbours_cause_no_reload() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar.yaml");
        fs::write(&path, "").unwrap();
        let (handle, watcher) = watch(&path);
        fs::read(&path).unwrap();
        fs::write(directory.path().join("access.log"), "GET /").unwrap();
        thread::sleep(QUIET * 4);
        drop(watcher);
        assert_eq!(handle.status().successes, 0);
        fs::write(&path, "failRule: open").unwrap();
        thread::sleep(QUIET * 2);
        assert!(
            is(&handle, FailRule::Closed),
            "a dropped watcher watches no more"
        );
    }

    #[test]
    fn a_burst_of_changes_is_not_a_burst_of_reloads() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sidecar.yaml");
        fs::write(&path, "").unwrap();
        let (handle, _watcher) = watch(&path);
        for _ in 0..20 {
            fs::write(&path, "failRule: open").unwrap();
        }
        eventually("the new text", || is(&handle, FailRule::Open));
        thread::sleep(QUIET * 3);
        // One, unless the machine is so busy that some of the writes are far apart.
        assert!(handle.status().successes < 15, "{:?}", handle.status());
    }
}
