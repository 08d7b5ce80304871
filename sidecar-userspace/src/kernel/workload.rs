//! One workload's attachment: its programs on its cgroups and its network namespace, its rules in the maps. The same
//! for a sidecar that runs as root and attaches itself, and for the node's agent, which attaches for others; they differ
//! in who holds it.

use std::{io, net::SocketAddr, path::Path};

use aya::Ebpf;
use rustix::net::getsockname;
use sidecar_common::settings::{Cgroup as CgroupEntry, ROLE_APPLICATION, ROLE_PROXY, Workload};
use std::os::fd::BorrowedFd;
use tracing::{info, warn};

use super::{
    adopt,
    attach::AttachError,
    egress::Egress,
    exclusion,
    links::Links,
    listening::{Look, monotonic_ns},
    pins::{Pins, WorkloadPins},
    proof::Reach,
    routes::Routes,
    tables::{Tables, rules::workload_entry},
};
use crate::{
    model::{Steering, cgroup::CgroupPattern},
    sys::{cgroup::Cgroup, netns::Namespace},
};

/// Who is enrolled.
pub struct Subject<'a> {
    /// The application's.
    pub application: &'a Cgroup,
    /// Where the proxy runs; not the application's, but possibly below it.
    pub proxy: &'a Cgroup,
    /// Where connections to the workload arrive.
    pub namespace: &'a Namespace,
    pub steering: &'a Steering,
}

/// Listening sockets of a proxy.
#[derive(Clone, Copy)]
pub struct Listening<'a> {
    /// Where connections to the workload are handed.
    pub inbound: BorrowedFd<'a>,
    /// All of them, if they are older than the attachment: they bear no mark, or that of an application. What they accept
    /// gets theirs.
    pub unmarked: &'a [BorrowedFd<'a>],
}

/// Programs to attach.
pub struct Programs<'a> {
    pub shared: &'a mut Ebpf,
    /// An object of its own for `lookup_inbound`, which carries in its constants whose it is; `None`: the shared one was
    /// loaded for this workload.
    pub lookup: Option<&'a mut Ebpf>,
}

/// What becomes of the links when their holder goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lasting {
    /// All are detached.
    Nothing,
    /// What refuses on behalf of the workload stays.
    Refusal,
    /// Everything stays: the proxy lives on without the holder.
    Everything,
}

/// A workload whose programs are attached. Dropping it leaves what was to last; call [`Attached::leave`] to end it.
pub struct Attached {
    pins: WorkloadPins,
    links: Links,
    /// Which enrolment it is, as the kernel half knows it.
    enrolment: u64,
    /// Cookie of the namespace.
    netns: u64,
    /// Nobody else uses the namespace: every port that is not known to be closed is captured.
    own_namespace: bool,
    /// Who listens in it.
    look: Option<Look>,
    /// Its routes.
    routes: Option<Routes>,
    /// Cgroups of the workload whose processes are left alone.
    excluded: Vec<Cgroup>,
    /// Where the proxy runs, as far as this agent knows.
    proxy: Option<Cgroup>,
    /// What enforces rules for destinations.
    egress: Egress,
}

impl Attached {
    /// Attaches; nothing is steered before [`Attached::steer`].
    pub fn attach(
        programs: Programs<'_>,
        tables: &mut Tables,
        pins: WorkloadPins,
        subject: &Subject<'_>,
        lasting: Lasting,
    ) -> Result<Self, AttachError> {
        let Programs { shared, lookup } = programs;
        let proxy = subject.proxy.id()?;
        // Before anything is attached: nothing may be steered by what a former sidecar said.
        tables.clear(pins.slot);
        tables.make_own(pins.slot)?;
        // The clock never stands still for as long as attaching takes, and pins do not outlive the machine's start.
        let enrolment = monotonic_ns();
        tables.set_cgroup(proxy, role(pins.slot, enrolment, ROLE_PROXY))?;
        let netns = subject.namespace.cookie;
        if lasting == Lasting::Everything {
            // Before there is a program that asks whose the namespace is.
            tables.own_namespace(netns, pins.slot)?;
        }
        let mut links = Links::attach(shared, subject.application, subject.proxy)?;
        let mut egress = Egress::new((lasting != Lasting::Nothing).then_some(&*pins.directory));
        let left_alone = [subject.proxy.clone()];
        egress.prepare(
            shared,
            subject.application,
            &left_alone,
            || subject.namespace.try_clone(),
            subject.steering,
        )?;
        links.attach_lookup(lookup.unwrap_or(shared), subject.namespace)?;
        if lasting != Lasting::Nothing {
            links.pin_lasting(&pins.directory)?;
        }
        if lasting == Lasting::Everything {
            links.pin_application(&pins.directory)?;
            links.pin_proxy(&pins.directory, proxy)?;
            // The pins hold them; a descriptor each would only be one more.
            links = Links::default();
        }
        Ok(Self {
            pins,
            links,
            enrolment,
            netns,
            own_namespace: lasting == Lasting::Everything,
            look: None,
            routes: None,
            excluded: Vec::new(),
            proxy: Some(subject.proxy.clone()),
            egress,
        })
    }

    /// Takes over a workload whose links are all pinned.
    pub fn adopt(pins: WorkloadPins, tables: &Tables) -> Result<Self, AttachError> {
        let entry = tables.workload(pins.slot)?;
        Ok(Self {
            egress: Egress::new(Some(&pins.directory)),
            pins,
            links: Links::default(),
            enrolment: entry.enrolment,
            netns: entry.netns,
            own_namespace: true,
            look: None,
            routes: None,
            excluded: Vec::new(),
            proxy: None,
        })
    }

    /// Takes over a workload that is attached with maps that we do not understand.
    pub fn foreign(pins: WorkloadPins) -> Self {
        Self {
            pins,
            links: Links::default(),
            enrolment: 0,
            netns: 0,
            own_namespace: true,
            look: None,
            routes: None,
            excluded: Vec::new(),
            proxy: None,
            egress: Egress::default(),
        }
    }

    pub fn slot(&self) -> u32 {
        self.pins.slot
    }

    pub fn directory(&self) -> &Path {
        &self.pins.directory
    }

    pub fn netns(&self) -> u64 {
        self.netns
    }

    pub fn enrolment(&self) -> u64 {
        self.enrolment
    }

    /// From now on new connections of the application go to `outbound_port` on loopback, and those to it to
    /// `inbound`.
    pub fn steer(
        &mut self,
        tables: &mut Tables,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
        reach: &Reach,
    ) -> Result<(), AttachError> {
        let slot = self.pins.slot;
        // Before their workload is steered, so that none of their connections is.
        self.exclude(
            tables,
            subject.application,
            &subject.steering.exclude_cgroups,
        )?;
        self.point(tables, subject, listeners)?;
        let entry = workload_entry(
            subject.steering,
            self.enrolment,
            self.netns,
            outbound_port,
            reach,
            self.own_namespace,
        );
        tables.set_workload(slot, entry)?;
        let mut left_alone = self.excluded.clone();
        left_alone.push(subject.proxy.clone());
        let application = role(slot, self.enrolment, ROLE_APPLICATION);
        tables.set_cgroup(subject.application.id()?, application)?;
        adopt::adopt(
            tables,
            subject.application,
            &left_alone,
            (slot, self.enrolment),
            subject.namespace,
        )?;
        Ok(())
    }

    /// The same workload has another proxy now, or the same one again.
    pub fn hand_over(
        &mut self,
        bpf: &mut Ebpf,
        tables: &mut Tables,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
        reach: &Reach,
    ) -> Result<(), AttachError> {
        self.proxy = Some(subject.proxy.clone());
        self.egress.prepare(
            bpf,
            subject.application,
            &left_alone(&self.excluded, self.proxy.as_ref()),
            || subject.namespace.try_clone(),
            subject.steering,
        )?;
        let proxy = role(self.pins.slot, self.enrolment, ROLE_PROXY);
        tables.set_cgroup(subject.proxy.id()?, proxy)?;
        self.exclude(
            tables,
            subject.application,
            &subject.steering.exclude_cgroups,
        )?;
        self.point(tables, subject, listeners)?;
        self.set_entry(tables, subject.steering, outbound_port, reach)?;
        self.egress.finish(subject.steering);
        Ok(())
    }

    /// Whose listeners the workload's connections go to, and by which rules.
    fn point(
        &mut self,
        tables: &mut Tables,
        subject: &Subject<'_>,
        listeners: Listening<'_>,
    ) -> Result<(), AttachError> {
        let slot = self.pins.slot;
        adopt::mark_proxy(tables, listeners.unmarked, (slot, self.enrolment))?;
        self.watch_listeners(tables, subject, listeners.inbound);
        self.watch_routes(tables, subject.namespace);
        tables.set_listener(slot, &listeners.inbound)?;
        Ok(tables.set_rules(slot, subject.steering)?)
    }

    /// Looks who listens in the workload's own namespace, from now on each time that [`Attached::look`] is called.
    fn watch_listeners(
        &mut self,
        tables: &mut Tables,
        subject: &Subject<'_>,
        inbound: BorrowedFd<'_>,
    ) {
        if !self.own_namespace {
            return;
        }
        let address = getsockname(inbound).ok();
        let address = address.and_then(|address| SocketAddr::try_from(address).ok());
        let port = address.map_or(0, |address| address.port());
        match Look::new(subject.namespace, self.pins.slot, subject.application, port) {
            Ok(look) => self.look = Some(look),
            Err(error) => {
                warn!(%error, "who listens cannot be seen: closed ports are captured like open ones");
            }
        }
        self.look_at_namespace(tables);
    }

    /// Which addresses its connections have, from now on each time that [`Attached::look`] is called.
    fn watch_routes(&mut self, tables: &mut Tables, namespace: &Namespace) {
        match Routes::new(namespace, self.pins.slot) {
            Ok(mut routes) => {
                routes.take(tables);
                self.routes = Some(routes);
            }
            Err(error) => {
                warn!(%error, "routes cannot be read: applications see their steered sockets on loopback");
            }
        }
    }

    /// The workload's network namespace, once it is known: an agent that has just started waits for the sidecar to say it.
    pub fn namespace(&self) -> io::Result<Namespace> {
        match (self.own_namespace, &self.look) {
            (true, Some(look)) => look.namespace(),
            (true, None) => Err(io::ErrorKind::NotConnected.into()),
            (false, _) => Namespace::own(),
        }
    }

    /// Whether cgroups are excluded, as far as this agent knows.
    pub fn has_exclusions(&self) -> bool {
        !self.excluded.is_empty()
    }

    /// Excludes what `patterns` want below `application`, and no more.
    pub fn exclude(
        &mut self,
        tables: &mut Tables,
        application: &Cgroup,
        patterns: &[CgroupPattern],
    ) -> Result<(), AttachError> {
        let whose = (self.pins.slot, self.enrolment);
        self.excluded = exclusion::apply(tables, whose, application, patterns)?;
        Ok(())
    }

    /// Brings up to date who listens in the workload's own namespace, and its routes, if it is time.
    fn look_at_namespace(&mut self, tables: &mut Tables) {
        if let Some(routes) = &mut self.routes {
            routes.take(tables);
        }
        if let Some(look) = &mut self.look {
            look.take(tables, &self.excluded);
        }
    }

    /// Brings up to date what changes without a word, where it is time: who listens in the workload's own namespace, and what
    /// its rules for destinations depend on.
    pub fn look(&mut self, tables: &mut Tables, application: &Cgroup, steering: &Steering) {
        self.look_at_namespace(tables);
        let left_alone = left_alone(&self.excluded, self.proxy.as_ref());
        if let Some(rules) = self.egress.look(application, &left_alone, steering)
            && let Err(error) = tables.set_rules(self.pins.slot, &rules)
        {
            warn!(workload = steering.name, %error, "outbound.deny cannot be enforced");
        }
    }

    /// Why packet sockets of the application are not kept from sending past rules for destinations, if so.
    pub fn unguarded(&self) -> Option<&str> {
        self.egress.unguarded()
    }

    /// Follows a new configuration.
    pub fn reload(
        &mut self,
        bpf: &mut Ebpf,
        tables: &mut Tables,
        application: &Cgroup,
        steering: &Steering,
        reach: &Reach,
    ) -> Result<(), AttachError> {
        let left_alone = left_alone(&self.excluded, self.proxy.as_ref());
        let namespace = self.namespace();
        self.egress
            .prepare(bpf, application, &left_alone, || namespace, steering)?;
        let slot = self.pins.slot;
        tables.set_rules(slot, steering)?;
        let port = tables.workload(slot)?.outbound_port;
        self.set_entry(tables, steering, port, reach)?;
        self.egress.finish(steering);
        Ok(())
    }

    fn set_entry(
        &self,
        tables: &mut Tables,
        steering: &Steering,
        outbound_port: u16,
        reach: &Reach,
    ) -> Result<(), AttachError> {
        let entry = workload_entry(
            steering,
            self.enrolment,
            self.netns,
            outbound_port,
            reach,
            self.own_namespace,
        );
        Ok(tables.set_workload(self.pins.slot, entry)?)
    }

    /// Detaches everything and forgets the workload. `shared`: the directory that it is in.
    pub fn leave(self, tables: &mut Tables, shared: &Pins) -> Result<(), AttachError> {
        let Self { pins, links, .. } = self;
        tables.set_workload(pins.slot, Workload::default())?;
        // Pins go with the directory.
        drop(links);
        shared.remove(&pins.directory)?;
        tables.clear(pins.slot);
        Ok(())
    }
}

/// Cgroups below the application's whose processes are none of it.
fn left_alone(excluded: &[Cgroup], proxy: Option<&Cgroup>) -> Vec<Cgroup> {
    excluded.iter().chain(proxy).cloned().collect()
}

fn role(workload: u32, enrolment: u64, role: u32) -> CgroupEntry {
    CgroupEntry {
        workload,
        role,
        enrolment,
    }
}

/// Removes the directories of dead sidecars with the name `name`, of every version: their links go with them.
/// `own`: the directory of the sidecar that takes over, with the maps of its version.
pub fn take_over(
    base: &Path,
    name: &str,
    own: &Path,
    own_slot: u32,
    tables: &mut Tables,
) -> Result<(), AttachError> {
    for directory in Pins::versions(base) {
        let same_version = own.starts_with(&directory);
        let shared = Pins::lock(directory)?;
        for left in shared
            .workloads()?
            .into_iter()
            .filter(|left| left.name == name && left.pod.is_none() && !left.alive)
        {
            info!(
                workload = name,
                slot = left.slot,
                "taking over from a sidecar that is gone"
            );
            shared.remove(&left.directory)?;
            if same_version && left.slot != own_slot {
                tables.clear(left.slot);
            }
        }
        shared.remove_if_unused()?;
    }
    Ok(())
}
