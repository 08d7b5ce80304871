//! One workload's enrolment: its programs attached to its cgroups and its network namespace, its rules in the
//! maps, from the time before its proxy listens until it leaves.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, BorrowedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{
        BtfTracePoint, CgroupAttachMode, CgroupSock, CgroupSockAddr, CgroupSockopt, ProgramError,
        SkLookup, SockOps,
        cgroup_sockopt::CgroupSockoptLink,
        links::{FdLink, PinnedLink},
    },
};
use aya_log::EbpfLogger;
use sidecar_common::{
    names,
    record::Counter,
    settings::{
        Cgroup as CgroupEntry, ROLE_APPLICATION, ROLE_PROXY, WORKLOAD_PROXY_SPLICES,
        WORKLOAD_REDIRECT, WORKLOAD_SPLICES, Workload,
    },
};
use thiserror::Error;
use tracing::{info, warn};

use super::{
    adopt,
    events::KernelLog,
    exclusion, features,
    load::{self, LoadError, OBJECT, program},
    pins::{PinError, Pins, WorkloadPins},
    selftest::{self, Finding, Observer},
    tables::{Tables, workload_entry},
};
use crate::{
    model::{FailRule, Snapshot},
    sys::{
        cgroup::{Cgroup, CgroupError},
        sockopt,
    },
};

#[derive(Debug, Error)]
pub enum AttachError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("cannot attach {name} to {target}: {source}")]
    Attach {
        name: &'static str,
        target: PathBuf,
        source: ProgramError,
    },
    #[error("cannot pin the link of {name}: {source}")]
    Pin {
        name: &'static str,
        source: aya::pin::PinError,
    },
    #[error("cannot tell the network namespace: {0}")]
    Namespace(io::Error),
}

/// Attachments of one workload; dropped, they are detached, but for those that are pinned.
#[derive(Default)]
struct Links {
    /// What fail rule `closed` needs without a proxy.
    lasting: Vec<(&'static str, FdLink)>,
    pinned: Vec<PinnedLink>,
    /// What only a living proxy needs.
    proxy: Vec<CgroupSockoptLink>,
    /// The tracepoint, while redirect is on.
    node: Option<FdLink>,
}

/// A workload whose programs are attached. Dropping it leaves what fail rule `closed` wants to be left; call
/// [`Enrolment::leave`] to end it.
pub struct Enrolment {
    base: PathBuf,
    pins: WorkloadPins,
    tables: Tables,
    links: Links,
    netns: u64,
    /// Why nothing is redirected, if so.
    no_redirect: Option<String>,
    events: Option<RingBuf<MapData>>,
    /// With `--log debug`.
    log: Option<KernelLog>,
}

/// Who is enrolled.
pub struct Subject<'a> {
    pub name: &'a str,
    /// The application's.
    pub application: &'a Cgroup,
    /// Where the proxy runs; not the application's, but possibly below it.
    pub proxy: &'a Cgroup,
    pub snapshot: &'a Snapshot,
}

impl Enrolment {
    /// Loads and attaches for the network namespace of the calling thread. Nothing is steered before
    /// [`Enrolment::steer`]. `base`: the pin directory.
    pub fn begin(base: &Path, subject: &Subject<'_>) -> Result<Self, AttachError> {
        let shared = Pins::open(base, OBJECT)?;
        let swept = sweep(&shared)?;
        let pins = shared.claim(subject.name)?;
        let directory = pins.directory.clone();
        Self::attach(base, &shared, pins, &swept, subject).inspect_err(|_| {
            // A failed start leaves nothing; the error says more than a failure to clean up would.
            let _ = shared.remove(&directory);
            let _ = shared.remove_if_unused();
        })
    }

    /// `swept`: slots whose entries in the maps are leftovers.
    fn attach(
        base: &Path,
        shared: &Pins,
        pins: WorkloadPins,
        swept: &[u32],
        subject: &Subject<'_>,
    ) -> Result<Self, AttachError> {
        let (tunables, mut no_redirect) = match features::tunables() {
            Ok(tunables) => (tunables, None),
            Err(error) => (features::steering_only(), Some(error.to_string())),
        };
        let netns = sockopt::netns_cookie().map_err(AttachError::Namespace)?;
        let slot = pins.slot;
        let mut bpf = load::load(shared, &tunables, slot, netns)?;
        if no_redirect.is_none()
            && let Err(error) = load::attach_relay(&mut bpf, shared)
        {
            no_redirect = Some(error.to_string());
        }
        // Before anything is attached: nothing may be steered by what a former sidecar said.
        let mut tables = Tables::take(&mut bpf)?;
        swept
            .iter()
            .chain([&slot])
            .for_each(|slot| tables.clear(*slot));
        let proxy = CgroupEntry {
            workload: slot,
            role: ROLE_PROXY,
        };
        tables.set_cgroup(subject.proxy.id()?, proxy)?;
        let mut links = attach_all(&mut bpf, subject, no_redirect.is_none())?;
        if subject.snapshot.fail_rule == FailRule::Closed {
            links.pin(&pins.directory)?;
        }
        let events = bpf
            .take_map(names::EVENTS)
            .and_then(|map| map.try_into().ok());
        let wants_log = tracing::enabled!(tracing::Level::DEBUG);
        let log = wants_log.then(|| EbpfLogger::init(&mut bpf).ok()).flatten();
        let base = base.to_owned();
        Ok(Self {
            base,
            pins,
            tables,
            links,
            netns,
            no_redirect,
            events,
            log,
        })
    }

    pub fn slot(&self) -> u32 {
        self.pins.slot
    }

    /// Why nothing will be redirected, if so.
    pub fn no_redirect(&self) -> Option<&str> {
        self.no_redirect.as_deref()
    }

    /// Switches redirect off for the workload, and says why.
    pub fn refuse_redirect(&mut self, why: String) {
        warn!(reason = %why, "redirect is off: connections are steered, their bytes take TCP");
        self.no_redirect = Some(why);
    }

    /// Tries redirect on real sockets; it stays off unless every part holds. Call it inside the proxy's cgroup.
    pub fn self_test(&mut self, snapshot: &Snapshot) -> Result<Vec<Finding>, AttachError> {
        if self.no_redirect.is_some() {
            return Ok(Vec::new());
        }
        let slot = self.pins.slot;
        let entry = workload_entry(snapshot, self.netns, 0, true);
        self.tables.set_workload(
            slot,
            Workload {
                flags: entry.flags | WORKLOAD_REDIRECT,
                ..entry
            },
        )?;
        let findings = selftest::run(self, snapshot.redirect.credit_bytes);
        let failed = findings
            .iter()
            .find_map(|f| Some((f.name, f.failure.as_ref()?)));
        if let Some((name, failure)) = failed {
            let failure = format!("self-test {name}: {failure}");
            // The fault switch wants the fault.
            match features::fault() != 0 {
                true => warn!(%failure, "redirect stays on: {} says so", features::FAULT_VARIABLE),
                false => self.refuse_redirect(failure),
            }
        }
        self.tables.set_workload(slot, Workload::default())?;
        self.tables.reset_counts(slot);
        Ok(findings)
    }

    /// From now on new connections of the application go to `outbound_port` on loopback, and those to it to
    /// `inbound`. What a former sidecar of this workload left is taken over, without a gap.
    pub fn steer(
        &mut self,
        subject: &Subject<'_>,
        outbound_port: u16,
        inbound: BorrowedFd<'_>,
    ) -> Result<(), AttachError> {
        let slot = self.pins.slot;
        self.tables.set_listener(slot, &inbound)?;
        self.tables.set_rules(slot, subject.snapshot)?;
        let entry = workload_entry(
            subject.snapshot,
            self.netns,
            outbound_port,
            self.no_redirect.is_none(),
        );
        self.tables.set_workload(slot, entry)?;
        // Before their workload is, so that none of their connections is steered.
        let patterns = &subject.snapshot.workload.exclude_cgroups;
        let excluded = exclusion::apply(&mut self.tables, slot, subject.application, patterns)?;
        let application = CgroupEntry {
            workload: slot,
            role: ROLE_APPLICATION,
        };
        self.tables
            .set_cgroup(subject.application.id()?, application)?;
        adopt::adopt(
            &mut self.tables,
            subject.application,
            &excluded,
            slot,
            self.netns,
        )?;
        self.take_over(subject.name)
    }

    /// Follows a new configuration.
    pub fn reload(&mut self, snapshot: &Snapshot) -> Result<(), AttachError> {
        let slot = self.pins.slot;
        self.tables.set_rules(slot, snapshot)?;
        let old = self.tables.workload(slot)?;
        let mut new = workload_entry(
            snapshot,
            self.netns,
            old.outbound_port,
            self.no_redirect.is_none(),
        );
        // Learned by the kernel half, not configured.
        new.flags |= old.flags & (WORKLOAD_SPLICES | WORKLOAD_PROXY_SPLICES);
        Ok(self.tables.set_workload(slot, new)?)
    }

    /// What the kernel half counted.
    pub fn counts(&self) -> Result<Vec<(Counter, u64)>, AttachError> {
        Ok(self.tables.counts(self.pins.slot)?)
    }

    /// Handles of the shared maps for another owner.
    pub fn open_tables(&self) -> Result<Tables, AttachError> {
        let shared = self.pins.directory.parent().and_then(Path::parent);
        Ok(Tables::open(shared.unwrap_or(&self.base))?)
    }

    /// The ring buffer, once.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// The programs' log, once.
    pub fn take_log(&mut self) -> Option<KernelLog> {
        self.log.take()
    }

    /// Detaches everything and forgets the workload; the last one removes what was shared.
    pub fn leave(mut self) -> Result<(), AttachError> {
        let shared = self.lock()?;
        self.tables
            .set_workload(self.pins.slot, Workload::default())?;
        // Pins go with the directory.
        drop(self.links);
        shared.remove(&self.pins.directory)?;
        self.tables.clear(self.pins.slot);
        drop(self.tables);
        shared.remove_if_unused()?;
        Ok(())
    }

    fn lock(&self) -> Result<Pins, AttachError> {
        Ok(Pins::open(&self.base, OBJECT)?)
    }

    /// Removes the directories of dead sidecars with our name, of every version: their links go with them.
    fn take_over(&mut self, name: &str) -> Result<(), AttachError> {
        for directory in Pins::versions(&self.base) {
            let same_version = self.pins.directory.starts_with(&directory);
            let shared = Pins::lock(directory)?;
            for left in shared
                .workloads()?
                .into_iter()
                .filter(|left| left.name == name && !left.alive)
            {
                info!(
                    workload = name,
                    slot = left.slot,
                    "taking over from a sidecar that is gone"
                );
                shared.remove(&left.directory)?;
                if same_version && left.slot != self.pins.slot {
                    self.tables.clear(left.slot);
                }
            }
            shared.remove_if_unused()?;
        }
        Ok(())
    }
}

impl Observer for Enrolment {
    fn redirected(&mut self) -> Result<u64, String> {
        let counts = self.counts().map_err(|e| e.to_string())?;
        Ok(counts
            .iter()
            .find(|(counter, _)| *counter == Counter::Redirected)
            .map_or(0, |(_, n)| *n))
    }

    fn take_splice(&mut self) -> Result<bool, String> {
        let slot = self.pins.slot;
        let workload = self.tables.workload(slot).map_err(|e| e.to_string())?;
        let cleared = Workload {
            flags: workload.flags & !WORKLOAD_PROXY_SPLICES,
            ..workload
        };
        self.tables
            .set_workload(slot, cleared)
            .map_err(|e| e.to_string())?;
        Ok(workload.flags & WORKLOAD_PROXY_SPLICES != 0)
    }
}

/// Removes what dead sidecars left with nothing attached, and returns their slots. Links that refuse on behalf of
/// a dead proxy stay: that is the workload's rule.
fn sweep(shared: &Pins) -> Result<Vec<u32>, PinError> {
    let mut swept = Vec::new();
    for left in shared.workloads()?.into_iter().filter(|left| !left.alive) {
        let has_links =
            fs::read_dir(&left.directory).is_ok_and(|mut entries| entries.next().is_some());
        if !has_links {
            shared.remove(&left.directory)?;
            swept.push(left.slot);
        }
    }
    Ok(swept)
}

impl Links {
    fn pin(&mut self, directory: &Path) -> Result<(), AttachError> {
        for (index, (name, link)) in self.lasting.drain(..).enumerate() {
            let pin = directory.join(format!("{index}-{name}"));
            self.pinned.push(
                link.pin(pin)
                    .map_err(|source| AttachError::Pin { name, source })?,
            );
        }
        Ok(())
    }
}

fn attach_all(bpf: &mut Ebpf, subject: &Subject<'_>, redirect: bool) -> Result<Links, AttachError> {
    let mut links = Links::default();
    let application = (
        subject.application.open_directory()?,
        subject.application.path().to_owned(),
    );
    let proxy = (
        subject.proxy.open_directory()?,
        subject.proxy.path().to_owned(),
    );
    // Programs of a parent run for its children as well.
    let nested = subject.application.contains(subject.proxy);
    let both: &[&(File, PathBuf)] = if nested {
        &[&application]
    } else {
        &[&application, &proxy]
    };

    for (cgroup, path) in both.iter().copied() {
        links.lasting.push(in_cgroup::<CgroupSock>(
            bpf,
            names::ACCEPT_SOCKET,
            cgroup,
            path,
        )?);
        links.lasting.push(in_cgroup::<SockOps>(
            bpf,
            names::RELAY_SOCKOPS,
            cgroup,
            path,
        )?);
    }
    for name in [
        names::ACCEPT_CONNECT4,
        names::ACCEPT_CONNECT6,
        names::ORIGIN_PEERNAME4,
        names::ORIGIN_PEERNAME6,
    ] {
        links.lasting.push(in_cgroup::<CgroupSockAddr>(
            bpf,
            name,
            &application.0,
            &application.1,
        )?);
    }
    for name in [names::ORIGIN_GETSOCKOPT, names::ORIGIN_SETSOCKOPT] {
        links
            .proxy
            .push(for_options(bpf, name, &proxy.0, &proxy.1)?);
    }
    links.lasting.push(in_namespace(bpf)?);
    if redirect {
        links.node = Some(on_tracepoint(bpf, names::RECORD_SPLICE, "sys_enter")?);
    }
    Ok(links)
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

fn in_cgroup<T>(
    bpf: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    path: &Path,
) -> Result<(&'static str, FdLink), AttachError>
where
    T: CgroupProgram,
    for<'a> &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let program: &mut T = program(bpf, name)?;
    program
        .load_once()
        .map_err(|source| LoadError::Program { name, source })?;
    let link = program
        .attach_link(cgroup.as_fd())
        .map_err(|source| AttachError::Attach {
            name,
            target: path.to_owned(),
            source,
        })?;
    Ok((name, link))
}

/// aya cannot pin links of this type; they need not outlive the proxy.
fn for_options(
    bpf: &mut Ebpf,
    name: &'static str,
    cgroup: &File,
    path: &Path,
) -> Result<CgroupSockoptLink, AttachError> {
    let program: &mut CgroupSockopt = program(bpf, name)?;
    program
        .load()
        .map_err(|source| LoadError::Program { name, source })?;
    let refused = |source| AttachError::Attach {
        name,
        target: path.to_owned(),
        source,
    };
    let link = program
        .attach(cgroup, CgroupAttachMode::Single)
        .map_err(refused)?;
    program.take_link(link).map_err(refused)
}

fn in_namespace(bpf: &mut Ebpf) -> Result<(&'static str, FdLink), AttachError> {
    let name = names::ACCEPT_LOOKUP;
    let target = PathBuf::from("/proc/self/ns/net");
    let namespace = File::open(&target).map_err(AttachError::Namespace)?;
    let program: &mut SkLookup = program(bpf, name)?;
    program
        .load()
        .map_err(|source| LoadError::Program { name, source })?;
    let refused = |source| AttachError::Attach {
        name,
        target: target.clone(),
        source,
    };
    let link = program.attach(&namespace).map_err(refused)?;
    Ok((name, program.take_link(link).map_err(refused)?.into()))
}

fn on_tracepoint(
    bpf: &mut Ebpf,
    name: &'static str,
    tracepoint: &'static str,
) -> Result<FdLink, AttachError> {
    let refused = |source| AttachError::Attach {
        name,
        target: PathBuf::from(tracepoint),
        source,
    };
    let btf = aya::Btf::from_sys_fs().map_err(|e| refused(ProgramError::Btf(e)))?;
    let program: &mut BtfTracePoint = program(bpf, name)?;
    program
        .load(tracepoint, &btf)
        .map_err(|source| LoadError::Program { name, source })?;
    let link = program.attach().map_err(refused)?;
    Ok(program.take_link(link).map_err(refused)?.into())
}
