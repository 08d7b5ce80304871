//! The mounts: the agent's socket directory, read-only, at `<kubelet>/pods/<pod>/volumes/kubernetes.io~csi/<volume>/mount`
//! and nowhere else. No step of the way is a link: nobody who can write anywhere below can lead a mount astray.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, mkdirat, openat2,
        statx, unlinkat,
    },
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount},
};
use thiserror::Error;

use crate::sys::mount;

/// The last part of every target.
const MOUNT: &str = "mount";

#[derive(Debug, Error)]
pub enum VolumeError {
    #[error(
        "{0:?} is no place of a volume: <kubelet>/pods/<pod>/volumes/kubernetes.io~csi/<volume>/mount is"
    )]
    Place(String),
    #[error("there is a symbolic link on the way to {0:?}")]
    Indirect(String),
    #[error("the directory of {0:?} is missing: the kubelet makes it before it asks")]
    Missing(String),
    #[error("something else is mounted at {0:?}")]
    Occupied(String),
    #[error("cannot {action} {target:?}: {source}")]
    Io {
        action: &'static str,
        target: String,
        source: io::Error,
    },
}

/// Volumes of one kubelet's pods.
#[derive(Debug)]
pub struct Volumes {
    /// The agent's socket directory.
    directory: PathBuf,
    /// The directory of the kubelet's pods.
    pods: PathBuf,
}

impl Volumes {
    /// Both directories are made where they are missing.
    pub fn new(directory: &Path, pods: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(directory)?;
        std::fs::create_dir_all(pods)?;
        Ok(Self {
            directory: directory.to_owned(),
            pods: pods.to_owned(),
        })
    }

    /// Mounts; once more changes nothing.
    pub fn publish(&self, target: &str) -> Result<(), VolumeError> {
        let failed = |action: &'static str| failed(action, target);
        let parent = self.parent(target)?;
        let parent = parent.ok_or_else(|| VolumeError::Missing(target.to_owned()))?;
        match mkdirat(&parent, MOUNT, Mode::from_raw_mode(0o750)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(failed("make")(error)),
        }
        let place = step(&parent, MOUNT, target)?;
        let place = place.ok_or_else(|| VolumeError::Missing(target.to_owned()))?;
        if is_mount(&place).map_err(failed("look at"))? {
            return match self.is_ours(&place).map_err(failed("look at"))? {
                true => Ok(()),
                false => Err(VolumeError::Occupied(target.to_owned())),
            };
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(CWD, &self.directory, flags).map_err(failed("copy the mount for"))?;
        // Before anybody can see it.
        mount::make_read_only(&tree).map_err(|source| VolumeError::Io {
            action: "make read-only what is to be mounted at",
            target: target.to_owned(),
            source,
        })?;
        let whole =
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        move_mount(&tree, "", &place, "", whole).map_err(failed("mount at"))
    }

    /// Unmounts and removes the place; what is not there is unpublished already.
    pub fn unpublish(&self, target: &str) -> Result<(), VolumeError> {
        let failed = |action: &'static str| failed(action, target);
        let Some(parent) = self.parent(target)? else {
            return Ok(());
        };
        while let Some(place) = step(&parent, MOUNT, target)? {
            if !is_mount(&place).map_err(failed("look at"))? {
                break;
            }
            if !self.is_ours(&place).map_err(failed("look at"))? {
                return Err(VolumeError::Occupied(target.to_owned()));
            }
            drop(place);
            // The parent by its descriptor: no name on the way is read again.
            let path = format!("/proc/self/fd/{}/{MOUNT}", parent.as_raw_fd());
            unmount(path, UnmountFlags::NOFOLLOW).map_err(failed("unmount"))?;
        }
        match unlinkat(&parent, MOUNT, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(failed("remove")(error)),
        }
    }

    /// The directory in which the target is, opened without following links; `None` if there is none.
    fn parent(&self, target: &str) -> Result<Option<OwnedFd>, VolumeError> {
        let parent = self.place(target)?;
        let pods = File::open(&self.pods).map_err(|source| VolumeError::Io {
            action: "open the directory of the pods for",
            target: target.to_owned(),
            source,
        })?;
        step(&pods, &parent, target)
    }

    /// The directory of the target below that of the pods, if it is one of a volume.
    fn place(&self, target: &str) -> Result<PathBuf, VolumeError> {
        let wrong = || VolumeError::Place(target.to_owned());
        // `Path` would take away dots and doubled slashes.
        if target.contains("//") || target.contains("/./") {
            return Err(wrong());
        }
        let below = Path::new(target)
            .strip_prefix(&self.pods)
            .map_err(|_| wrong())?;
        let parts: Vec<_> = below.components().collect();
        let plain = |part: &Component<'_>| matches!(part, Component::Normal(_));
        let is = |part: &Component<'_>, name: &str| part.as_os_str() == name;
        match parts.as_slice() {
            [pod, volumes, plugin, volume, mount]
                if [pod, volume].into_iter().all(plain)
                    && is(volumes, "volumes")
                    && is(plugin, "kubernetes.io~csi")
                    && is(mount, MOUNT) =>
            {
                Ok(below.parent().unwrap_or(below).to_owned())
            }
            _ => Err(wrong()),
        }
    }

    /// Whether it is our directory that is mounted there.
    fn is_ours(&self, place: &OwnedFd) -> rustix::io::Result<bool> {
        let (there, own) = (
            rustix::fs::fstat(place)?,
            rustix::fs::stat(&self.directory)?,
        );
        Ok((there.st_dev, there.st_ino) == (own.st_dev, own.st_ino))
    }
}

/// Opens a directory below another one; `None` if it is not there.
fn step(
    from: impl AsFd,
    path: impl AsRef<Path>,
    target: &str,
) -> Result<Option<OwnedFd>, VolumeError> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let way = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match openat2(from, path.as_ref(), flags, Mode::empty(), way) {
        Ok(opened) => Ok(Some(opened)),
        Err(Errno::NOENT) => Ok(None),
        Err(Errno::LOOP) => Err(VolumeError::Indirect(target.to_owned())),
        Err(error) => Err(failed("open", target)(error)),
    }
}

/// Whether something is mounted there.
fn is_mount(place: &OwnedFd) -> rustix::io::Result<bool> {
    let known = statx(place, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(known.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn failed(action: &'static str, target: &str) -> impl FnOnce(Errno) -> VolumeError {
    move |error| VolumeError::Io {
        action,
        target: target.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_places_of_volumes_are_taken() {
        let volumes = Volumes {
            directory: "/run/sidecar".into(),
            pods: "/var/lib/kubelet/pods".into(),
        };
        let good = "/var/lib/kubelet/pods/6f0a/volumes/kubernetes.io~csi/agent/mount";
        let parent = Path::new("6f0a/volumes/kubernetes.io~csi/agent");
        assert_eq!(volumes.place(good).unwrap(), parent);
        for bad in [
            "",
            "/",
            "mount",
            "/etc",
            "/var/lib/kubelet/pods",
            "/var/lib/kubelet/pods/6f0a/volumes/kubernetes.io~csi/agent",
            "/var/lib/kubelet/pods/6f0a/volumes/kubernetes.io~csi/agent/mount/deeper",
            "/var/lib/kubelet/pods/6f0a/volumes/kubernetes.io~empty-dir/agent/mount",
            "/var/lib/kubelet/pods/../volumes/kubernetes.io~csi/agent/mount",
            "/var/lib/kubelet/pods/6f0a/volumes/kubernetes.io~csi/../mount",
            "/var/lib/kubelet/pods/6f0a/./volumes/kubernetes.io~csi/agent/mount",
            "/var/lib/kubelet/podsx/6f0a/volumes/kubernetes.io~csi/agent/mount",
            "var/lib/kubelet/pods/6f0a/volumes/kubernetes.io~csi/agent/mount",
        ] {
            assert!(
                matches!(volumes.place(bad), Err(VolumeError::Place(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn links_are_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let pods = directory.path().join("pods");
        let volumes = Volumes::new(&directory.path().join("agent"), &pods).unwrap();
        let inner = pods.join("a/volumes");
        std::fs::create_dir_all(&inner).unwrap();
        std::os::unix::fs::symlink("/etc", inner.join("kubernetes.io~csi")).unwrap();
        let target = inner.join("kubernetes.io~csi/ssl/mount");
        let refused = volumes.publish(target.to_str().unwrap()).unwrap_err();
        assert!(matches!(refused, VolumeError::Indirect(_)), "{refused}");
        let missing = pods.join("b/volumes/kubernetes.io~csi/agent/mount");
        let missing = missing.to_str().unwrap();
        assert!(matches!(
            volumes.publish(missing),
            Err(VolumeError::Missing(_))
        ));
        assert!(volumes.unpublish(missing).is_ok());
    }
}
