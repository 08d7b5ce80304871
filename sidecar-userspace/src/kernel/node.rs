//! What the node's agent holds in the kernel: one object for all pods, their programs attached with every link pinned, so
//! that nothing changes for them when the agent goes. A later agent adopts what it finds.
//!
//! Where that agent had another object of the same layout, its programs are replaced by ours (`upgrade`). Pods that were
//! attached by one of another layout are left as they are, since we do not understand their maps: until their proxy comes
//! anew, which is attached with ours, or they go.

pub mod adopted;
pub mod uninstall;
mod version;

use std::{
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use sidecar_common::{
    names,
    record::Counter,
    settings::{MAX_WORKLOADS, ROLE_PROXY, WORKLOAD_ENROLLED},
};
use tracing::{info, warn};

use self::adopted::Adopted;
use super::{
    attach::{AttachError, sweep},
    features,
    layout::Layout,
    links,
    load::{self, LoadError, Loader, NO_SLOT},
    pins::{self, Held, PinError, Pins, WorkloadPins},
    proof::{Proof, Reach},
    tables::Tables,
    workload::{Attached, Lasting, Listening, Programs, Subject},
};
use crate::{
    model::{Level, Steering, cgroup::CgroupPattern},
    sys::cgroup::Cgroup,
};

/// The kernel half of a node, held by its agent.
pub struct Node {
    base: PathBuf,
    /// The directory of our object, and the agent's in it.
    shared: PathBuf,
    own: PathBuf,
    bpf: Ebpf,
    loader: Loader,
    tables: Tables,
    /// Every slot below it has maps of its own, which stay.
    made_slots: u32,
    /// Of our object: what must be attached.
    object: String,
    /// How far redirect goes.
    reach: Reach,
    events: Option<RingBuf<MapData>>,
    _held: Held,
    _alone: Held,
}

impl Node {
    /// Loads, and adopts what is there. Fails if another agent runs.
    pub fn open(base: &Path) -> Result<(Self, Vec<Adopted>), AttachError> {
        pins::prepare(base)?;
        let alone = pins::hold(base)?;
        let shared = Pins::open(base, Layout::own()?)?;
        let opened = Self::open_in(base, &shared, alone);
        if opened.is_err() {
            // A failed start leaves nothing; the error says more than a failure to clean up would.
            let _ = shared.remove_agent();
            let _ = shared.remove_if_unused();
        }
        opened
    }

    fn open_in(
        base: &Path,
        shared: &Pins,
        alone: Held,
    ) -> Result<(Self, Vec<Adopted>), AttachError> {
        let (own, held) = shared.claim_for_agent()?;
        let swept = sweep(shared)?;
        let (constants, mut reach) = features::best();
        let events = own.join(names::EVENTS);
        let mut loader = Loader::new(shared, &constants, Some(&events))?;
        // Each pod gets an object of its own for its lookup.
        let mut bpf = loader.load(NO_SLOT)?;
        if !reach.is_off()
            && let Err(error) = load::attach_relay(&mut bpf, shared, false)
        {
            reach = Reach::off(Proof::Programs, error.to_string());
        }
        let mut tables = Tables::take(&mut bpf)?;
        swept.iter().for_each(|slot| tables.clear(*slot));
        let events = bpf
            .take_map(names::EVENTS)
            .and_then(|map| map.try_into().ok());
        let mut node = Self {
            base: base.to_owned(),
            shared: shared.directory.clone(),
            own,
            bpf,
            loader,
            tables,
            made_slots: 0,
            object: version::object_name(&constants),
            reach,
            events,
            _held: held,
            _alone: alone,
        };
        // Others first: of a pod that is there twice the last one counts.
        let mut adopted = node.adopt_others()?;
        adopted.extend(node.adopt(shared)?);
        Ok((node, adopted))
    }

    /// What came of the self-test.
    pub fn proven(&mut self, reach: Reach) -> Result<(), AttachError> {
        if reach.level < self.reach.level {
            warn!(%reach, "redirect goes no further than this kernel has shown to be safe: other messages take TCP");
        }
        self.reach = reach.and(&self.reach);
        self.lower()?;
        let name = names::TRACE_SPLICE;
        if self.reach.is_off() || self.own.join(name).exists() {
            return Ok(());
        }
        let link = match links::watch_splice(&mut self.bpf) {
            Ok(link) => link,
            Err(error) => return self.proven(Reach::off(Proof::Programs, error.to_string())),
        };
        link.pin(self.own.join(name))
            .map_err(|source| AttachError::Pin { name, source })?;
        Ok(())
    }

    /// Pods of a former agent go no further than what holds now; how much further they may, their sidecars say.
    fn lower(&mut self) -> Result<(), AttachError> {
        for found in Pins::lock(self.shared.clone())?.workloads()? {
            let mut entry = self.tables.workload(found.slot)?;
            let level = Level::of_flags(entry.flags);
            let (lower, limit) = self.reach.within(level);
            let enrolled = found.pod.is_some() && entry.flags & WORKLOAD_ENROLLED != 0;
            if !enrolled || lower >= level {
                continue;
            }
            entry.flags = entry.flags & !Level::Joined.flags() | lower.flags();
            entry.redirect_limit = limit.map_or(0, Proof::number);
            self.tables.set_workload(found.slot, entry)?;
        }
        Ok(())
    }

    /// How far redirect goes for a pod, and what the next level lacks; nothing for one that is of another layout.
    pub fn redirect_of(&self, attached: &Attached) -> Option<(Level, Option<Proof>)> {
        let entry = self.tables.workload(attached.slot()).ok();
        let entry = entry.filter(|_| self.is_ours(attached))?;
        let limit = Proof::of_number(entry.redirect_limit);
        Some((Level::of_flags(entry.flags), limit))
    }

    /// Verifies all programs now rather than when the first pod comes.
    pub fn warm_up(&mut self) -> Result<(), LoadError> {
        for _ in 0..4 {
            self.make_ahead(0);
        }
        links::load_all(&mut self.bpf)
    }

    /// How far redirect goes.
    pub fn reach(&self) -> &Reach {
        &self.reach
    }

    /// The ring buffer, once.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// Attaches a pod and steers its connections; on failure nothing of it is left. `pod`: the id of its cgroup.
    pub fn attach(
        &mut self,
        pod: u64,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
    ) -> Result<Attached, AttachError> {
        self.tables.check_room(None, subject.steering)?;
        // The pod may be attached already, in another network namespace: what is said of its cgroups is replaced.
        let cgroups = [subject.application.id()?, subject.proxy.id()?];
        let former = self.tables.cgroups_beside(&cgroups);
        let shared = Pins::open(&self.base, Layout::own()?)?;
        let pins = shared.claim_for_pod(&subject.steering.name, pod)?;
        let (slot, directory) = (pins.slot, pins.directory.clone());
        let attached = self.try_attach(pins, subject, outbound_port, listeners);
        if attached.is_err() {
            // The error says more than a failure to clean up would.
            let _ = shared.remove(&directory);
            self.tables.clear(slot);
            for (id, entry) in former {
                if let Err(error) = self.tables.set_cgroup(id, entry) {
                    warn!(%error, "a cgroup of a pod that stays attached is not known any more");
                }
            }
        }
        attached
    }

    fn try_attach(
        &mut self,
        pins: WorkloadPins,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
    ) -> Result<Attached, AttachError> {
        let mut lookup = self.loader.load(pins.slot)?;
        let programs = Programs {
            shared: &mut self.bpf,
            lookup: Some(&mut lookup),
        };
        let tables = &mut self.tables;
        let mut attached = Attached::attach(programs, tables, pins, subject, Lasting::Everything)?;
        attached.steer(tables, subject, outbound_port, listeners, &self.reach)?;
        Ok(attached)
    }

    /// Whether the pod can go on as it is attached, with a proxy in the namespace `netns`.
    pub fn can_hand_over(&self, attached: &Attached, netns: u64) -> bool {
        // An agent that was killed while it attached has not said which enrolment it is.
        attached.netns() == netns && attached.enrolment() != 0 && self.is_ours(attached)
    }

    /// The pod has another proxy now, or the same one again: see [`Node::can_hand_over`].
    pub fn hand_over(
        &mut self,
        attached: &mut Attached,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
    ) -> Result<(), AttachError> {
        // Before anything of it is another proxy's.
        let slot = Some(attached.slot());
        self.tables.check_room(slot, subject.steering)?;
        let _shared = Pins::lock(self.shared.clone())?;
        if !links::serves_proxy(attached.directory(), subject.proxy.id()?) {
            links::serve_proxy(&mut self.bpf, subject.proxy, attached.directory())?;
        }
        let (bpf, tables, reach) = (&mut self.bpf, &mut self.tables, &self.reach);
        attached.hand_over(bpf, tables, subject, outbound_port, listeners, reach)
    }

    /// Follows a new configuration of the pod with the cgroup `pod`.
    pub fn reload(
        &mut self,
        attached: &mut Attached,
        pod: &Cgroup,
        steering: &Steering,
    ) -> Result<(), AttachError> {
        if !self.is_ours(attached) {
            return Err(AttachError::OtherLayout);
        }
        self.tables.check_room(Some(attached.slot()), steering)?;
        let (bpf, tables) = (&mut self.bpf, &mut self.tables);
        attached.reload(bpf, tables, pod, steering, &self.reach)
    }

    /// Excludes what `patterns` want below the pod's cgroup, and no more.
    pub fn exclude(
        &mut self,
        attached: &mut Attached,
        pod: &Cgroup,
        patterns: &[CgroupPattern],
    ) -> Result<(), AttachError> {
        match self.is_ours(attached) {
            true => attached.exclude(&mut self.tables, pod, patterns),
            false => Ok(()),
        }
    }

    /// Brings up to date what changes in the pod without a word, if it is time.
    pub fn look(&mut self, attached: &mut Attached, pod: &Cgroup, steering: &Steering) {
        if self.is_ours(attached) {
            attached.look(&mut self.tables, pod, steering);
        }
    }

    /// Makes maps for pods that may come, a slot at a time: an enrolment need not wait for it then. `pods`: how many there are.
    pub fn make_ahead(&mut self, pods: usize) {
        const AHEAD: u32 = 8;
        let wanted = u32::try_from(pods).unwrap_or(MAX_WORKLOADS) + AHEAD;
        while self.made_slots < wanted.min(MAX_WORKLOADS) {
            let slot = self.made_slots;
            let there = self.tables.has_own(slot);
            if !there && self.tables.make_own(slot).is_err() {
                // Tried again when the slot is taken.
                return;
            }
            self.made_slots += 1;
            if !there {
                return;
            }
        }
    }

    /// Removes what sockets of pods have left in the maps without a word.
    pub fn collect_garbage<'a>(&mut self, pods: impl Iterator<Item = &'a Attached>) {
        let slots: Vec<u32> = pods.map(Attached::slot).collect();
        self.tables.collect_garbage(&slots);
    }

    /// The ids of the cgroups in which the pod's proxies run, or ran.
    pub fn proxies_of(&self, attached: &Attached) -> Vec<u64> {
        match self.is_ours(attached) {
            true => self.tables.cgroups_in_role(attached.slot(), ROLE_PROXY),
            false => Vec::new(),
        }
    }

    /// A proxy's cgroup is gone, and its id may be another one's tomorrow.
    pub fn forget_proxy(&mut self, attached: &Attached, id: u64) -> Result<(), AttachError> {
        links::forget_proxy(attached.directory(), id);
        Ok(self.tables.forget_cgroup(id)?)
    }

    /// Has the kubelet's connections to pods let through to the application: those of processes in these cgroups, and of no
    /// others any more.
    pub fn let_through(&mut self, kubelets: &[Cgroup]) -> Result<(), AttachError> {
        let mut obsolete = links::watched_for_probes(&self.own);
        for kubelet in kubelets {
            if !obsolete.remove(&kubelet.id()?) {
                links::watch_probes(&mut self.bpf, kubelet, &self.own)?;
                info!(cgroup = %kubelet.path().display(), "probes of the kubelet reach applications without their proxies");
            }
        }
        for gone in obsolete {
            links::forget_probes(&self.own, gone);
        }
        Ok(())
    }

    /// Connections of the kubelet that could not be noted.
    pub fn probes_lost(&self) -> Result<u64, LoadError> {
        self.tables.probes_lost()
    }

    /// What the kernel half counted for a pod; nothing for one that is of another layout.
    pub fn counts(&self, attached: &Attached) -> Result<Vec<(Counter, u64)>, AttachError> {
        match self.is_ours(attached) {
            true => Ok(self.tables.counts(attached.slot())?),
            false => Ok(Vec::new()),
        }
    }

    /// Detaches a pod and forgets it.
    pub fn leave(&mut self, attached: Attached) -> Result<(), AttachError> {
        if self.is_ours(&attached) {
            let shared = Pins::lock(self.shared.clone())?;
            return attached.leave(&mut self.tables, &shared);
        }
        let directory = attached.directory().to_owned();
        let shared = directory.parent().and_then(Path::parent);
        let shared = Pins::lock(shared.unwrap_or(&self.shared).to_owned())?;
        drop(attached);
        // Entries of the maps stay: they mean nothing to anybody without links, and go with the maps.
        shared.remove(&directory)?;
        if shared.remove_if_unused()? {
            info!(directory = %shared.directory.display(), "the last pod of another layout has gone");
        }
        Ok(())
    }

    /// Takes our own pins away if no workload needs them; else they stay for the next agent.
    pub fn close(self) -> Result<(), AttachError> {
        let Self {
            base,
            bpf,
            tables,
            own,
            _held: held,
            ..
        } = self;
        let shared = Pins::open(&base, Layout::own()?)?;
        if shared.workloads()?.is_empty() {
            drop((bpf, tables, held));
            // Their directory is removed with the rest.
            for pin in [names::TRACE_SPLICE, names::EVENTS] {
                let _ = fs::remove_file(own.join(pin));
            }
            shared.remove_if_unused()?;
        }
        Ok(())
    }

    /// Whether the pod is attached in the directory of our layout.
    pub fn is_ours(&self, attached: &Attached) -> bool {
        attached.directory().starts_with(&self.shared)
    }
}

/// For callers that only need the error of a second agent in words.
pub fn is_taken(error: &AttachError) -> bool {
    matches!(error, AttachError::Pins(PinError::Agent(_)))
}
