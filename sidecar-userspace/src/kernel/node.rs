//! What the node's agent holds in the kernel: one object for all pods, their programs attached with every link pinned, so
//! that nothing changes for them when the agent goes. A later agent adopts what it finds.
//!
//! Pods that an agent with another object of the same ABI attached stay with that object for as long as their proxy
//! does: their connections keep the programs that they began with. A proxy that comes anew is attached with ours.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use aya::{
    Ebpf,
    maps::{MapData, RingBuf},
};
use sidecar_common::{
    layout::ABI_VERSION,
    names,
    record::Counter,
    settings::{ROLE_PROXY, WORKLOAD_FAIL_CLOSED},
};
use tracing::{info, warn};

use super::{
    attach::{AttachError, sweep},
    exclusion, features, links,
    load::{self, LoadError, Loader, NO_SLOT, OBJECT},
    pins::{self, Held, PinError, Pins, WorkloadPins},
    tables::Tables,
    workload::{Attached, Lasting, Listening, Programs, Subject},
};
use crate::{model::cgroup::CgroupPattern, sys::cgroup::Cgroup};

/// The kernel half of a node, held by its agent.
pub struct Node {
    base: PathBuf,
    /// The directory of our object, and the agent's in it.
    shared: PathBuf,
    own: PathBuf,
    bpf: Ebpf,
    loader: Loader,
    tables: Tables,
    /// Directories of other objects, while pods are attached with them.
    older: BTreeMap<PathBuf, Tables>,
    /// Why nothing is redirected, if so.
    no_redirect: Option<String>,
    events: Option<RingBuf<MapData>>,
    _held: Held,
    _alone: Held,
}

/// A pod that a former agent attached.
pub struct Adopted {
    pub name: String,
    /// The id of its cgroup.
    pub pod: u64,
    pub fails_closed: bool,
    pub attached: Attached,
}

impl Node {
    /// Loads, and adopts what is there. Fails if another agent runs.
    pub fn open(base: &Path) -> Result<(Self, Vec<Adopted>), AttachError> {
        pins::prepare(base)?;
        let alone = pins::hold(base)?;
        let shared = Pins::open(base, OBJECT)?;
        let (own, held) = shared.claim_for_agent()?;
        let swept = sweep(&shared)?;
        let (tunables, mut no_redirect) = match features::tunables() {
            Ok(tunables) => (tunables, None),
            Err(error) => (features::steering_only(), Some(error.to_string())),
        };
        let events = own.join(names::EVENTS);
        let mut loader = Loader::new(&shared, &tunables, Some(&events))?;
        // Each pod gets an object of its own for its lookup.
        let mut bpf = loader.load(NO_SLOT)?;
        if no_redirect.is_none()
            && let Err(error) = load::attach_relay(&mut bpf, &shared)
        {
            no_redirect = Some(error.to_string());
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
            older: BTreeMap::new(),
            no_redirect,
            events,
            _held: held,
            _alone: alone,
        };
        let mut adopted = node.adopt(&shared)?;
        drop(shared);
        adopted.extend(node.adopt_older()?);
        Ok((node, adopted))
    }

    /// Whether the self-test has to run: it has not, since the machine started.
    pub fn is_unproven(&self) -> bool {
        self.no_redirect.is_none() && !self.own.join(names::RECORD_SPLICE).exists()
    }

    /// What came of the self-test: why redirect must stay off, or nothing.
    pub fn proven(&mut self, refused: Option<String>) -> Result<(), AttachError> {
        if let Some(why) = refused {
            warn!(reason = %why, "redirect is off: connections are steered, their bytes take TCP");
            self.no_redirect = Some(why);
            return Ok(());
        }
        let name = names::RECORD_SPLICE;
        links::watch_splice(&mut self.bpf)?
            .pin(self.own.join(name))
            .map_err(|source| AttachError::Pin { name, source })?;
        Ok(())
    }

    /// Verifies all programs now rather than when the first pod comes.
    pub fn warm_up(&mut self) -> Result<(), LoadError> {
        links::load_all(&mut self.bpf)
    }

    /// Why nothing will be redirected, if so.
    pub fn no_redirect(&self) -> Option<&str> {
        self.no_redirect.as_deref()
    }

    /// The ring buffer, once.
    pub fn take_events(&mut self) -> Option<RingBuf<MapData>> {
        self.events.take()
    }

    /// Handles of the maps for another owner.
    pub fn open_tables(&self) -> Result<Tables, LoadError> {
        Tables::open(&self.shared)
    }

    /// Attaches a pod and steers its connections; on failure nothing of it is left. `pod`: the id of its cgroup.
    pub fn attach(
        &mut self,
        pod: u64,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
    ) -> Result<Attached, AttachError> {
        let shared = Pins::open(&self.base, OBJECT)?;
        let pins = shared.claim_for_pod(&subject.steering.name, pod)?;
        let (slot, directory) = (pins.slot, pins.directory.clone());
        let attached = self.try_attach(pins, subject, outbound_port, listeners);
        if attached.is_err() {
            // The error says more than a failure to clean up would.
            let _ = shared.remove(&directory);
            self.tables.clear(slot);
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
        let redirect = self.no_redirect.is_none();
        attached.steer(tables, subject, outbound_port, listeners, redirect)?;
        Ok(attached)
    }

    /// Whether the pod can go on as it is attached, with the proxy in the cgroup `proxy` and the namespace `netns`.
    pub fn can_hand_over(&self, attached: &Attached, proxy: u64, netns: u64) -> bool {
        let served = links::serves_proxy(attached.directory(), proxy);
        attached.netns() == netns && (served || self.is_ours(attached))
    }

    /// The pod has another proxy now, or the same one again: see [`Node::can_hand_over`].
    pub fn hand_over(
        &mut self,
        attached: &mut Attached,
        subject: &Subject<'_>,
        outbound_port: u16,
        listeners: Listening<'_>,
    ) -> Result<(), AttachError> {
        let _shared = Pins::lock(self.directory_of(attached))?;
        if !links::serves_proxy(attached.directory(), subject.proxy.id()?) {
            links::serve_proxy(&mut self.bpf, subject.proxy, attached.directory())?;
        }
        let redirect = self.no_redirect.is_none();
        let tables = self.tables_of(attached);
        attached.hand_over(tables, subject, outbound_port, listeners, redirect)
    }

    /// Follows a new configuration of the pod.
    pub fn reload(
        &mut self,
        attached: &mut Attached,
        steering: &crate::model::Steering,
    ) -> Result<(), AttachError> {
        let redirect = self.no_redirect.is_none();
        let tables = self.tables_of(attached);
        attached.reload(tables, steering, redirect)
    }

    /// Excludes what `patterns` want below the pod's cgroup, and no more.
    pub fn exclude(
        &mut self,
        attached: &Attached,
        pod: &Cgroup,
        patterns: &[CgroupPattern],
    ) -> Result<(), AttachError> {
        let slot = attached.slot();
        let tables = self.tables_of(attached);
        exclusion::apply(tables, slot, pod, patterns)?;
        Ok(())
    }

    /// The ids of the cgroups in which the pod's proxies run, or ran.
    pub fn proxies_of(&mut self, attached: &Attached) -> Vec<u64> {
        let slot = attached.slot();
        self.tables_of(attached).cgroups_in_role(slot, ROLE_PROXY)
    }

    /// A proxy's cgroup is gone, and its id may be another one's tomorrow.
    pub fn forget_proxy(&mut self, attached: &Attached, id: u64) -> Result<(), AttachError> {
        links::forget_proxy(attached.directory(), id);
        Ok(self.tables_of(attached).forget_cgroup(id)?)
    }

    /// What the kernel half counted for a pod.
    pub fn counts(&mut self, attached: &Attached) -> Result<Vec<(Counter, u64)>, AttachError> {
        let slot = attached.slot();
        Ok(self.tables_of(attached).counts(slot)?)
    }

    /// Detaches a pod and forgets it.
    pub fn leave(&mut self, attached: Attached) -> Result<(), AttachError> {
        let directory = self.directory_of(&attached);
        let shared = Pins::lock(directory.clone())?;
        attached.leave(self.tables_in(&directory), &shared)?;
        if directory != self.shared && shared.workloads()?.is_empty() {
            self.older.remove(&directory);
            shared.remove_if_unused()?;
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
        let shared = Pins::open(&base, OBJECT)?;
        if shared.workloads()?.is_empty() {
            drop((bpf, tables, held));
            // Their directory is removed with the rest.
            for pin in [names::RECORD_SPLICE, names::EVENTS] {
                let _ = fs::remove_file(own.join(pin));
            }
            shared.remove_if_unused()?;
        }
        Ok(())
    }

    fn is_ours(&self, attached: &Attached) -> bool {
        attached.directory().starts_with(&self.shared)
    }

    /// The directory with the maps of the pod's object.
    fn directory_of(&self, attached: &Attached) -> PathBuf {
        let directory = attached.directory().parent().and_then(Path::parent);
        directory.unwrap_or(&self.shared).to_owned()
    }

    fn tables_of(&mut self, attached: &Attached) -> &mut Tables {
        let directory = self.directory_of(attached);
        self.tables_in(&directory)
    }

    fn tables_in(&mut self, directory: &Path) -> &mut Tables {
        self.older.get_mut(directory).unwrap_or(&mut self.tables)
    }

    /// The pods in a directory whose agent is gone.
    fn adopt(&mut self, shared: &Pins) -> Result<Vec<Adopted>, AttachError> {
        let tables = self
            .older
            .get_mut(&shared.directory)
            .unwrap_or(&mut self.tables);
        let mut adopted = Vec::new();
        for found in shared.workloads()? {
            let Some(pod) = found.pod else { continue };
            let taken = WorkloadPins::take(found.slot, found.directory.clone());
            let attached = match taken.map(|pins| Attached::adopt(pins, tables)) {
                Ok(attached) => attached?,
                Err(error) => {
                    warn!(workload = found.name, %error, "left to whoever holds it");
                    continue;
                }
            };
            let flags = tables.workload(found.slot)?.flags;
            adopted.push(Adopted {
                name: found.name,
                pod,
                fails_closed: flags & WORKLOAD_FAIL_CLOSED != 0,
                attached,
            });
        }
        Ok(adopted)
    }

    /// Those of other objects whose maps we understand.
    fn adopt_older(&mut self) -> Result<Vec<Adopted>, AttachError> {
        let mut adopted = Vec::new();
        for directory in Pins::versions(&self.base) {
            if directory == self.shared || !is_of_our_abi(&directory) {
                continue;
            }
            let tables = match Tables::open(&directory) {
                Ok(tables) => tables,
                Err(error) => {
                    warn!(directory = %directory.display(), %error, "pins of another object are left alone");
                    continue;
                }
            };
            let shared = Pins::lock(directory.clone())?;
            self.older.insert(directory.clone(), tables);
            let found = self.adopt(&shared)?;
            info!(directory = %directory.display(), pods = found.len(), "attached with another object");
            if found.is_empty() {
                self.older.remove(&directory);
                shared.remove_if_unused()?;
            }
            adopted.extend(found);
        }
        Ok(adopted)
    }
}

fn is_of_our_abi(directory: &Path) -> bool {
    let name = directory.file_name().and_then(|name| name.to_str());
    name.is_some_and(|name| name.starts_with(&format!("v{ABI_VERSION}-")))
}

/// What [`uninstall`] did.
#[derive(Debug, Default)]
pub struct Removed {
    /// Pods that were detached, and directories of pins.
    pub what: Vec<String>,
    /// What is not an agent's.
    pub kept: Vec<String>,
    /// What is still there, and why.
    pub left: Vec<String>,
}

/// Removes everything that agents have left under `base`: pods, links, maps, programs. Fails if an agent runs.
pub fn uninstall(base: &Path) -> Result<Removed, AttachError> {
    let mut removed = Removed::default();
    if !base.exists() {
        return Ok(removed);
    }
    let _alone = pins::hold(base)?;
    let mut held = super::census::Census::default();
    for directory in Pins::versions(base) {
        let shared = Pins::lock(directory.clone())?;
        // Of an object whose maps we do not understand, the pins are all there is to remove.
        let mut tables = match is_of_our_abi(&directory) {
            true => Tables::open(&directory).ok(),
            false => None,
        };
        held.add(&directory);
        for found in shared.workloads()? {
            match found.pod {
                None => removed.kept.push(format!(
                    "{}: of a sidecar without agent",
                    found.directory.display()
                )),
                Some(_) => {
                    shared.remove(&found.directory)?;
                    if let Some(tables) = &mut tables {
                        tables.clear(found.slot);
                    }
                    removed.what.push(format!("pod {}", found.name));
                }
            }
        }
        drop(tables);
        shared.remove_agent()?;
        match shared.remove_if_unused()? {
            true => removed.what.push(directory.display().to_string()),
            false => held.keep_shared(),
        }
    }
    removed.left.extend(held.remaining());
    Ok(removed)
}

/// For callers that only need the error of a second agent in words.
pub fn is_taken(error: &AttachError) -> bool {
    matches!(error, AttachError::Pins(PinError::Agent(_)))
}
