//! The BPF programs, maps and links that the demo's sidecars hold, and whether they are gone afterwards.

use crate::leftovers;
use anyhow::Result;
use std::{
    collections::BTreeSet,
    fmt,
    time::{Duration, Instant},
};

/// The kernel frees a program after a grace period.
const GRACE: Duration = Duration::from_secs(60);

/// Ids, as the kernel counts them; it does not use one again while this machine is up.
#[derive(Default)]
pub struct KernelObjects {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl KernelObjects {
    /// Adds what that process holds now.
    pub fn hold(&mut self, pid: u32) {
        self.programs.extend(leftovers::held_by(pid, "prog_id"));
        self.maps.extend(leftovers::held_by(pid, "map_id"));
        self.links.extend(leftovers::held_by(pid, "link_id"));
    }

    /// Those that the kernel still has after a moment, in words. What another sidecar of this machine holds as well is its own.
    ///
    /// # Errors
    /// If /proc cannot be read.
    pub fn still_there(&self) -> Result<Vec<String>> {
        let deadline = Instant::now() + GRACE;
        loop {
            let left = self.there_now()?;
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn there_now(&self) -> Result<Vec<String>> {
        let maps = aya::maps::loaded_maps()
            .filter_map(|map| Some(map.ok()?.id()))
            .collect();
        let programs = aya::programs::loaded_programs()
            .filter_map(|program| Some(program.ok()?.id()))
            .collect();
        let mut left = remaining("map", &self.maps, &maps, &leftovers::held("map_id")?);
        left.extend(remaining(
            "link",
            &self.links,
            &leftovers::links(),
            &leftovers::held("link_id")?,
        ));
        // Sidecars share the maps of a node, and with them the program that is attached to one of those.
        if self.maps.is_disjoint(&leftovers::held("map_id")?) {
            left.extend(remaining(
                "program",
                &self.programs,
                &programs,
                &leftovers::held("prog_id")?,
            ));
        }
        Ok(left)
    }
}

fn remaining(
    kind: &str,
    ours: &BTreeSet<u32>,
    there: &BTreeSet<u32>,
    held: &BTreeSet<u32>,
) -> Vec<String> {
    let left = ours
        .iter()
        .filter(|id| there.contains(id) && !held.contains(id));
    left.map(|id| format!("BPF {kind} {id}")).collect()
}

impl fmt::Display for KernelObjects {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "{} BPF programs, {} maps, {} links",
            self.programs.len(),
            self.maps.len(),
            self.links.len()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_and_nobodys_is_left() {
        let set = |ids: &[u32]| ids.iter().copied().collect::<BTreeSet<_>>();
        assert_eq!(
            remaining("map", &set(&[1, 2, 3]), &set(&[2, 3, 4]), &set(&[3])),
            ["BPF map 2"]
        );
    }
}
