//! Sockets that listened before their workload was enrolled: hooks that mark new sockets have missed them.

use std::{
    fs,
    net::TcpListener,
    os::fd::{BorrowedFd, OwnedFd},
    path::Path,
};

use rustix::{
    net::sockopt::{socket_acceptconn, socket_protocol},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};
use sidecar_common::socket_state::SocketState;
use tracing::{debug, info, warn};

use super::{
    held::{self, Budget},
    load::LoadError,
    tables::Tables,
};
use crate::sys::{cgroup::Cgroup, netns::Namespace};

/// Marks the listening TCP sockets of the processes in `application` and below as those of the workload in
/// a slot, of an enrolment. Processes of another network namespace than `namespace` are not served by this sidecar and left alone.
/// `excluded`: cgroups below it whose processes are left alone, too; the proxy's is one.
pub fn adopt(
    tables: &mut Tables,
    application: &Cgroup,
    excluded: &[Cgroup],
    (slot, enrolment): (u32, u64),
    namespace: &Namespace,
) -> Result<(), LoadError> {
    let Ok(home) = namespace.id() else {
        return Ok(());
    };
    // The proxy may run below the application's cgroup.
    let left_alone: Vec<u32> = excluded.iter().flat_map(Cgroup::all_processes).collect();
    let others = |pid: &u32| *pid != std::process::id() && !left_alone.contains(pid);
    let mut budget = Budget::default();
    for pid in application.all_processes().into_iter().filter(others) {
        let process = held::directory(pid);
        if Namespace::id_of(&process).ok() != Some(home) {
            debug!(pid, "in another network namespace: not adopted");
            continue;
        }
        for (port, socket) in listening_sockets(pid, &process, &mut budget) {
            let adopted = tables.adopt_socket(
                &socket,
                SocketState {
                    workload: slot,
                    enrolment,
                    flags: nonblocking(&socket),
                    ..SocketState::default()
                },
            );
            match adopted {
                Ok(()) => info!(pid, port, "adopted a listening socket"),
                // The application may have used up the memory that the kernel allows its socket: no reason to leave the
                // whole workload without a sidecar.
                Err(error) => {
                    warn!(pid, port, %error, "a listening socket cannot be marked: its application sees the sidecar's address")
                }
            }
        }
        if budget.is_spent() {
            warn!(
                pid,
                "too many descriptors to look at: older listeners of the workload may show the sidecar's address as their client's"
            );
            break;
        }
    }
    Ok(())
}

/// Marks listening sockets as the proxy's, whatever they were taken for.
pub fn mark_proxy(
    tables: &mut Tables,
    listeners: &[BorrowedFd<'_>],
    (slot, enrolment): (u32, u64),
) -> Result<(), LoadError> {
    for listener in listeners {
        let state = SocketState {
            workload: slot,
            enrolment,
            flags: SocketState::PROXY,
            ..SocketState::default()
        };
        tables.adopt_socket(listener, state)?;
    }
    Ok(())
}

fn nonblocking(socket: &TcpListener) -> u32 {
    match rustix::fs::fcntl_getfl(socket) {
        Ok(flags) if flags.contains(rustix::fs::OFlags::NONBLOCK) => SocketState::NONBLOCKING,
        _ => 0,
    }
}

/// The TCP sockets on which a process listens, with their ports. `process`: its directory in /proc.
pub fn listening_sockets(pid: u32, process: &Path, budget: &mut Budget) -> Vec<(u16, TcpListener)> {
    let descriptors = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten()
        .take_while(|_| budget.spend().is_some());
    let sockets = descriptors.filter(|entry| {
        fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    });
    sockets
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter_map(|fd| borrow_descriptor(pid, fd))
        .filter(|socket| {
            socket_acceptconn(socket) == Ok(true)
                && socket_protocol(socket).is_ok_and(|p| p == Some(rustix::net::ipproto::TCP))
        })
        .filter_map(|socket| {
            let listener = TcpListener::from(socket);
            Some((listener.local_addr().ok()?.port(), listener))
        })
        .collect()
}

/// A descriptor of our own for another process's.
fn borrow_descriptor(pid: u32, fd: i32) -> Option<OwnedFd> {
    let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
    let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
    pidfd_getfd(process, fd, PidfdGetfdFlags::empty()).ok()
}
