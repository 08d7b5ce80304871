//! What is pinned, by the kernel's ids: so that it can be proven that all of it is gone.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use aya::{maps::MapInfo, programs::links::PinnedLink};

use crate::sys::bpf::{self, Kind};

/// The kernel frees links, programs and maps a moment after their last user is gone.
const GRACE: Duration = Duration::from_secs(5);

/// Links, the programs that they attach, and maps.
#[derive(Debug, Default)]
pub struct Census {
    found: BTreeMap<(Kind, u32), String>,
    /// Maps are shared with somebody who stays.
    shared: bool,
}

impl Census {
    /// Adds what is pinned in `directory` and below.
    pub fn add(&mut self, directory: &Path) {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                self.add(&path);
            } else {
                self.add_pin(&path);
            }
        }
    }

    fn add_pin(&mut self, path: &Path) {
        let name = path.display().to_string();
        if let Ok(map) = MapInfo::from_pin(path) {
            self.found.insert((Kind::Map, map.id()), name);
            return;
        }
        // A program that is pinned itself is found by its link, or goes with the map that it is attached to.
        let link = PinnedLink::from_pin(path).map(aya::programs::links::FdLink::from);
        if let Ok(Ok(info)) = link.map(|link| link.info()) {
            self.found.insert((Kind::Link, info.id()), name.clone());
            self.found.insert((Kind::Program, info.program_id()), name);
        }
    }

    /// Maps, and programs of others, may stay.
    pub fn keep_shared(&mut self) {
        self.shared = true;
    }

    /// What the kernel still has after a moment, in words.
    pub fn remaining(&self) -> Vec<String> {
        let deadline = Instant::now() + GRACE;
        loop {
            let left = self.look();
            if left.is_empty() || Instant::now() > deadline {
                return left;
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn look(&self) -> Vec<String> {
        let kinds = [Kind::Link, Kind::Program, Kind::Map];
        let alive = kinds
            .into_iter()
            .flat_map(|kind| bpf::ids(kind).into_iter().map(move |id| (kind, id)));
        let ours = alive.filter(|(kind, _)| !self.shared || *kind == Kind::Link);
        ours.filter_map(|key| {
            let name = self.found.get(&key)?;
            let (kind, why) = match key.0 {
                Kind::Link => ("link", "somebody holds it"),
                Kind::Program => ("program", "somebody holds it"),
                Kind::Map => ("map", "it goes with the last connection that is in it"),
            };
            Some(format!("{kind} {} ({name}): {why}", key.1))
        })
        .collect()
    }
}
