//! Programs and what they are attached to: cgroups, a network namespace, the node.

use std::{
    collections::BTreeSet,
    fs::File,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockopt, ProgramError,
        SkLookup, SockOps,
        links::{FdLink, PinnedLink},
    },
};
use sidecar_common::names;

use super::{
    attach::AttachError,
    egress,
    load::{LoadError, program},
};
use crate::sys::{
    bpf,
    cgroup::{Cgroup, CgroupError},
    netns::Namespace,
};

/// Attachments of one workload; dropped, they are detached, but for those that are pinned.
#[derive(Default)]
pub struct Links {
    /// What fail rule `closed` needs without a proxy.
    lasting: Vec<(&'static str, FdLink)>,
    pinned: Vec<PinnedLink>,
    /// What only a living proxy needs.
    proxy: Vec<(&'static str, OwnedFd)>,
}

/// A cgroup, opened to be attached to.
struct Target {
    directory: File,
    path: PathBuf,
}

impl Target {
    fn open(cgroup: &Cgroup) -> Result<Self, CgroupError> {
        Ok(Self {
            directory: cgroup.open_directory()?,
            path: cgroup.path().to_owned(),
        })
    }

    fn refused(&self, name: &'static str) -> impl FnOnce(ProgramError) -> AttachError {
        let target = self.path.clone();
        move |error| AttachError::Attach {
            name,
            target,
            error,
        }
    }
}

impl Links {
    /// Attaches for connections of `application` and for `proxy`. Those to the workload: [`Links::attach_lookup`].
    pub fn attach(
        bpf: &mut Ebpf,
        application: &Cgroup,
        proxy: &Cgroup,
    ) -> Result<Self, AttachError> {
        let mut links = Self::default();
        let application_target = Target::open(application)?;
        let proxy_target = Target::open(proxy)?;
        // Programs of a parent run for its children as well.
        let both: &[&Target] = match application.contains(proxy) {
            true => &[&application_target],
            false => &[&application_target, &proxy_target],
        };
        for target in both.iter().copied() {
            let socket = in_cgroup::<CgroupSock>(bpf, names::SOCK_CREATE, target)?;
            links.lasting.push(socket);
            let sockops = in_cgroup::<SockOps>(bpf, names::WORKLOAD_SOCKOPS, target)?;
            links.lasting.push(sockops);
        }
        for name in CONNECT_PROGRAMS {
            // The proxy's own connections are to be known.
            for target in both.iter().copied() {
                let connect = in_cgroup::<CgroupSockAddr>(bpf, name, target)?;
                links.lasting.push(connect);
            }
        }
        for name in NAME_PROGRAMS {
            let address = in_cgroup::<CgroupSockAddr>(bpf, name, &application_target)?;
            links.lasting.push(address);
        }
        links.proxy = for_proxy(bpf, &proxy_target)?;
        Ok(links)
    }

    /// Attaches `lookup_inbound`; `bpf` must have been loaded for this workload and namespace.
    pub fn attach_lookup(
        &mut self,
        bpf: &mut Ebpf,
        namespace: &Namespace,
    ) -> Result<(), AttachError> {
        self.lasting.push(in_namespace(bpf, namespace)?);
        Ok(())
    }

    /// Gives what must outlive the proxy names in `directory`.
    pub fn pin_lasting(&mut self, directory: &Path) -> Result<(), AttachError> {
        for (index, (name, link)) in self.lasting.drain(..).enumerate() {
            let pin = directory.join(format!("{index}-{name}"));
            self.pinned.push(
                link.pin(pin)
                    .map_err(|source| AttachError::Pin { name, source })?,
            );
        }
        Ok(())
    }

    /// Gives what serves the proxy in the cgroup `id` names in `directory`, so that it outlives us.
    pub fn pin_proxy(&mut self, directory: &Path, id: u64) -> Result<(), AttachError> {
        for (name, link) in &self.proxy {
            pin_one(link, name, &directory.join(proxy_pin(id, name)))?;
        }
        Ok(())
    }
}

/// Whether a proxy in the cgroup `id` has all that it needs pinned in `directory`.
pub fn serves_proxy(directory: &Path, id: u64) -> bool {
    PROXY_PROGRAMS
        .iter()
        .all(|(name, _)| directory.join(proxy_pin(id, name)).exists())
}

/// Attaches what a proxy in another cgroup needs, and pins it.
pub fn serve_proxy(bpf: &mut Ebpf, proxy: &Cgroup, directory: &Path) -> Result<(), AttachError> {
    let id = proxy.id()?;
    for (name, link) in for_proxy(bpf, &Target::open(proxy)?)? {
        let pin = directory.join(proxy_pin(id, name));
        // Half of a former attempt.
        let _ = std::fs::remove_file(&pin);
        pin_one(&link, name, &pin)?;
    }
    Ok(())
}

/// Detaches what served a proxy in the cgroup `id`.
pub fn forget_proxy(directory: &Path, id: u64) {
    for (name, _) in PROXY_PROGRAMS {
        // Not there: nothing to detach.
        let _ = std::fs::remove_file(directory.join(proxy_pin(id, name)));
    }
}

/// Has connections of the kubelet in `cgroup` known as its own, and pins that in `directory`.
pub fn watch_probes(bpf: &mut Ebpf, cgroup: &Cgroup, directory: &Path) -> Result<(), AttachError> {
    let id = cgroup.id()?;
    let (name, link) = in_cgroup::<SockOps>(bpf, names::KUBELET_SOCKOPS, &Target::open(cgroup)?)?;
    let pinned = link.pin(probes_pin(directory, id));
    pinned
        .map(drop)
        .map_err(|source| AttachError::Pin { name, source })
}

/// Takes back [`watch_probes`].
pub fn forget_probes(directory: &Path, id: u64) {
    // Not there: that is what is wanted.
    let _ = std::fs::remove_file(probes_pin(directory, id));
}

/// Ids of the cgroups whose connections are known as the kubelet's.
pub fn watched_for_probes(directory: &Path) -> BTreeSet<u64> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let id = |entry: std::fs::DirEntry| {
        let name = entry.file_name();
        let (id, program) = name.to_str()?.strip_prefix("probes-")?.split_once('-')?;
        (program == names::KUBELET_SOCKOPS).then(|| id.parse().ok())?
    };
    entries.filter_map(id).collect()
}

fn probes_pin(directory: &Path, id: u64) -> PathBuf {
    directory.join(format!("probes-{id}-{}", names::KUBELET_SOCKOPS))
}

/// Attaches the tracepoint that sees `splice(2)`, for the whole node.
pub fn watch_splice(bpf: &mut Ebpf) -> Result<FdLink, AttachError> {
    on_tracepoint(bpf, names::TRACE_SPLICE, "tcp_rcv_space_adjust")
}

/// Verifies every program of `bpf` but `lookup_inbound` now, so that attaching does not wait for it.
pub fn load_all(bpf: &mut Ebpf) -> Result<(), LoadError> {
    load_as::<CgroupSock>(bpf, names::SOCK_CREATE)?;
    load_as::<SockOps>(bpf, names::WORKLOAD_SOCKOPS)?;
    load_as::<SockOps>(bpf, names::KUBELET_SOCKOPS)?;
    for name in CONNECT_PROGRAMS.into_iter().chain(NAME_PROGRAMS) {
        load_as::<CgroupSockAddr>(bpf, name)?;
    }
    for (name, _) in PROXY_PROGRAMS {
        load_as::<CgroupSockopt>(bpf, name)?;
    }
    egress::load_all(bpf)
}

/// Attached to the application's and the proxy's cgroup.
const CONNECT_PROGRAMS: [&str; 2] = [names::CGROUP_CONNECT4, names::CGROUP_CONNECT6];

/// Attached to the application's cgroup.
const NAME_PROGRAMS: [&str; 2] = [names::GETPEERNAME4, names::GETPEERNAME6];

const PROXY_PROGRAMS: [(&str, u32); 2] = [
    (names::CGROUP_GETSOCKOPT, bpf::GETSOCKOPT),
    (names::CGROUP_SETSOCKOPT, bpf::SETSOCKOPT),
];

fn proxy_pin(id: u64, name: &str) -> String {
    format!("proxy-{id}-{name}")
}

fn pin_one(link: &OwnedFd, name: &'static str, pin: &Path) -> Result<(), AttachError> {
    bpf::pin(link, pin).map_err(|source| AttachError::PinProxy { name, source })
}

/// A program type that is attached to a cgroup. `Single` because links refuse the flag of `AllowMultiple`;
/// links coexist anyway.
trait CgroupProgram: Sized {
    fn load_once(&mut self) -> Result<(), ProgramError>;
    fn attach_link(&mut self, cgroup: BorrowedFd<'_>) -> Result<FdLink, ProgramError>;
}

macro_rules! cgroup_program {
    ($($type:ty),+) => {$(
        impl CgroupProgram for $type {
            fn load_once(&mut self) -> Result<(), ProgramError> {
                if self.fd().is_ok() { Ok(()) } else { self.load() }
            }

            fn attach_link(&mut self, cgroup: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
                let link = self.attach(cgroup, CgroupAttachMode::Single)?;
                self.take_link(link)?.try_into().map_err(|_| ProgramError::UnexpectedProgramType)
            }
        }
    )+};
}

cgroup_program!(CgroupSock, CgroupSockAddr, SockOps);

/// `cgroup_getsockopt` and its sibling are only loaded this way: aya's links of their type cannot be pinned.
impl CgroupProgram for CgroupSockopt {
    fn load_once(&mut self) -> Result<(), ProgramError> {
        if self.fd().is_ok() {
            Ok(())
        } else {
            self.load()
        }
    }

    fn attach_link(&mut self, _: BorrowedFd<'_>) -> Result<FdLink, ProgramError> {
        Err(ProgramError::UnexpectedProgramType)
    }
}

fn load_as<'a, T>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, LoadError>
where
    T: CgroupProgram,
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program: &mut T = program(bpf, name)?;
    program
        .load_once()
        .map_err(|error| LoadError::Program { name, error })?;
    Ok(program)
}

fn in_cgroup<T>(
    bpf: &mut Ebpf,
    name: &'static str,
    target: &Target,
) -> Result<(&'static str, FdLink), AttachError>
where
    T: CgroupProgram,
    for<'a> &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let link = load_as::<T>(bpf, name)?
        .attach_link(target.directory.as_fd())
        .map_err(target.refused(name))?;
    Ok((name, link))
}

fn for_proxy(bpf: &mut Ebpf, target: &Target) -> Result<Vec<(&'static str, OwnedFd)>, AttachError> {
    let mut links = Vec::new();
    for (name, kind) in PROXY_PROGRAMS {
        let program = load_as::<CgroupSockopt>(bpf, name)?;
        let program = program
            .fd()
            .map_err(|error| LoadError::Program { name, error })?;
        let link = bpf::link_to_cgroup(program, &target.directory, kind)
            .map_err(|error| target.refused(name)(ProgramError::IOError(error)))?;
        links.push((name, link));
    }
    Ok(links)
}

fn in_namespace(
    bpf: &mut Ebpf,
    namespace: &Namespace,
) -> Result<(&'static str, FdLink), AttachError> {
    let name = names::LOOKUP_INBOUND;
    let program: &mut SkLookup = program(bpf, name)?;
    program
        .load()
        .map_err(|error| LoadError::Program { name, error })?;
    let refused = |error| AttachError::Attach {
        name,
        target: PathBuf::from("the network namespace"),
        error,
    };
    let link = program.attach(namespace).map_err(refused)?;
    Ok((name, program.take_link(link).map_err(refused)?.into()))
}

fn on_tracepoint(
    bpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<FdLink, AttachError> {
    let refused = |error| AttachError::Attach {
        name,
        target: PathBuf::from(tracepoint),
        error,
    };
    let btf = aya::Btf::from_sys_fs().map_err(|e| refused(ProgramError::Btf(e)))?;
    let program: &mut BtfTracePoint = program(bpf, name)?;
    program
        .load(tracepoint, &btf)
        .map_err(|error| LoadError::Program { name, error })?;
    let link = program.attach().map_err(refused)?;
    Ok(program.take_link(link).map_err(refused)?.into())
}
