//! Which sockets the processes of some cgroups hold, as /proc has it. Never more is read than a bound: a pod may have very many
//! descriptors, and the agent looks at all pods on one thread.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use crate::sys::cgroup::Cgroup;

/// What may still be read in one look.
#[derive(Debug)]
pub struct Budget(usize);

/// Processes and descriptors: some 40 ms.
const MOST: usize = 16_384;

impl Default for Budget {
    fn default() -> Self {
        Self(MOST)
    }
}

impl Budget {
    pub fn is_spent(&self) -> bool {
        self.0 == 0
    }

    /// One more is read; `None`: that would be too much.
    pub fn spend(&mut self) -> Option<()> {
        self.0 = self.0.checked_sub(1)?;
        Some(())
    }
}

/// `top` and the cgroups below it with their ids, but for those with an id in `without`, and what is below these.
pub fn tree(top: &Cgroup, without: &BTreeSet<u64>) -> Vec<(u64, Cgroup)> {
    let mut found = Vec::new();
    let mut pending = vec![top.clone()];
    while let Some(cgroup) = pending.pop() {
        // One that has just gone has no sockets.
        let Ok(id) = cgroup.id() else { continue };
        if !without.contains(&id) {
            pending.extend(cgroup.children());
            found.push((id, cgroup));
        }
    }
    found
}

/// Inodes of the sockets that processes in these cgroups hold, of those whose directory in /proc `counts`. `None`: there is more
/// than may be read.
pub fn sockets<'a>(
    cgroups: impl IntoIterator<Item = &'a Cgroup>,
    counts: impl Fn(&Path) -> bool,
    budget: &mut Budget,
) -> Option<BTreeSet<u32>> {
    let mut found = BTreeSet::new();
    for cgroup in cgroups {
        for pid in cgroup.processes().unwrap_or_default() {
            budget.spend()?;
            let process = directory(pid);
            if !counts(&process) {
                continue;
            }
            let descriptors = fs::read_dir(process.join("fd"));
            for entry in descriptors.into_iter().flatten().flatten() {
                budget.spend()?;
                found.extend(socket_at(&entry.path()));
            }
        }
    }
    Some(found)
}

/// A process in /proc.
pub fn directory(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

/// The inode of the socket that a link in /proc/PID/fd leads to.
fn socket_at(link: &Path) -> Option<u32> {
    let target = fs::read_link(link).ok()?;
    let inode = target.to_str()?.strip_prefix("socket:[")?;
    inode.strip_suffix(']')?.parse().ok()
}
