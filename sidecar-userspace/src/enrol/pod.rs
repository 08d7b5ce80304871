//! Which cgroup is the pod's, and which the sidecar's in it: decided from the path alone.
//!
//! ```text
//! /kubepods/burstable/pod<uid>/<container>                                        kubelet, cgroupfs
//! /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod<uid>.slice/…    kubelet, systemd
//! /libpod_parent/<pod>/libpod-<container>                                         podman, cgroupfs
//! /machine.slice/machine-libpod_pod_<pod>.slice/libpod-<container>.scope          podman, systemd
//! /<any>/<workload>/<sidecar>                                                     anything else: the parent
//! ```

use thiserror::Error;

/// Levels that the kernel half searches for a cgroup that it knows.
const MAX_DEPTH: usize = 12;

/// Paths below the mount point, beginning with a slash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub pod: String,
    /// The sidecar's own, with all that is below it.
    pub proxy: String,
    /// The path says that it is a pod. Else the pod is only the sidecar's parent, which may be anything.
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
    #[error("the cgroup {0} is deeper than the {MAX_DEPTH} levels that are looked at")]
    TooDeep(String),
}

/// `path`: as in /proc/PID/cgroup.
pub fn place(path: &str) -> Result<Place, PlaceError> {
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
    let pod = (0..names.len()).find(|index| {
        let above = index.checked_sub(1).and_then(|above| names.get(above));
        names
            .get(*index)
            .is_some_and(|name| is_pod(above.copied(), name))
    });
    match (pod, names.len()) {
        (Some(pod), depth) if pod + 1 == depth => Err(PlaceError::NotApart(path.to_owned())),
        (Some(pod), _) => Ok(Place {
            pod: up_to(pod + 1),
            proxy: up_to(pod + 2),
            certain: true,
        }),
        (None, 0 | 1) => Err(PlaceError::Root(path.to_owned())),
        (None, depth) => Ok(Place {
            pod: up_to(depth - 1),
            proxy: up_to(depth),
            certain: false,
        }),
    }
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

    fn found(path: &str) -> (String, String, bool) {
        let place = place(path).unwrap();
        (place.pod, place.proxy, place.certain)
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
            assert_eq!(found(&path), (pod, container, true), "{path}");
        }
    }

    #[test]
    fn anything_else_is_beside_its_application() {
        let whole = (
            "/my.slice/shop".to_owned(),
            "/my.slice/shop/proxy".to_owned(),
        );
        assert_eq!(found("/my.slice/shop/proxy"), (whole.0, whole.1, false));
        assert_eq!(found("/podium/x").0, "/podium");
    }

    #[test]
    fn what_cannot_be_told_apart_is_refused() {
        let pod = format!("/kubepods/pod{UID}");
        assert_eq!(place(&pod), Err(PlaceError::NotApart(pod.clone())));
        for root in ["/", "/proxy"] {
            assert_eq!(place(root), Err(PlaceError::Root(root.into())));
        }
        let outside = "/../../other";
        assert_eq!(place(outside), Err(PlaceError::Outside(outside.into())));
        let deep = "/a".repeat(13);
        assert_eq!(place(&deep), Err(PlaceError::TooDeep(deep.clone())));
    }
}
