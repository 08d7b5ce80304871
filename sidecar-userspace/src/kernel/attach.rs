//! The enrolment of a workload whose sidecar attaches for itself (`sidecar run`, `sidecar check`): an object of its own,
//! loaded for one workload, and that workload attached, from the time before its proxy listens until it leaves.

use std::{
    fs, io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
    programs::{ProgramError, links::FdLink},
};
use aya_log::EbpfLogger;
use sidecar_common::{
    names,
    record::{Counter, Event},
    settings::{WORKLOAD_PROXY_SPLICES, Workload},
    socket_state::SocketState,
};
use thiserror::Error;
use tracing::warn;

use super::{
    events::KernelLog,
    features,
    layout::Layout,
    links,
    load::{self, LoadError, Loader},
    pins::{PinError, Pins, WorkloadPins},
    proof::{Finding, Proof, Reach},
    selftest::{self, Observer},
    tables::{Tables, rules::workload_entry},
    upgrade::UpgradeError,
    workload::{Attached, Lasting, Listening, Programs, Subject, take_over},
};
use crate::{
    model::{EgressRule, FailRule, Level, Steering},
    sys::{
        cgroup::{Cgroup, CgroupError},
        diag,
        netns::Namespace,
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
    #[error("cannot attach {name} to {target}: {}", load::brief(error))]
    Attach {
        name: &'static str,
        target: PathBuf,
        error: ProgramError,
    },
    #[error("cannot pin the link of {name}: {source}")]
    Pin {
        name: &'static str,
        source: aya::pin::PinError,
    },
    #[error("cannot pin the link of {name}: {source}")]
    PinProxy {
        name: &'static str,
        source: io::Error,
    },
    #[error(
        "the pod is attached with an object of another ABI, whose rules cannot be changed: they are when its sidecar starts anew"
    )]
    OtherLayout,
    #[error(transparent)]
    Upgrade(#[from] UpgradeError),
    #[error("cannot tell the network namespace: {0}")]
    Namespace(io::Error),
    #[error(
        "outbound.deny cannot be enforced: process {pid} of the application may open packet sockets, which nothing here stops ({why}). \
         Start the application without CAP_NET_RAW"
    )]
    PacketSockets { pid: u32, why: String },
}

/// A workload that is enrolled by its own sidecar. Dropping it leaves what fail rule `closed` wants to be left; call
/// [`Enrolment::leave`] to end it.
pub struct Enrolment {
    base: PathBuf,
    attached: Attached,
    tables: Tables,
    /// What is not attached yet may be when rules come.
    bpf: Ebpf,
    application: Cgroup,
    /// The tracepoint, while redirect is on.
    node: Option<FdLink>,
    /// How far redirect goes.
    reach: Reach,
    events: Option<RingBuf<MapData>>,
    /// With `--log debug`.
    log: Option<KernelLog>,
}

impl Enrolment {
    /// Loads and attaches for the subject. Nothing is steered before [`Enrolment::steer`]. `base`: the pin directory.
    pub fn begin(base: &Path, subject: &Subject<'_>) -> Result<Self, AttachError> {
        let shared = Pins::open(base, Layout::own()?)?;
        let swept = sweep(&shared)?;
        let pins = shared.claim(&subject.steering.name)?;
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
        let (constants, mut reach) = features::best();
        let mut bpf = Loader::new(shared, &constants, None)?.load(pins.slot)?;
        if !reach.is_off()
            && let Err(error) = load::attach_relay(&mut bpf, shared, shared.is_only(&pins)?)
        {
            reach = Reach::off(Proof::Programs, error.to_string());
        }
        let mut tables = Tables::take(&mut bpf)?;
        swept.iter().for_each(|slot| tables.clear(*slot));
        let programs = Programs {
            shared: &mut bpf,
            lookup: None,
        };
        let lasting = match subject.steering.fail_rule {
            FailRule::Closed => Lasting::Refusal,
            FailRule::Open => Lasting::Nothing,
        };
        let attached = Attached::attach(programs, &mut tables, pins, subject, lasting)?;
        let node = match reach.is_off() {
            false => links::watch_splice(&mut bpf)
                .map_err(|error| reach = Reach::off(Proof::Programs, error.to_string()))
                .ok(),
            true => None,
        };
        let events = bpf
            .take_map(names::EVENTS)
            .and_then(|map| map.try_into().ok());
        let wants_log = tracing::enabled!(tracing::Level::DEBUG);
        let log = wants_log.then(|| EbpfLogger::init(&mut bpf).ok()).flatten();
        let base = base.to_owned();
        Ok(Self {
            base,
            attached,
            tables,
            bpf,
            application: subject.application.clone(),
            node,
            reach,
            events,
            log,
        })
    }

    pub fn slot(&self) -> u32 {
        self.attached.slot()
    }

    /// Whose its entries in the shared maps are: slot and enrolment.
    pub fn identity(&self) -> (u32, u64) {
        (self.attached.slot(), self.attached.enrolment())
    }

    /// How far redirect goes.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// Tries redirect on real sockets; it goes as far as the parts held. Call it inside the proxy's cgroup.
    pub fn self_test(&mut self, steering: &Steering) -> Result<Vec<Finding>, AttachError> {
        if self.reach.is_off() {
            return Ok(Vec::new());
        }
        let slot = self.slot();
        let test = Steering {
            redirect: Default::default(),
            ..steering.clone()
        };
        let entry = workload_entry(
            &test,
            self.attached.enrolment(),
            self.attached.netns(),
            0,
            &self.reach,
            false,
        );
        self.tables.set_workload(slot, entry)?;
        let findings = selftest::run(self, entry.credit_bytes);
        // What the programs have told of it is nobody's business.
        while self
            .events
            .as_mut()
            .is_some_and(|events| events.next().is_some())
        {}
        let reach = Reach::proven(&findings);
        // The fault switch wants the fault.
        match features::fault() != 0 {
            true => {
                warn!(%reach, "redirect goes on beyond that: {} says so", features::FAULT_VARIABLE);
            }
            false => {
                if reach.limit.is_some() {
                    warn!(%reach, "redirect goes no further than this kernel has shown to be safe: other messages take TCP");
                }
                self.reach = reach;
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
        let Self {
            attached,
            tables,
            reach,
            ..
        } = self;
        let listeners = Listening {
            inbound,
            // They were made when we were attached.
            unmarked: &[],
        };
        attached.steer(tables, subject, outbound_port, listeners, reach)?;
        let (slot, own) = (attached.slot(), attached.directory());
        take_over(&self.base, &subject.steering.name, own, slot, tables)
    }

    /// Follows a new configuration.
    pub fn reload(&mut self, steering: &Steering) -> Result<(), AttachError> {
        let (bpf, tables) = (&mut self.bpf, &mut self.tables);
        let attached = &mut self.attached;
        attached.reload(bpf, tables, &self.application, steering, &self.reach)
    }

    /// Brings up to date what changes without a word, if it is time.
    pub fn look(&mut self, steering: &Steering) {
        let (tables, application) = (&mut self.tables, &self.application);
        self.attached.look(tables, application, steering);
    }

    /// Verifies what rules for destinations would have attached. `Some`: why packet sockets could not be kept from sending past
    /// them.
    pub fn try_egress(&mut self, steering: &Steering) -> Result<Option<String>, AttachError> {
        let trial = Steering {
            outbound_deny: vec![EgressRule::everything("check")],
            ..steering.clone()
        };
        self.reload(&trial)?;
        Ok(self.attached.unguarded().map(str::to_owned))
    }

    /// What the kernel half counted.
    pub fn counts(&self) -> Result<Vec<(Counter, u64)>, AttachError> {
        Ok(self.tables.counts(self.slot())?)
    }

    /// Handles of the shared maps for another owner.
    pub fn open_tables(&self) -> Result<Tables, AttachError> {
        let shared = self.attached.directory().parent().and_then(Path::parent);
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
    pub fn leave(self) -> Result<(), AttachError> {
        let Self {
            base,
            attached,
            mut tables,
            bpf,
            node,
            ..
        } = self;
        let shared = Pins::open(&base, Layout::own()?)?;
        drop((node, bpf));
        attached.leave(&mut tables, &shared)?;
        drop(tables);
        shared.remove_if_unused()?;
        Ok(())
    }
}

impl Enrolment {
    fn counted(&self, what: Counter) -> Result<u64, String> {
        let counts = self.counts().map_err(|e| e.to_string())?;
        let counted = counts.iter().find(|(counter, _)| *counter == what);
        Ok(counted.map_or(0, |(_, n)| *n))
    }

    /// Changes the workload's entry, and gives what it was.
    fn change(&mut self, change: impl FnOnce(&mut Workload)) -> Result<Workload, String> {
        let slot = self.slot();
        let old = self.tables.workload(slot).map_err(|e| e.to_string())?;
        let mut new = old;
        change(&mut new);
        let set = self.tables.set_workload(slot, new);
        set.map(|()| old).map_err(|e| e.to_string())
    }
}

impl Observer for Enrolment {
    fn redirected(&mut self) -> Result<u64, String> {
        self.counted(Counter::Redirected)
    }

    fn joined(&mut self) -> Result<u64, String> {
        self.counted(Counter::Joined)
    }

    fn reset_blind(&mut self) -> Result<bool, String> {
        let namespace = Namespace::own().map_err(|e| e.to_string())?;
        let Some(events) = self.events.as_mut() else {
            return Ok(false);
        };
        let mut blind = None;
        while let Some(item) = events.next() {
            blind = blind.or(Event::from_bytes(&item).filter(|event| event.cookie != 0));
        }
        let Some(event) = blind else {
            return Ok(false);
        };
        let (local, remote) = (event.local.into(), event.address.into());
        let reset = diag::destroy(&namespace, event.cookie, local, remote);
        reset.map(|()| true).map_err(|e| format!("reset: {e}"))
    }

    fn take_splice(&mut self) -> Result<bool, String> {
        let slot = self.slot();
        let account = self.tables.account(slot).map_err(|e| e.to_string())?;
        self.tables.reset_account(slot).map_err(|e| e.to_string())?;
        Ok(account.splices & WORKLOAD_PROXY_SPLICES != 0)
    }

    fn mark(&mut self, socket: BorrowedFd<'_>, state: SocketState) -> Result<(), String> {
        let state = SocketState {
            workload: self.slot(),
            enrolment: self.attached.enrolment(),
            ..state
        };
        let marked = self.tables.adopt_socket(&socket, state);
        marked.map_err(|e| e.to_string())
    }

    fn allow(&mut self, level: Level) -> Result<(), String> {
        let levels = Level::Joined.flags();
        self.change(|w| w.flags = w.flags & !levels | level.flags())
            .map(drop)
    }
}

/// The namespace of a sidecar that attaches for itself.
pub fn own_namespace() -> Result<Namespace, AttachError> {
    Namespace::own().map_err(AttachError::Namespace)
}

/// Removes what dead sidecars left with nothing attached, and returns their slots. Links that refuse on behalf of
/// a dead proxy stay: that is the workload's rule.
pub fn sweep(shared: &Pins) -> Result<Vec<u32>, PinError> {
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
