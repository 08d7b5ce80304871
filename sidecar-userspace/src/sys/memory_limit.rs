//! How much memory this process may have: the smallest limit of the control groups that it is in, of either version of
//! the memory controller, and never more than the machine has.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Read once: a limit that changes later is not noticed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryLimit {
    pub bytes: u64,
    /// The file that says so.
    pub source: PathBuf,
}

impl MemoryLimit {
    /// Of this process. `None`: not even the machine's memory is known, as /proc is not mounted.
    pub fn of_this_process() -> Option<Self> {
        let text = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let of_cgroups = of_cgroups(&text("/proc/self/mountinfo"), &text("/proc/self/cgroup"));
        let of_machine = of_machine(&text("/proc/meminfo"));
        of_cgroups
            .into_iter()
            .chain(of_machine)
            .min_by_key(|limit| limit.bytes)
    }
}

fn of_machine(meminfo: &str) -> Option<MemoryLimit> {
    let total = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = total.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(MemoryLimit {
        bytes: kibibytes * 1024,
        source: "/proc/meminfo".into(),
    })
}

fn of_cgroups(mounts: &str, memberships: &str) -> Vec<MemoryLimit> {
    let mounts = mounts.lines().filter_map(Mount::parse);
    mounts
        .filter_map(|mount| mount.smallest(memberships))
        .collect()
}

/// Where a hierarchy that may have the memory controller is mounted.
struct Mount<'a> {
    /// The control group that is seen at `point`.
    root: &'a str,
    point: &'a str,
    version: Version,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl<'a> Mount<'a> {
    /// `35 24 0:30 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory`, a line of /proc/self/mountinfo.
    fn parse(line: &'a str) -> Option<Self> {
        let (left, right) = line.split_once(" - ")?;
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let mut right = right.split(' ');
        let (kind, options) = (right.next()?, right.nth(1)?);
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if options.split(',').any(|option| option == "memory") => Version::One,
            _ => return None,
        };
        Some(Self {
            root,
            point,
            version,
        })
    }

    /// The smallest limit from this process's control group up to the mount point.
    fn smallest(&self, memberships: &str) -> Option<MemoryLimit> {
        let top = Path::new(self.point);
        let own = self.directory(memberships)?;
        let ancestors = own.ancestors().take_while(|path| path.starts_with(top));
        ancestors
            .flat_map(|path| self.limits_at(path))
            .min_by_key(|limit| limit.bytes)
    }

    fn limits_at(&self, directory: &Path) -> Vec<MemoryLimit> {
        let value = |name: &str, parse: fn(&str) -> Option<u64>| {
            let source = directory.join(name);
            let bytes = parse(&fs::read_to_string(&source).ok()?)?;
            Some(MemoryLimit { bytes, source })
        };
        // `max` is no number, and no limit.
        let number = |text: &str| text.trim().parse().ok();
        match self.version {
            Version::Two => value("memory.max", number).into_iter().collect(),
            // The second knows of control groups above those that a container sees.
            Version::One => [
                value("memory.limit_in_bytes", number),
                value("memory.stat", hierarchical_limit),
            ]
            .into_iter()
            .flatten()
            .collect(),
        }
    }

    /// This process's control group in the hierarchy. Within a container whose file system shows less than `memberships`
    /// names, what is mounted is the container's own.
    fn directory(&self, memberships: &str) -> Option<PathBuf> {
        // `4:memory:/path`, or `0::/path` in version 2.
        let member = memberships.lines().find_map(|line| {
            let (_, rest) = line.split_once(':')?;
            let (controllers, path) = rest.split_once(':')?;
            let ours = match self.version {
                Version::One => controllers.split(',').any(|name| name == "memory"),
                Version::Two => controllers.is_empty(),
            };
            ours.then_some(path)
        })?;
        let point = Path::new(self.point);
        let below = Path::new(member).strip_prefix(self.root).ok();
        let own = below.map(|below| point.join(below));
        Some(
            own.filter(|own| own.is_dir())
                .unwrap_or_else(|| point.to_owned()),
        )
    }
}

fn hierarchical_limit(stat: &str) -> Option<u64> {
    let line = stat
        .lines()
        .find_map(|line| line.strip_prefix("hierarchical_memory_limit "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that stands for the mount point, with files in it.
    fn hierarchy(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        directory
    }

    fn found(mount: &str, root: &str, point: &Path, memberships: &str) -> Option<(u64, PathBuf)> {
        let line = format!("35 24 0:30 {root} {} rw - {mount}", point.display());
        let found = of_cgroups(&line, memberships).pop()?;
        let source = found.source.strip_prefix(point).unwrap().to_owned();
        Some((found.bytes, source))
    }

    const ONE: &str = "cgroup cgroup rw,memory";
    const TWO: &str = "cgroup2 cgroup2 rw";

    #[test]
    fn the_smallest_limit_on_the_way_up_counts() {
        let directory = hierarchy(&[
            ("memory.max", "max\n"),
            ("pods/memory.max", "1000\n"),
            ("pods/pod/memory.max", "max\n"),
            ("pods/pod/sidecar/memory.max", "3000\n"),
            ("other/memory.max", "5\n"),
        ]);
        let point = directory.path();
        let found = |memberships| found(TWO, "/", point, memberships);
        let pods = Some((1000, "pods/memory.max".into()));
        assert_eq!(found("4:memory:/other\n0::/pods/pod/sidecar\n"), pods);
        assert_eq!(found("0::/\n"), None);
    }

    #[test]
    fn version_1_knows_the_limits_above_the_container() {
        let stat = "cache 1\nhierarchical_memory_limit 700\ntotal_cache 1\n";
        let directory = hierarchy(&[
            ("memory.limit_in_bytes", "9223372036854771712\n"),
            ("memory.stat", stat),
        ]);
        let point = directory.path();
        // With a namespace of control groups, without one, and with a path that cannot be seen from here.
        for (root, path) in [("/", "/"), ("/docker/1", "/docker/1"), ("/x", "/docker/1")] {
            let memberships = format!("4:cpu:/a\n5:memory,x:{path}\n0::/b\n");
            let found = found(ONE, root, point, &memberships);
            assert_eq!(found, Some((700, "memory.stat".into())), "{root}");
        }
        assert_eq!(found("cgroup cgroup rw,cpu", "/", point, "4:cpu:/"), None);
    }

    #[test]
    fn a_container_sees_its_own_limit_at_the_mount_point() {
        let directory = hierarchy(&[("memory.max", "536870912\n")]);
        let found = found(TWO, "/", directory.path(), "0::/\n");
        assert_eq!(found, Some((512 << 20, "memory.max".into())));
    }

    #[test]
    fn a_limit_is_never_more_than_the_machine_has() {
        let limit = MemoryLimit::of_this_process().unwrap();
        let machine = of_machine(&fs::read_to_string("/proc/meminfo").unwrap()).unwrap();
        assert!(limit.bytes > 0 && limit.bytes <= machine.bytes, "{limit:?}");
        assert_eq!(of_machine("MemFree: 1 kB\n"), None);
    }
}
