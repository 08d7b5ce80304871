//! What a sidecar holds in the kernel, and whether it is gone when it should be.
//!
//! The count is by id and by holder, not by the machine's totals: others may load programs at the same time.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::world::{programs, wait};

/// The kernel frees programs and maps a moment after their last user is gone.
const GRACE: Duration = Duration::from_secs(60);
const KINDS: [&str; 3] = ["prog", "map", "link"];

/// Programs, maps and links: kind and id.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Held {
    ids: BTreeSet<(&'static str, u64)>,
}

impl Held {
    /// What the process `pid` has open, what is pinned under `bpffs`, and the maps that programs among them use.
    pub fn by(pid: u32, bpffs: &Path) -> Result<Self> {
        let mut held = Self::default();
        for entry in fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten() {
            // A descriptor may close while we look.
            let information = fs::read_to_string(entry.path()).unwrap_or_default();
            for kind in KINDS {
                let field = format!("{kind}_id:");
                let id = information
                    .lines()
                    .find_map(|line| line.strip_prefix(&field)?.trim().parse().ok());
                held.ids.extend(id.map(|id| (kind, id)));
            }
        }
        for pin in pins(bpffs) {
            let path = pin.to_string_lossy().into_owned();
            let shown = KINDS
                .iter()
                .find_map(|kind| Some((*kind, bpftool(&[kind, "show", "pinned", &path]).ok()?)));
            let (kind, shown) =
                shown.with_context(|| format!("{path} is pinned, but nobody knows what it is"))?;
            held.ids.extend(shown["id"].as_u64().map(|id| (kind, id)));
            held.ids
                .extend(shown["prog_id"].as_u64().map(|id| ("prog", id)));
        }
        for (_, program) in held.ids.clone().range(("prog", 0)..) {
            let shown = bpftool(&["prog", "show", "id", &program.to_string()])?;
            let maps = shown["map_ids"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(Value::as_u64);
            held.ids.extend(maps.map(|id| ("map", id)));
        }
        Ok(held)
    }

    /// All that the kernel has, whosever it is: for a machine on which nobody else loads anything.
    pub fn everywhere() -> Result<Self> {
        let mut ids = BTreeSet::new();
        for kind in KINDS {
            let shown = bpftool(&[kind, "show"])?;
            let listed = shown.as_array().into_iter().flatten();
            ids.extend(listed.filter_map(|one| Some((kind, one["id"].as_u64()?))));
        }
        Ok(Self { ids })
    }

    /// What `other` does not hold.
    pub fn without(&self, other: &Self) -> Self {
        let ids = self.ids.difference(&other.ids).copied().collect();
        Self { ids }
    }

    /// How many of `prog`, `map` or `link`.
    pub fn count(&self, kind: &str) -> usize {
        self.ids.iter().filter(|(of, _)| *of == kind).count()
    }

    /// Waits until the kernel knows none of them any more.
    pub fn expect_gone(&self) -> Result<()> {
        let mut left = Vec::new();
        let waited = wait::until_true("programs, maps and links to go", GRACE, || {
            left = self
                .ids
                .iter()
                .filter_map(|(kind, id)| bpftool(&[kind, "show", "id", &id.to_string()]).ok())
                .collect();
            Ok(left.is_empty())
        });
        waited.with_context(|| format!("left in the kernel: {left:?}"))
    }

    /// Entries of all its maps but arrays, whose entries never go: name, type and number of entries.
    pub fn entries(&self) -> Result<Vec<(String, String, usize)>> {
        let mut counts = Vec::new();
        for (_, id) in self.ids.iter().filter(|(kind, _)| *kind == "map") {
            let shown = bpftool(&["map", "show", "id", &id.to_string()])?;
            let text = |key: &str| shown[key].as_str().unwrap_or_default().to_owned();
            let (name, kind) = (text("name"), text("type"));
            if !kind.contains("array") && kind.contains("hash") {
                let dump = bpftool(&["map", "dump", "id", &id.to_string()])?;
                counts.push((name, kind, dump.as_array().map_or(0, Vec::len)));
            }
        }
        Ok(counts)
    }
}

/// Programs that run for processes of a control group, its own and its ancestors'.
pub fn attached_to_cgroup(cgroup: &Path) -> Result<usize> {
    let path = cgroup.to_string_lossy().into_owned();
    Ok(bpftool(&["cgroup", "show", &path, "effective"])?
        .as_array()
        .map_or(0, Vec::len))
}

/// Programs attached to a network namespace by links.
pub fn attached_to_namespace(namespace: &Path) -> Result<usize> {
    use std::os::unix::fs::MetadataExt;
    let inode = fs::metadata(namespace)?.ino();
    let links = bpftool(&["link", "show"])?;
    Ok(links
        .as_array()
        .into_iter()
        .flatten()
        .filter(|link| link["netns_ino"].as_u64() == Some(inode))
        .count())
}

/// Sockets of TCP in use, as /proc/net/sockstat and sockstat6 of a namespace tell.
pub fn sockets_in_use(sockstat: &str, sockstat6: &str) -> u64 {
    let used = |text: &str, name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim()
            .strip_prefix("inuse ")?
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    used(sockstat, "TCP:").unwrap_or(0) + used(sockstat6, "TCP6:").unwrap_or(0)
}

/// Everything pinned in a BPF file system, but for the two listings that the kernel puts into every one.
pub fn pins(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.ends_with("progs.debug") || path.ends_with("maps.debug") {
            continue;
        }
        if path.is_dir() {
            found.extend(pins(&path))
        } else {
            found.push(path)
        }
    }
    found
}

/// The program that a pinned link attaches.
pub fn program_of(link: &Path) -> Result<u64> {
    let shown = bpftool(&["link", "show", "pinned", &link.to_string_lossy()])?;
    let program = shown["prog_id"].as_u64();
    program.with_context(|| format!("{} attaches nothing", link.display()))
}

/// The program in the first place of a pinned array of programs.
pub fn called_by(array: &Path) -> Result<u64> {
    let path = array.to_string_lossy().into_owned();
    let key = ["key", "0", "0", "0", "0"];
    let shown = bpftool(&[&["map", "lookup", "pinned", &path], &key[..]].concat())?;
    let bytes = shown["value"].as_array().into_iter().flatten();
    let text = bytes.map(|byte| byte.as_str().unwrap_or_default());
    let number = text.rev().map(|byte| byte.trim_start_matches("0x"));
    Ok(u64::from_str_radix(&number.collect::<String>(), 16)?)
}

fn bpftool(arguments: &[&str]) -> Result<Value> {
    let bpftool = programs::packaged("bpftool", "bpftool")?;
    let output = Command::new(bpftool)
        .arg("-j")
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "bpftool {}: {said}",
        arguments.join(" ")
    );
    if said.trim().is_empty() {
        return Ok(Value::Null);
    }
    let value = serde_json::from_str(&said)
        .with_context(|| format!("bpftool {}: {said}", arguments.join(" ")))?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_counts_are_found() {
        let v4 = "sockets: used 3\nTCP: inuse 5 orphan 0 tw 1 alloc 9 mem 2\nUDP: inuse 0 mem 0\n";
        assert_eq!(sockets_in_use(v4, "TCP6: inuse 2\n"), 7);
    }
}
