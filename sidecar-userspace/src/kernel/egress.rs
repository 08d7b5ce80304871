//! Rules for destinations beyond `connect` of TCP: programs that are attached to a workload while it has rules, so that others
//! pay nothing.
//!
//! Packet sockets (AF_PACKET, AF_XDP) pass by all hooks of a control group. In a network namespace that is not the node's own a
//! program on each interface keeps them from sending. Where that cannot be had (before Linux 6.6, or in the node's own
//! namespace), rules for an application that may open such sockets are refused in words; if one is found later, nothing leaves
//! the workload any more but what its proxy sends.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
    time::Instant,
};

use aya::{
    Ebpf,
    programs::{Program, ProgramError},
};
use sidecar_common::names;
use tracing::warn;

use super::{
    attach::AttachError, features::FAULT_VARIABLE, listening::LOOK_EVERY, load::LoadError,
};
use crate::{
    model::{EgressRule, Steering},
    sys::{
        bpf, capability,
        cgroup::Cgroup,
        netns::{Interfaces, Namespace, within},
    },
};

/// On the application's cgroup.
const PROGRAMS: [(&str, u32); 6] = [
    (names::EGRESS_PACKET, bpf::INET_EGRESS),
    (names::EGRESS_CONNECT4, bpf::INET4_CONNECT),
    (names::EGRESS_CONNECT6, bpf::INET6_CONNECT),
    (names::EGRESS_SENDMSG4, bpf::UDP4_SENDMSG),
    (names::EGRESS_SENDMSG6, bpf::UDP6_SENDMSG),
    (names::EGRESS_SETSOCKOPT, bpf::SETSOCKOPT),
];

/// Pins begin with it.
const PREFIX: &str = "egress";

/// Set to this, the kernel is taken for one that cannot attach to interfaces: for a test, never for use.
const FAULT: (&str, &str) = (FAULT_VARIABLE, "no-interface-links");

/// What is attached for one workload, and where.
#[derive(Default)]
pub struct Egress {
    /// By the names of their pins; `None`: pinned.
    links: BTreeMap<String, Option<OwnedFd>>,
    /// Where they are pinned, if they are.
    pins: Option<PathBuf>,
    /// The interfaces that are looked after, while there are rules; or why packet sockets cannot be kept from sending.
    frames: Option<Result<Frames, String>>,
    /// Nothing leaves the workload any more.
    sealed: bool,
    /// When it was looked last.
    looked: Option<Instant>,
}

/// Keeps packet sockets from sending on every interface of a namespace.
struct Frames {
    interfaces: Interfaces,
    program: OwnedFd,
}

/// Verifies the programs now.
pub fn load_all(bpf: &mut Ebpf) -> Result<(), LoadError> {
    for (name, _) in PROGRAMS {
        load(bpf, name)?;
    }
    load(bpf, names::EGRESS_FRAME).map(drop)
}

impl Egress {
    /// `pins`: where links are pinned, if they are to last; those of a former agent are there.
    pub fn new(pins: Option<&Path>) -> Self {
        let entries = pins.map(|pins| fs::read_dir(pins).into_iter().flatten().flatten());
        let names = entries.into_iter().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let links = names.filter(|name| name.starts_with(PREFIX));
        Self {
            links: links.map(|name| (name, None)).collect(),
            pins: pins.map(Path::to_owned),
            ..Self::default()
        }
    }

    /// To be called before the rules of `steering` are written: what they need is there when they come.
    /// `left_alone`: cgroups below the application's.
    pub fn prepare(
        &mut self,
        bpf: &mut Ebpf,
        application: &Cgroup,
        left_alone: &[Cgroup],
        namespace: impl FnOnce() -> io::Result<Namespace>,
        steering: &Steering,
    ) -> Result<(), AttachError> {
        if steering.outbound_deny.is_empty() {
            return Ok(());
        }
        if self.frames.is_none() {
            let namespace = namespace().map_err(AttachError::Namespace)?;
            self.frames = Some(self.guard(bpf, &namespace)?);
        }
        if let Some(Err(why)) = &self.frames
            && let Some(pid) = may_open_packet_sockets(application, left_alone)
        {
            let why = why.clone();
            return Err(AttachError::PacketSockets { pid, why });
        }
        self.attach(bpf, application)
    }

    /// To be called when the rules of `steering` are written: what nobody needs any more goes.
    pub fn finish(&mut self, steering: &Steering) {
        self.sealed = false;
        if steering.outbound_deny.is_empty() {
            self.frames = None;
            for (name, _) in std::mem::take(&mut self.links) {
                self.unpin(&name);
            }
        }
    }

    /// Why packet sockets of the application are not kept from sending, if so.
    pub fn unguarded(&self) -> Option<&str> {
        self.frames.as_ref()?.as_ref().err().map(String::as_str)
    }

    /// To be called again and again: interfaces come, and processes. `Some`: the rules that hold from now on.
    pub fn look(
        &mut self,
        application: &Cgroup,
        left_alone: &[Cgroup],
        steering: &Steering,
    ) -> Option<Steering> {
        let soon = |looked: Instant| looked.elapsed() < LOOK_EVERY;
        if self.frames.is_none() || self.looked.is_some_and(soon) {
            return None;
        }
        self.looked = Some(Instant::now());
        match &self.frames {
            None => return None,
            Some(Ok(_)) => match self.guard_new() {
                Ok(()) => return None,
                Err(why) => self.frames = Some(Err(why)),
            },
            Some(Err(_)) => {}
        }
        let pid = may_open_packet_sockets(application, left_alone);
        if pid.is_some() == self.sealed {
            return None;
        }
        self.sealed = pid.is_some();
        let workload = &steering.name;
        let Some(pid) = pid else {
            warn!(
                workload,
                "no process may open packet sockets any more: the rules hold again"
            );
            return Some(steering.clone());
        };
        let why = self.unguarded().unwrap_or_default();
        warn!(
            workload,
            pid,
            why,
            "a process of the application may open packet sockets, which would pass outbound.deny: nothing is let out any more. \
             Start it without CAP_NET_RAW"
        );
        Some(sealed(steering))
    }

    fn attach(&mut self, bpf: &mut Ebpf, application: &Cgroup) -> Result<(), AttachError> {
        let directory = application.open_directory()?;
        for (program, kind) in PROGRAMS {
            let name = format!("{PREFIX}-{program}");
            if self.links.contains_key(&name) {
                continue;
            }
            let loaded = load(bpf, program)?;
            let link = bpf::link_to_cgroup(&loaded, &directory, kind);
            let link = link.map_err(|error| AttachError::Attach {
                name: program,
                target: application.path().to_owned(),
                error: ProgramError::IOError(error),
            })?;
            self.keep(name, link)
                .map_err(|source| AttachError::PinProxy {
                    name: program,
                    source,
                })?;
        }
        Ok(())
    }

    /// Begins to look after the interfaces of `namespace`; the inner error says why that cannot be.
    fn guard(
        &mut self,
        bpf: &mut Ebpf,
        namespace: &Namespace,
    ) -> Result<Result<Frames, String>, AttachError> {
        if namespace.is_initial() {
            return Ok(Err("the network namespace is the node's own".to_owned()));
        }
        let frames = Frames {
            interfaces: Interfaces::of(namespace).map_err(AttachError::Namespace)?,
            program: load(bpf, names::EGRESS_FRAME)?,
        };
        // On an interface that there is not: who knows such links says so.
        let tried = match std::env::var(FAULT.0).is_ok_and(|fault| fault == FAULT.1) {
            true => Err(io::ErrorKind::InvalidInput.into()),
            false => bpf::link_to_interface(&frames.program, u32::MAX >> 1, bpf::TCX_EGRESS),
        };
        if tried.is_err_and(|error| error.raw_os_error() != Some(libc::ENODEV)) {
            let why = "this kernel has no links to interfaces (Linux 6.6 has)";
            return Ok(Err(why.to_owned()));
        }
        Ok(match self.guard_all(&frames) {
            Ok(()) => Ok(frames),
            Err(error) => Err(not_attached(&error)),
        })
    }

    fn guard_new(&mut self) -> Result<(), String> {
        let Some(Ok(frames)) = self.frames.take() else {
            return Ok(());
        };
        let guarded = self.guard_all(&frames);
        self.frames = Some(Ok(frames));
        guarded.map_err(|error| not_attached(&error))
    }

    /// Attaches to interfaces that have come, and forgets those that are gone.
    fn guard_all(&mut self, frames: &Frames) -> io::Result<()> {
        let present = frames.interfaces.indices()?;
        let pin = |index: u32| format!("{PREFIX}-{index}-{}", names::EGRESS_FRAME);
        let wanted: BTreeMap<String, u32> = present.into_iter().map(|i| (pin(i), i)).collect();
        let missing = wanted
            .iter()
            .filter(|(name, _)| !self.links.contains_key(*name));
        let missing: Vec<(String, u32)> = missing.map(|(name, i)| (name.clone(), *i)).collect();
        if !missing.is_empty() {
            let program = &frames.program;
            let links = within(&frames.interfaces.namespace()?, || {
                let mut links = Vec::new();
                for (name, index) in missing {
                    match bpf::link_to_interface(program, index, bpf::TCX_EGRESS) {
                        // It went while it was looked at.
                        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => {}
                        link => links.push((name, link?)),
                    }
                }
                Ok(links)
            })?;
            for (name, link) in links {
                self.keep(name, link)?;
            }
        }
        let gone = self
            .links
            .keys()
            .filter(|name| name.ends_with(names::EGRESS_FRAME) && !wanted.contains_key(*name));
        for name in gone.cloned().collect::<Vec<_>>() {
            self.links.remove(&name);
            self.unpin(&name);
        }
        Ok(())
    }

    fn keep(&mut self, name: String, link: OwnedFd) -> io::Result<()> {
        let held = match &self.pins {
            Some(pins) => {
                bpf::pin(&link, &pins.join(&name))?;
                None
            }
            None => Some(link),
        };
        self.links.insert(name, held);
        Ok(())
    }

    fn unpin(&self, name: &str) {
        if let Some(pins) = &self.pins {
            // Not there: nothing to detach.
            let _ = fs::remove_file(pins.join(name));
        }
    }
}

fn not_attached(error: &io::Error) -> String {
    format!("programs cannot be attached to interfaces: {error}")
}

/// The rules where everything is denied that is not loopback. The others keep their places, by which they are named.
fn sealed(steering: &Steering) -> Steering {
    let mut sealed = steering.clone();
    sealed.outbound_deny.push(EgressRule::everything(""));
    sealed.outbound_allow.clear();
    sealed
}

/// A process of the application that may open packet sockets.
fn may_open_packet_sockets(application: &Cgroup, left_alone: &[Cgroup]) -> Option<u32> {
    let mut others: Vec<u32> = left_alone.iter().flat_map(Cgroup::all_processes).collect();
    others.push(std::process::id());
    let mut processes = application.all_processes().into_iter();
    processes.find(|pid| !others.contains(pid) && capability::may_get(*pid, capability::NET_RAW))
}

fn load(bpf: &mut Ebpf, name: &'static str) -> Result<OwnedFd, LoadError> {
    let refused = |error| LoadError::Program { name, error };
    let program = bpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    if program.fd().is_err() {
        let loaded = match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::CgroupSkb(program) => program.load(),
            Program::CgroupSockopt(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => Err(ProgramError::UnexpectedProgramType),
        };
        loaded.map_err(refused)?;
    }
    let fd = program.fd().map_err(refused)?;
    fd.as_fd()
        .try_clone_to_owned()
        .map_err(|error| refused(error.into()))
}
