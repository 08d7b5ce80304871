//! The node's cgroup namespace. Container runtimes give a container one of its own unless it is privileged; an agent knows pods by
//! their paths in the node's.

use std::{
    fs::{self, File},
    io,
    os::{fd::AsFd, unix::fs::MetadataExt},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Moves the calling thread, and those that it starts later, to the cgroup namespace of the node. Only what they see changes: they
/// stay in the cgroups that they are in. Whether there was anything to do.
///
/// # Errors
///
/// Without CAP_SYS_PTRACE or CAP_SYS_ADMIN, where the namespaces differ.
pub fn enter_nodes() -> io::Result<bool> {
    let nodes = nodes()?;
    let id = |found: fs::Metadata| (found.dev(), found.ino());
    if id(nodes.metadata()?) == id(fs::metadata("/proc/thread-self/ns/cgroup")?) {
        return Ok(false);
    }
    move_into_link_name_space(nodes.as_fd(), Some(LinkNameSpaceType::ControlGroup))?;
    Ok(true)
}

/// That of process 1, which is the node's with the node's process namespace (`hostPID`).
fn nodes() -> io::Result<File> {
    File::open("/proc/1/ns/cgroup").or_else(|error| {
        // Some machines let nobody look at their init. The kernel's threads are where the machine began, if that is what 2 is here.
        match fs::read("/proc/2/comm")?.as_slice() {
            b"kthreadd\n" => File::open("/proc/2/ns/cgroup"),
            _ => Err(error),
        }
    })
}
