//! The enrolment of a workload whose sidecar attaches for itself (`sidecar run`, `sidecar check`): an object of its own,
//! loaded for one workload, and that workload attached, from the time before its proxy listens until it leaves.

use std::{
    fs, io,
    os::fd::BorrowedFd,
    path::{Path, PathBuf},
};

use aya::{
    maps::{MapData, RingBuf},
    programs::{ProgramError, links::FdLink},
};
use aya_log::EbpfLogger;
use sidecar_common::{
    names,
    record::Counter,
    settings::{WORKLOAD_REDIRECT, Workload},
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
    selftest::{self, Finding, Observer},
    tables::{Tables, rules::workload_entry},
    upgrade::UpgradeError,
    workload::{Attached, Lasting, Listening, Programs, Subject, take_over},
};
use crate::{
    model::{FailRule, Steering},
    sys::{cgroup::CgroupError, netns::Namespace},
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
}

/// A workload that is enrolled by its own sidecar. Dropping it leaves what fail rule `closed` wants to be left; call
/// [`Enrolment::leave`] to end it.
pub struct Enrolment {
    base: PathBuf,
    attached: Attached,
    tables: Tables,
    /// The tracepoint, while redirect is on.
    node: Option<FdLink>,
    /// Why nothing is redirected, if so.
    no_redirect: Option<String>,
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
        let (constants, mut no_redirect) = features::best();
        let mut bpf = Loader::new(shared, &constants, None)?.load(pins.slot)?;
        if no_redirect.is_none()
            && let Err(error) = load::attach_relay(&mut bpf, shared, shared.is_only(&pins)?)
        {
            no_redirect = Some(error.to_string());
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
        let node = match no_redirect {
            None => links::watch_splice(&mut bpf)
                .map_err(|error| no_redirect = Some(error.to_string()))
                .ok(),
            Some(_) => None,
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
            node,
            no_redirect,
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
    pub fn self_test(&mut self, steering: &Steering) -> Result<Vec<Finding>, AttachError> {
        if self.no_redirect.is_some() {
            return Ok(Vec::new());
        }
        let slot = self.slot();
        let entry = workload_entry(
            steering,
            self.attached.enrolment(),
            self.attached.netns(),
            0,
            true,
            false,
        );
        self.tables.set_workload(
            slot,
            Workload {
                flags: entry.flags | WORKLOAD_REDIRECT,
                ..entry
            },
        )?;
        let findings = selftest::run(self, steering.redirect.credit_bytes);
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
        let redirect = self.no_redirect.is_none();
        let Self {
            attached, tables, ..
        } = self;
        let listeners = Listening {
            inbound,
            // They were made when we were attached.
            unmarked: &[],
        };
        attached.steer(tables, subject, outbound_port, listeners, redirect)?;
        let (slot, own) = (attached.slot(), attached.directory());
        take_over(&self.base, &subject.steering.name, own, slot, tables)
    }

    /// Follows a new configuration.
    pub fn reload(&mut self, steering: &Steering) -> Result<(), AttachError> {
        let redirect = self.no_redirect.is_none();
        self.attached.reload(&mut self.tables, steering, redirect)
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
            node,
            ..
        } = self;
        let shared = Pins::open(&base, Layout::own()?)?;
        drop(node);
        attached.leave(&mut tables, &shared)?;
        drop(tables);
        shared.remove_if_unused()?;
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
        let slot = self.slot();
        let account = self.tables.account(slot).map_err(|e| e.to_string())?;
        self.tables.reset_account(slot).map_err(|e| e.to_string())?;
        Ok(account.proxy_splices_ns != 0)
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
