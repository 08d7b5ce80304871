//! What userspace writes into the shared maps, and reads from them, for one workload.

pub mod rules;
mod written;

pub use written::TooMany;

use std::{collections::BTreeMap, os::fd::AsRawFd, path::Path};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockMap, lpm_trie::LpmTrie,
    },
    util::nr_cpus,
};
use sidecar_common::{
    flow::{Direction, FlowKey},
    names,
    origin::{Pending, SocketState},
    record::{Counter, Counters},
    settings::{Cgroup as CgroupEntry, CidrTarget, DenyTarget, ListeningKey, PortKey, Workload},
};

use self::written::Known;
use super::load::LoadError;

const ANY: u64 = 0;

/// Typed handles of the shared maps.
pub struct Tables {
    workloads: Array<MapData, Workload>,
    cgroups: HashMap<MapData, u64, CgroupEntry>,
    ports: HashMap<MapData, PortKey, u32>,
    cidrs: LpmTrie<MapData, CidrTarget, u32>,
    denials: LpmTrie<MapData, DenyTarget, u32>,
    listening: HashMap<MapData, ListeningKey, u32>,
    listeners: SockMap<MapData>,
    sockets: SkStorage<MapData, SocketState>,
    profiles: HashMap<MapData, PortKey, sidecar_common::record::Profile>,
    counters: PerCpuArray<MapData, Counters>,
    pending: HashMap<MapData, FlowKey, Pending>,
    directions: HashMap<MapData, FlowKey, Direction>,
    probes: HashMap<MapData, FlowKey, u64>,
    probes_lost: PerCpuArray<MapData, u64>,
    /// What is in `ports`, `cidrs` and `denials`.
    rules: Known,
}

fn typed<T: TryFrom<Map, Error = MapError>>(
    bpf: &mut Ebpf,
    name: &'static str,
) -> Result<T, LoadError> {
    let map = bpf.take_map(name).ok_or(LoadError::Missing(name))?;
    T::try_from(map).map_err(|source| LoadError::Map { name, source })
}

fn pinned<T: TryFrom<Map, Error = MapError>>(
    directory: &Path,
    name: &'static str,
    kind: impl FnOnce(MapData) -> Map,
) -> Result<T, LoadError> {
    let map = MapData::from_pin(directory.join(name)).map_err(of(name))?;
    T::try_from(kind(map)).map_err(of(name))
}

fn of(name: &'static str) -> impl Fn(MapError) -> LoadError {
    move |source| LoadError::Map { name, source }
}

impl Tables {
    pub fn take(bpf: &mut Ebpf) -> Result<Self, LoadError> {
        Ok(Self {
            workloads: typed(bpf, names::WORKLOADS)?,
            cgroups: typed(bpf, names::CGROUPS)?,
            ports: typed(bpf, names::PORTS)?,
            cidrs: typed(bpf, names::CIDRS)?,
            denials: typed(bpf, names::DENIALS)?,
            listening: typed(bpf, names::LISTENING)?,
            listeners: typed(bpf, names::LISTENERS)?,
            sockets: typed(bpf, names::SOCKETS)?,
            profiles: typed(bpf, names::PROFILES)?,
            counters: typed(bpf, names::COUNTERS)?,
            pending: typed(bpf, names::PENDING)?,
            directions: typed(bpf, names::DIRECTIONS)?,
            probes: typed(bpf, names::PROBES)?,
            probes_lost: typed(bpf, names::PROBES_LOST)?,
            rules: Known::default(),
        })
    }

    /// The maps pinned in `directory` by another process.
    pub fn open(directory: &Path) -> Result<Self, LoadError> {
        Ok(Self {
            workloads: pinned(directory, names::WORKLOADS, Map::Array)?,
            cgroups: pinned(directory, names::CGROUPS, Map::HashMap)?,
            ports: pinned(directory, names::PORTS, Map::HashMap)?,
            cidrs: pinned(directory, names::CIDRS, Map::LpmTrie)?,
            denials: pinned(directory, names::DENIALS, Map::LpmTrie)?,
            listening: pinned(directory, names::LISTENING, Map::HashMap)?,
            listeners: pinned(directory, names::LISTENERS, Map::SockMap)?,
            sockets: pinned(directory, names::SOCKETS, Map::SkStorage)?,
            profiles: pinned(directory, names::PROFILES, Map::HashMap)?,
            counters: pinned(directory, names::COUNTERS, Map::PerCpuArray)?,
            pending: pinned(directory, names::PENDING, Map::HashMap)?,
            directions: pinned(directory, names::DIRECTIONS, Map::HashMap)?,
            probes: pinned(directory, names::PROBES, Map::HashMap)?,
            probes_lost: pinned(directory, names::PROBES_LOST, Map::PerCpuArray)?,
            rules: Known::default(),
        })
    }

    /// How many entries the maps hold that must be empty when nothing runs.
    pub fn entries(&self) -> Result<BTreeMap<&'static str, usize>, LoadError> {
        Ok(BTreeMap::from([
            (names::CGROUPS, self.cgroups.keys().count()),
            (names::PORTS, self.ports.keys().count()),
            (names::CIDRS, self.cidrs.keys().count()),
            (names::DENIALS, self.denials.keys().count()),
            (names::LISTENING, self.listening.keys().count()),
            (names::PENDING, self.pending.keys().count()),
            (names::DIRECTIONS, self.directions.keys().count()),
            (names::PROBES, self.probes.keys().count()),
            (names::PROFILES, self.profiles.keys().count()),
        ]))
    }

    pub fn workload(&self, slot: u32) -> Result<Workload, LoadError> {
        self.workloads.get(&slot, 0).map_err(of(names::WORKLOADS))
    }

    pub fn set_workload(&mut self, slot: u32, workload: Workload) -> Result<(), LoadError> {
        self.workloads
            .set(slot, workload, ANY)
            .map_err(of(names::WORKLOADS))
    }

    /// Says that tasks in the cgroup with `id` belong to a workload; replaces what was said before.
    pub fn set_cgroup(&mut self, id: u64, entry: CgroupEntry) -> Result<(), LoadError> {
        self.cgroups
            .insert(id, entry, ANY)
            .map_err(of(names::CGROUPS))
    }

    /// What was said of the cgroup with `id`.
    pub fn cgroup(&self, id: u64) -> Option<CgroupEntry> {
        self.cgroups.get(&id, 0).ok()
    }

    /// Ids of the cgroups of the workload in `slot`.
    pub fn cgroups_of(&self, slot: u32) -> Vec<u64> {
        let entries = self.cgroups.iter().flatten();
        entries
            .filter(|(_, entry)| entry.workload == slot)
            .map(|(id, _)| id)
            .collect()
    }

    /// Of these, those in one of the `ROLE_`s.
    pub fn cgroups_in_role(&self, slot: u32, role: u32) -> Vec<u64> {
        let entries = self.cgroups.iter().flatten();
        entries
            .filter(|(_, entry)| entry.workload == slot && entry.role == role)
            .map(|(id, _)| id)
            .collect()
    }

    /// Takes back [`Tables::set_cgroup`].
    pub fn forget_cgroup(&mut self, id: u64) -> Result<(), LoadError> {
        self.cgroups.remove(&id).map_err(of(names::CGROUPS))
    }

    /// Where the workload's inbound connections go. `listener`: a listening TCP socket of its namespace.
    pub fn set_listener(&mut self, slot: u32, listener: &impl AsRawFd) -> Result<(), LoadError> {
        self.listeners
            .set(slot, listener, ANY)
            .map_err(of(names::LISTENERS))
    }

    /// Marks a socket that existed before enrolment as the workload's.
    pub fn adopt_socket(
        &mut self,
        socket: &impl AsRawFd,
        state: SocketState,
    ) -> Result<(), LoadError> {
        self.sockets
            .insert(socket, state, ANY)
            .map_err(of(names::SOCKETS))
    }

    pub fn add_listening(&mut self, key: ListeningKey) -> Result<(), LoadError> {
        self.listening
            .insert(key, 1, ANY)
            .map_err(of(names::LISTENING))
    }

    /// Takes back [`Tables::add_listening`], and what the kernel half found itself.
    pub fn forget_listening(&mut self, key: ListeningKey) {
        // Not there: that is what is wanted.
        let _ = self.listening.remove(&key);
    }

    /// Forgets everything about the workload in `slot`.
    pub fn clear(&mut self, slot: u32) {
        // Best effort by nature: what is gone already is what is wanted.
        let _ = self.set_workload(slot, Workload::default());
        let _ = self.listeners.clear_index(&slot);
        for id in self.cgroups_of(slot) {
            let _ = self.cgroups.remove(&id);
        }
        self.clear_rules(slot);
        let listening: Vec<_> = self
            .listening
            .keys()
            .flatten()
            .filter(|key| key.workload == slot)
            .collect();
        for key in listening {
            let _ = self.listening.remove(&key);
        }
        self.reset_counts(slot);
    }

    /// Forgets what was counted and learned about the workload in `slot`.
    pub fn reset_counts(&mut self, slot: u32) {
        let profiles: Vec<_> = self
            .profiles
            .keys()
            .flatten()
            .filter(|key| key.workload == slot)
            .collect();
        for key in profiles {
            let _ = self.profiles.remove(&key);
        }
        let zeroes = nr_cpus()
            .map_err(|(_, e)| e)
            .and_then(|cpus| vec![Counters::default(); cpus].try_into());
        if let Ok(zeroes) = zeroes {
            let _ = self.counters.set(slot, zeroes, ANY);
        }
    }

    /// The flow of the socket with `cookie`, and the bytes that were ever redirected to it.
    pub fn received_by(&self, cookie: u64) -> Option<(FlowKey, u64)> {
        let mut directions = self.directions.iter().flatten();
        directions
            .find(|(_, direction)| direction.receiver == cookie)
            .map(|(flow, direction)| (flow, direction.sent_bytes))
    }

    /// Connections of the kubelet that found the map full: pods took them for anybody's.
    pub fn probes_lost(&self) -> Result<u64, LoadError> {
        let per_cpu = self.probes_lost.get(&0, 0);
        let per_cpu = per_cpu.map_err(of(names::PROBES_LOST))?;
        Ok(per_cpu.iter().sum())
    }

    /// What the kernel half counted for the workload, over all CPUs.
    pub fn counts(&self, slot: u32) -> Result<Vec<(Counter, u64)>, LoadError> {
        let per_cpu = self.counters.get(&slot, 0).map_err(of(names::COUNTERS))?;
        let sum = |counter: Counter| {
            per_cpu
                .iter()
                .map(|c| c.counts[counter as usize])
                .fold(0, u64::wrapping_add)
        };
        Ok(Counter::ALL
            .iter()
            .map(|counter| (*counter, sum(*counter)))
            .collect())
    }
}
