//! Which cgroup is the pod's, and which the sidecar's in it: decided from the path, and from what the operator says of it.
//!
//! ```text
//! /kubepods/burstable/pod<uid>/<container>                                        kubelet, cgroupfs
//! /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/…    kubelet, systemd
//! /libpod_parent/<pod>/libpod-<container>                                         podman, cgroupfs
//! /machine.slice/machine-libpod_pod_<pod>.slice/libpod-<container>.scope          podman, systemd
//! /my.slice/<workload>/<sidecar>                                                  named with --workload-cgroup /my.slice/*
//! ```
//!
//! Nothing else is a pod. The parent of a container may hold containers of everybody, as Docker's `/docker` and nerdctl's
//! `/default` do. Its processes prove nothing: the next container may be started there at any time.

use thiserror::Error;

use crate::model::cgroup::CgroupPattern;

/// Levels that the kernel half searches for a cgroup that it knows.
const MAX_DEPTH: usize = 12;

/// Paths below the mount point, beginning with a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub pod: String,
    /// The sidecar's own, with all that is below it.
    pub proxy: String,
    /// It is called as the kubelet or podman call theirs. Else the operator has named it.
    pub certain: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlaceError {
    #[error(
        "the agent sees the cgroup {0} from inside another cgroup namespace: run the agent in the host's"
    )]
    Outside(String),
    #[error(
        "the sidecar runs in the pod's own cgroup ({0}) and cannot be told from the application: give it a cgroup of its own, as a container has"
    )]
    NotApart(String),
    #[error(
        "the cgroup {0} has no parent but the root, which is the whole node: start the sidecar two levels down, in a cgroup beside the application's"
    )]
    Root(String),
    #[error(
        "nothing says that {parent} is one workload: it is not called as pods are, and may hold other containers beside {path}. \
         If only this sidecar and its application run in it, and ever will, start the agent with --workload-cgroup {parent}"
    )]
    Unknown { path: String, parent: String },
    #[error("the cgroup {0} is deeper than the {MAX_DEPTH} levels that are looked at")]
    TooDeep(String),
}

/// What the operator says of cgroups that are not called as pods are (`--workload-cgroup`): all that is below one of these
/// belongs to one workload.
#[derive(Debug, Clone, Default)]
pub struct Workloads(Vec<CgroupPattern>);

impl Workloads {
    pub fn new(patterns: Vec<CgroupPattern>) -> Self {
        Self(patterns)
    }

    /// A path below the mount point, in which a `*` stands for a part of a name.
    pub fn pattern(text: &str) -> Result<CgroupPattern, String> {
        let below = text.strip_prefix('/').unwrap_or(text);
        CgroupPattern::new(below).ok_or_else(|| {
            "a path below the mount point of cgroup v2, such as /my.slice/*".to_owned()
        })
    }

    fn have(&self, path: &[&str]) -> bool {
        let path: Vec<String> = path.iter().map(|&name| name.to_owned()).collect();
        self.0.iter().any(|pattern| pattern.matches(&path))
    }
}

/// `path`: as in /proc/PID/cgroup.
pub fn place(path: &str, workloads: &Workloads) -> Result<Place, PlaceError> {
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    if names.contains(&"..") {
        return Err(PlaceError::Outside(path.to_owned()));
    }
    if names.len() > MAX_DEPTH {
        return Err(PlaceError::TooDeep(path.to_owned()));
    }
    let up_to = |count: usize| -> String {
        let names = names.iter().take(count);
        names.flat_map(|name| ["/", name]).collect()
    };
    // The outermost: what is below a pod is the pod's, whatever it calls itself.
    let found = (0..names.len()).find_map(|index| {
        let (above, name) = (names.get(..index)?, names.get(index)?);
        if is_pod(above.last().copied(), name) {
            return Some((index + 1, true));
        }
        workloads
            .have(names.get(..=index)?)
            .then_some((index + 1, false))
    });
    match (found, names.len()) {
        (Some((pod, _)), depth) if pod == depth => Err(PlaceError::NotApart(path.to_owned())),
        (Some((pod, certain)), _) => Ok(Place {
            pod: up_to(pod),
            proxy: up_to(pod + 1),
            certain,
        }),
        (None, 0 | 1) => Err(PlaceError::Root(path.to_owned())),
        (None, depth) => Err(PlaceError::Unknown {
            path: path.to_owned(),
            parent: up_to(depth - 1),
        }),
    }
}

/// Whether the cgroup at `path` is one that may be a pod's.
pub fn is_workload(path: &str, workloads: &Workloads) -> bool {
    let inside = format!("{path}/sidecar");
    place(&inside, workloads).is_ok_and(|place| place.pod == path)
}

fn is_pod(parent: Option<&str>, name: &str) -> bool {
    let kubelet = |uid: &str| {
        uid.len() >= 32
            && uid
                .bytes()
                .all(|b| b.is_ascii_hexdigit() || b"-_".contains(&b))
    };
    let cgroupfs = name.strip_prefix("pod").is_some_and(kubelet);
    let systemd = name
        .strip_suffix(".slice")
        .and_then(|name| name.rsplit_once("-pod"))
        .is_some_and(|(before, uid)| before.starts_with("kubepods") && kubelet(uid));
    let podman = parent == Some("libpod_parent")
        || (name.starts_with("machine-libpod_pod_") && name.ends_with(".slice"));
    cgroupfs || systemd || podman
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "6f0a3d2c-0b1e-4a52-9a56-5d5a1a0f7e11";

    fn named(patterns: &[&str]) -> Workloads {
        let patterns = patterns.iter().map(|text| Workloads::pattern(text));
        Workloads::new(patterns.collect::<Result<_, _>>().unwrap())
    }

    fn found(path: &str, patterns: &[&str]) -> (String, String, bool) {
        let place = place(path, &named(patterns)).unwrap();
        (place.pod, place.proxy, place.certain)
    }

    fn refused(path: &str, patterns: &[&str]) -> PlaceError {
        place(path, &named(patterns)).unwrap_err()
    }

    #[test]
    fn pods_are_known_by_their_names() {
        let underscored = UID.replace('-', "_");
        for (pod, rest) in [
            (format!("/kubepods/burstable/pod{UID}"), ""),
            (format!("/kubepods/pod{UID}"), "/deeper"),
            (
                format!(
                    "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underscored}.slice"
                ),
                "/container",
            ),
            ("/libpod_parent/0123abc".to_owned(), ""),
            (
                "/machine.slice/machine-libpod_pod_0123.slice".to_owned(),
                "",
            ),
            // One that pretends to be a pod within its own.
            (format!("/kubepods/pod{UID}"), &format!("/pod{UID}/x")),
        ] {
            let container = format!("{pod}/cri-1");
            let path = format!("{container}{rest}");
            assert!(is_workload(&pod, &Workloads::default()), "{pod}");
            assert_eq!(found(&path, &[]), (pod, container, true), "{path}");
        }
    }

    #[test]
    fn flat_layouts_have_no_pods() {
        for path in [
            "/docker/0123abc",
            "/default/0123abc",
            "/system.slice/docker-0123abc.scope",
            "/machine.slice/libpod-0123abc.scope",
            "/my.slice/shop/proxy",
            "/podium/x",
            // Docker's, with a cgroup of the container's own making in it.
            "/docker/0123abc/mine",
        ] {
            let parent = path.rsplit_once('/').unwrap().0;
            let error = refused(path, &[]);
            assert_eq!(
                error,
                PlaceError::Unknown {
                    path: path.to_owned(),
                    parent: parent.to_owned()
                }
            );
            // It says what to do, and that does it.
            let advice = format!("--workload-cgroup {parent}");
            assert!(error.to_string().ends_with(&advice), "{error}");
            assert_eq!(
                found(path, &[parent]),
                (parent.to_owned(), path.to_owned(), false)
            );
        }
    }

    #[test]
    fn what_the_operator_names_is_a_workload() {
        let whole = (
            "/my.slice/shop".to_owned(),
            "/my.slice/shop/proxy".to_owned(),
            false,
        );
        for patterns in [&["/my.slice/*"][..], &["other", "my.slice/shop"]] {
            assert_eq!(found("/my.slice/shop/proxy", patterns), whole);
            // What is below it is its own, whatever it calls itself.
            let deeper = "/my.slice/shop/proxy/my.slice/shop/x";
            assert_eq!(found(deeper, patterns), whole);
            assert!(is_workload("/my.slice/shop", &named(patterns)));
            assert!(!is_workload("/my.slice", &named(patterns)));
            assert!(!is_workload("/my.slice/shop/proxy", &named(patterns)));
        }
        let itself = "/my.slice/shop".to_owned();
        assert_eq!(
            refused(&itself, &["/my.slice/*"]),
            PlaceError::NotApart(itself)
        );
        for bad in ["", "/", "//a", "/a/../b", "/a/"] {
            assert!(Workloads::pattern(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let pod = format!("/kubepods/pod{UID}");
        assert_eq!(refused(&pod, &[]), PlaceError::NotApart(pod.clone()));
        for root in ["/", "/proxy"] {
            assert_eq!(refused(root, &["/a"]), PlaceError::Root(root.into()));
        }
        let outside = "/../../other";
        assert_eq!(refused(outside, &[]), PlaceError::Outside(outside.into()));
        let deep = "/a".repeat(13);
        assert_eq!(refused(&deep, &[]), PlaceError::TooDeep(deep.clone()));
    }
}
