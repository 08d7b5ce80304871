//! Who calls: nothing of it is what the caller says.

use std::{
    fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, pidfd_open},
};
use thiserror::Error;
use tokio::net::UnixStream;

use super::pod::{self, PlaceError, Workloads};
use crate::sys::{
    cgroup::{Cgroup, CgroupError},
    netns::{self, Namespace},
    sockopt,
};

/// The process at the other end of a connection, when it was made.
#[derive(Debug)]
pub struct Caller {
    pub pid: u32,
    pub uid: u32,
    /// The pod's cgroup, and its id.
    pub pod: Cgroup,
    pub pod_id: u64,
    /// Where the sidecar runs, and its id.
    pub proxy: Cgroup,
    pub proxy_id: u64,
    /// Of its network namespace.
    pub namespace: netns::Id,
    /// The pod was recognised as one by its name.
    certain: bool,
    process: OwnedFd,
}

#[derive(Debug, Error)]
pub enum CallerError {
    #[error("the caller cannot be told: {0}")]
    Credentials(io::Error),
    #[error(
        "the caller is in a process namespace that the agent does not see: run the agent in the host's (hostPID)"
    )]
    ForeignProcess,
    #[error("the caller is gone")]
    Gone,
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(
        "the pod is in the node's own network namespace (hostNetwork): steering it would steer the node"
    )]
    HostNetwork,
    #[error(
        "the cgroup {0} has processes of the node's own network namespace: it is no pod. Start the sidecar in a cgroup beside its application's, with nothing else around the two"
    )]
    NotAPod(PathBuf),
}

/// What must not be steered, whoever asks, and what may.
#[derive(Debug)]
pub struct Host {
    mount_point: PathBuf,
    own: Cgroup,
    namespaces: Vec<netns::Id>,
    workloads: Workloads,
}

impl Host {
    /// The node that this process runs on. `workloads`: cgroups that are no pods and are to be treated as such.
    pub fn look(workloads: Workloads) -> Result<Self, CgroupError> {
        let processes = ["/proc/self", "/proc/1"];
        let namespaces = processes
            .iter()
            .filter_map(|p| Namespace::id_of(Path::new(p)).ok());
        Ok(Self {
            mount_point: Cgroup::mount_point()?,
            own: Cgroup::own()?,
            namespaces: namespaces.collect(),
            workloads,
        })
    }

    /// Where cgroup v2 is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// The agent's cgroup.
    pub fn own(&self) -> &Cgroup {
        &self.own
    }

    /// Whether it is the node's own.
    pub fn is_host(&self, namespace: netns::Id) -> bool {
        self.namespaces.contains(&namespace)
    }

    /// Whether a sidecar in it could enrol it.
    pub fn is_workload(&self, cgroup: &Cgroup) -> bool {
        let below = cgroup.path().strip_prefix(&self.mount_point);
        below.is_ok_and(|below| {
            let path = format!("/{}", below.display());
            pod::is_workload(&path, &self.workloads)
        })
    }

    fn cgroup(&self, path: &str) -> Result<(Cgroup, u64), CallerError> {
        let cgroup = Cgroup::at(self.mount_point.join(path.trim_start_matches('/')));
        let id = cgroup.id()?;
        Ok((cgroup, id))
    }
}

impl Caller {
    pub fn of(stream: &UnixStream, host: &Host) -> Result<Self, CallerError> {
        let credentials = stream.peer_cred().map_err(CallerError::Credentials)?;
        let pid = credentials.pid().and_then(Pid::from_raw);
        let pid = pid.ok_or(CallerError::ForeignProcess)?;
        // Before 6.5 a process that came after the caller could have its pid, if it came before this line.
        let process = match sockopt::peer_pidfd(stream) {
            Ok(process) => process,
            Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                pidfd_open(pid, PidfdFlags::empty()).map_err(|_| CallerError::Gone)?
            }
            Err(_) => return Err(CallerError::Gone),
        };
        let directory = Path::new("/proc").join(pid.as_raw_nonzero().to_string());
        let memberships =
            fs::read_to_string(directory.join("cgroup")).map_err(|_| CallerError::Gone)?;
        let namespace = Namespace::id_of(&directory).map_err(|_| CallerError::Gone)?;
        // What was read was the caller's, if it lives still: no other process had its pid meanwhile.
        if !is_alive(process.as_fd()) {
            return Err(CallerError::Gone);
        }
        let path = memberships
            .lines()
            .find_map(|line| line.strip_prefix("0::"));
        let path = path.ok_or(CgroupError::NotAMember)?;
        if host.is_host(namespace) {
            return Err(CallerError::HostNetwork);
        }
        let place = pod::place(path, &host.workloads)?;
        let (pod, pod_id) = host.cgroup(&place.pod)?;
        let (proxy, proxy_id) = host.cgroup(&place.proxy)?;
        if pod.contains(&host.own) {
            return Err(CallerError::NotAPod(pod.path().to_owned()));
        }
        Ok(Self {
            pid: pid.as_raw_nonzero().get().unsigned_abs(),
            uid: credentials.uid(),
            pod,
            pod_id,
            proxy,
            proxy_id,
            namespace,
            certain: place.certain,
            process,
        })
    }

    pub fn is_alive(&self) -> bool {
        is_alive(self.process.as_fd())
    }

    /// Whether what was taken for the pod is more than one: to be asked before it is attached to. Reads all its
    /// processes.
    pub fn check_pod(&self, host: &Host) -> Result<(), CallerError> {
        if self.certain {
            return Ok(());
        }
        let of_the_node = |pid: &u32| {
            let process = Path::new("/proc").join(pid.to_string());
            Namespace::id_of(&process).is_ok_and(|id| host.is_host(id))
        };
        match self.pod.all_processes().iter().any(of_the_node) {
            true => Err(CallerError::NotAPod(self.pod.path().to_owned())),
            false => Ok(()),
        }
    }
}

/// A descriptor of a process is readable once it has ended.
pub fn is_alive(process: BorrowedFd<'_>) -> bool {
    let mut ended = [PollFd::from_borrowed_fd(process, PollFlags::IN)];
    let at_once = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    matches!(poll(&mut ended, Some(&at_once)), Ok(0))
}
