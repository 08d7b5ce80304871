//! What userspace writes into the shared maps, and reads from them, for one workload.

mod denials;
pub mod rules;
mod written;

pub use written::TooMany;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    os::fd::AsRawFd,
    path::Path,
    thread,
};

use aya::{
    Ebpf,
    maps::{
        Array, ArrayOfMaps, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockHash,
        SockMap, lpm_trie::LpmTrie,
    },
    util::nr_cpus,
};
use sidecar_common::{
    flow::{FlowKey, HalfFlow, KubeletConnection, Rendezvous},
    names,
    record::{Account, Counter, Counters},
    settings::{
        Cgroup as CgroupEntry, CidrTarget, DenyTarget, LISTENING_EXCLUDED, ListeningKey,
        MAX_HANDOVERS, MAX_LISTENING, MAX_WORKLOADS, PortKey, ROLE_APPLICATION, Workload,
    },
    socket_state::SocketState,
};

use self::written::Known;
use super::{listening::monotonic_ns, load::LoadError};
use crate::sys::bpf;

const ANY: u64 = 0;
const NOEXIST: u64 = 1;
/// Of maps: entries are allocated when they are used.
const NO_PREALLOC: u32 = 1;
/// Longer than the kernel tries to make a connection: tcp_syn_retries, by default for 127 s.
const FORGOTTEN_NS: u64 = 150_000_000_000;
/// Longer than the system call takes that keeps a place and uses it.
const UNUSED_NS: u64 = 5_000_000_000;

/// What connecting sockets leave: those of one workload for each other, or of all for other workloads.
type Handovers = HashMap<MapData, FlowKey, Rendezvous>;

/// Where the sockets of one workload listen.
type Listening = HashMap<MapData, ListeningKey, u64>;

/// Typed handles of the shared maps.
pub struct Tables {
    workloads: Array<MapData, Workload>,
    cgroups: HashMap<MapData, u64, CgroupEntry>,
    ports: HashMap<MapData, PortKey, u32>,
    cidrs: LpmTrie<MapData, CidrTarget, u32>,
    denials: LpmTrie<MapData, DenyTarget, u32>,
    listening: ArrayOfMaps<MapData, Listening>,
    closed_until: Array<MapData, u64>,
    namespaces: HashMap<MapData, u64, u32>,
    listeners: SockMap<MapData>,
    sockets: SkStorage<MapData, SocketState>,
    profiles: HashMap<MapData, PortKey, sidecar_common::record::Profile>,
    accounts: Array<MapData, Account>,
    counters: PerCpuArray<MapData, Counters>,
    handovers: ArrayOfMaps<MapData, Handovers>,
    dials: ArrayOfMaps<MapData, Handovers>,
    pairings: Handovers,
    half_flows: HashMap<MapData, u64, HalfFlow>,
    flows: SockHash<MapData, u64>,
    probes: HashMap<MapData, FlowKey, KubeletConnection>,
    probes_lost: PerCpuArray<MapData, u64>,
    /// Cookies in `half_flows` that were not in `flows` at the last look.
    suspects: BTreeSet<u64>,
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

/// Makes the arrays of workloads' own maps and pins them in `directory`, unless they are there. The loader would make them with
/// the types of what the own maps hold; those that are made later know none, and before Linux 6.2 that makes them other maps.
pub fn make_arrays(directory: &Path) -> Result<(), LoadError> {
    make_array::<FlowKey, Rendezvous>(directory, names::HANDOVERS, MAX_HANDOVERS)?;
    make_array::<FlowKey, Rendezvous>(directory, names::DIALS, MAX_HANDOVERS)?;
    make_array::<ListeningKey, u64>(directory, names::LISTENING, MAX_LISTENING)
}

/// `entries`: of each own map.
fn make_array<K, V>(directory: &Path, name: &'static str, entries: u32) -> Result<(), LoadError> {
    let pin = directory.join(name);
    if pin.exists() {
        return Ok(());
    }
    let made = bpf::hash_map(size_of::<K>(), size_of::<V>(), entries, NO_PREALLOC)
        .and_then(|template| bpf::array_of_maps(name, &template, MAX_WORKLOADS))
        .and_then(|made| bpf::pin(&made, &pin));
    made.map_err(|source| LoadError::Array { name, source })
}

/// Removes records that nobody can come for any more.
fn remove_forgotten(records: &mut Handovers) {
    let now_ns = monotonic_ns();
    let forgotten = |(flow, record): &(FlowKey, Rendezvous)| {
        // A place that was kept, and not used within the same system call, has no ports.
        let lasts_ns = match flow.local.port {
            0 => UNUSED_NS,
            _ => FORGOTTEN_NS,
        };
        now_ns.saturating_sub(record.since_ns) > lasts_ns
    };
    let left: Vec<_> = records.iter().flatten().filter(forgotten).collect();
    for (flow, record) in left {
        // The same addresses and ports may be those of a new connection.
        if records
            .get(&flow, 0)
            .is_ok_and(|now| now.owner == record.owner)
        {
            let _ = records.remove(&flow);
        }
    }
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
            closed_until: typed(bpf, names::CLOSED_UNTIL)?,
            namespaces: typed(bpf, names::NAMESPACES)?,
            listeners: typed(bpf, names::LISTENERS)?,
            sockets: typed(bpf, names::SOCKETS)?,
            profiles: typed(bpf, names::PROFILES)?,
            accounts: typed(bpf, names::ACCOUNTS)?,
            counters: typed(bpf, names::COUNTERS)?,
            handovers: typed(bpf, names::HANDOVERS)?,
            dials: typed(bpf, names::DIALS)?,
            pairings: typed(bpf, names::PAIRINGS)?,
            half_flows: typed(bpf, names::HALF_FLOWS)?,
            flows: typed(bpf, names::FLOWS)?,
            probes: typed(bpf, names::KUBELET_CONNECTIONS)?,
            probes_lost: typed(bpf, names::KUBELET_CONNECTIONS_LOST)?,
            suspects: BTreeSet::new(),
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
            listening: pinned(directory, names::LISTENING, Map::ArrayOfMaps)?,
            closed_until: pinned(directory, names::CLOSED_UNTIL, Map::Array)?,
            namespaces: pinned(directory, names::NAMESPACES, Map::HashMap)?,
            listeners: pinned(directory, names::LISTENERS, Map::SockMap)?,
            sockets: pinned(directory, names::SOCKETS, Map::SkStorage)?,
            profiles: pinned(directory, names::PROFILES, Map::HashMap)?,
            accounts: pinned(directory, names::ACCOUNTS, Map::Array)?,
            counters: pinned(directory, names::COUNTERS, Map::PerCpuArray)?,
            handovers: pinned(directory, names::HANDOVERS, Map::ArrayOfMaps)?,
            dials: pinned(directory, names::DIALS, Map::ArrayOfMaps)?,
            pairings: pinned(directory, names::PAIRINGS, Map::LruHashMap)?,
            half_flows: pinned(directory, names::HALF_FLOWS, Map::HashMap)?,
            flows: pinned(directory, names::FLOWS, Map::SockHash)?,
            probes: pinned(directory, names::KUBELET_CONNECTIONS, Map::HashMap)?,
            probes_lost: pinned(directory, names::KUBELET_CONNECTIONS_LOST, Map::PerCpuArray)?,
            suspects: BTreeSet::new(),
            rules: Known::default(),
        })
    }

    /// How many entries the maps hold that must be empty when nothing runs.
    pub fn entries(&self) -> Result<BTreeMap<&'static str, usize>, LoadError> {
        Ok(BTreeMap::from([
            (names::CGROUPS, self.cgroups.keys().count()),
            (names::NAMESPACES, self.namespaces.keys().count()),
            (names::PORTS, self.ports.keys().count()),
            (names::CIDRS, self.cidrs.keys().count()),
            (names::DENIALS, self.denials.keys().count()),
            (names::HANDOVERS, self.waiting(&self.handovers)),
            (names::DIALS, self.waiting(&self.dials)),
            (names::PAIRINGS, self.pairings.keys().count()),
            (names::HALF_FLOWS, self.half_flows.keys().count()),
            (names::KUBELET_CONNECTIONS, self.probes.keys().count()),
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

    /// What the kernel half keeps of the workload in `slot` itself.
    pub fn account(&self, slot: u32) -> Result<Account, LoadError> {
        self.accounts.get(&slot, 0).map_err(of(names::ACCOUNTS))
    }

    /// Only while the workload is not steered.
    pub fn reset_account(&mut self, slot: u32) -> Result<(), LoadError> {
        self.accounts
            .set(slot, Account::default(), ANY)
            .map_err(of(names::ACCOUNTS))
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

    /// What is said of these cgroups, and of all others of the same workloads.
    pub fn cgroups_beside(&self, ids: &[u64]) -> Vec<(u64, CgroupEntry)> {
        let slots: BTreeSet<u32> = ids
            .iter()
            .filter_map(|id| Some(self.cgroup(*id)?.workload))
            .collect();
        if slots.is_empty() {
            return Vec::new();
        }
        let entries = self.cgroups.iter().flatten();
        entries
            .filter(|(_, entry)| slots.contains(&entry.workload))
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

    /// Of these, those that are not the application's: the proxy's, and what is excluded.
    pub fn cgroups_left_alone(&self, slot: u32) -> BTreeSet<u64> {
        let entries = self.cgroups.iter().flatten();
        entries
            .filter(|(_, entry)| entry.workload == slot && entry.role != ROLE_APPLICATION)
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

    /// The workload in `slot` listens at these places and, but for those that were noted since `before_ns`, at no others. With
    /// each place: whether only processes of excluded cgroups listen there. `doubtful`: places that are neither added nor removed.
    pub fn renew_listening(
        &mut self,
        slot: u32,
        places: &BTreeMap<ListeningKey, bool>,
        doubtful: &BTreeSet<ListeningKey>,
        before_ns: u64,
    ) -> Result<(), LoadError> {
        let mut listening = self.listening.get(&slot, 0).map_err(of(names::LISTENING))?;
        let known: BTreeMap<ListeningKey, u64> = listening.iter().flatten().collect();
        // First what goes: a map that was full takes what is there now.
        for (place, noted) in &known {
            let old = noted & !LISTENING_EXCLUDED < before_ns;
            if old && !places.contains_key(place) && !doubtful.contains(place) {
                // Not there: that is what is wanted.
                let _ = listening.remove(place);
            }
        }
        let mut result = Ok(());
        for (place, alone) in places {
            let excluded = if *alone { LISTENING_EXCLUDED } else { 0 };
            let flags = match known.get(place) {
                None => NOEXIST,
                // What the kernel half has noted since is newer than what was seen.
                Some(noted) if noted & !LISTENING_EXCLUDED >= before_ns => continue,
                Some(noted) if noted & LISTENING_EXCLUDED == excluded => continue,
                Some(_) => ANY,
            };
            let noted = listening.insert(place, before_ns | excluded, flags);
            let there = |error: &MapError| matches!(error, MapError::SyscallError(e) if e.io_error.kind() == io::ErrorKind::AlreadyExists);
            if let Err(error) = noted
                && !there(&error)
            {
                result = Err(of(names::LISTENING)(error));
            }
        }
        result
    }

    /// Says that nobody but the workload in `slot` uses the network namespace with the cookie `netns`.
    pub fn own_namespace(&mut self, netns: u64, slot: u32) -> Result<(), LoadError> {
        let said = self.namespaces.insert(netns, slot, ANY);
        said.map_err(of(names::NAMESPACES))
    }

    /// Until then the workload in `slot` listens nowhere else than is known.
    pub fn close_until(&mut self, slot: u32, until_ns: u64) {
        // Best effort: where it fails what was said before runs out.
        let _ = self.closed_until.set(slot, until_ns, ANY);
    }

    /// Gives the workload in `slot` maps of its own, empty. Those of a former one in the slot serve again: a new one waits for
    /// every program that runs.
    pub fn make_own(&mut self, slot: u32) -> Result<(), LoadError> {
        if self.has_own(slot) {
            self.empty_own(slot);
            return Ok(());
        }
        let listening = &mut self.listening;
        let make = |all: &mut ArrayOfMaps<MapData, Handovers>| {
            let made = Handovers::create(MAX_HANDOVERS, NO_PREALLOC)?;
            all.set(slot, &made, ANY)
        };
        let waits = [
            (names::HANDOVERS, &mut self.handovers),
            (names::DIALS, &mut self.dials),
        ];
        // The waits are one.
        thread::scope(|scope| {
            let waits = waits.map(|(name, all)| (name, scope.spawn(move || make(all))));
            let made = Listening::create(MAX_LISTENING, NO_PREALLOC);
            made.and_then(|made| listening.set(slot, &made, ANY))
                .map_err(of(names::LISTENING))?;
            for (name, made) in waits {
                let made = made.join().unwrap_or(Err(MapError::KeyNotFound));
                made.map_err(of(name))?;
            }
            Ok(())
        })
    }

    /// Whether the slot has maps of its own, from whichever workload.
    pub fn has_own(&self, slot: u32) -> bool {
        self.handovers.get(&slot, 0).is_ok()
            && self.dials.get(&slot, 0).is_ok()
            && self.listening.get(&slot, 0).is_ok()
    }

    fn empty_own(&mut self, slot: u32) {
        // Best effort by nature: what is gone already is what is wanted.
        for all in [&self.handovers, &self.dials] {
            let Ok(mut handovers) = all.get(&slot, 0) else {
                continue;
            };
            let left: Vec<FlowKey> = handovers.keys().flatten().collect();
            for flow in left {
                let _ = handovers.remove(&flow);
            }
        }
        if let Ok(mut listening) = self.listening.get(&slot, 0) {
            let left: Vec<ListeningKey> = listening.keys().flatten().collect();
            for place in left {
                let _ = listening.remove(&place);
            }
        }
    }

    /// Removes what sockets have left behind whose end no hook has told, because another program on their cgroup had the
    /// kernel call it alone. `slots`: the workloads to look at.
    pub fn collect_garbage(&mut self, slots: &[u32]) {
        let noted: BTreeSet<u64> = self.half_flows.keys().flatten().collect();
        let alive: BTreeSet<u64> = match noted.is_empty() {
            true => BTreeSet::new(),
            false => self.flows.keys().flatten().collect(),
        };
        let dead: BTreeSet<u64> = noted.difference(&alive).copied().collect();
        // A socket that enters is in the first of the two maps before it is in the second: only who is not there twice has gone.
        for cookie in dead.intersection(&self.suspects) {
            // Not there: that is what is wanted.
            let _ = self.half_flows.remove(cookie);
        }
        self.suspects = dead;
        for slot in slots {
            for all in [&self.handovers, &self.dials] {
                if let Ok(mut handovers) = all.get(slot, 0) {
                    remove_forgotten(&mut handovers);
                }
            }
        }
        remove_forgotten(&mut self.pairings);
        let now_ns = monotonic_ns();
        let old = |noted: &KubeletConnection| now_ns.saturating_sub(noted.since_ns) > FORGOTTEN_NS;
        let left = self.probes.iter().flatten();
        let left: Vec<_> = left.filter(|(_, noted)| old(noted)).collect();
        for (flow, noted) in left {
            // The same addresses and ports may be those of a new connection.
            if self.probes.get(&flow, 0).is_ok_and(|now| now == noted) {
                let _ = self.probes.remove(&flow);
            }
        }
    }

    /// How many have been left in the maps of all workloads, and not been taken.
    fn waiting(&self, all: &ArrayOfMaps<MapData, Handovers>) -> usize {
        let own = (0..all.len()).filter_map(|slot| all.get(&slot, 0).ok());
        own.map(|handovers| handovers.keys().count()).sum()
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
        // What is joined with sockets of a former workload is joined no more.
        let flows = self.half_flows.iter().flatten();
        let flows: Vec<u64> = flows
            .filter(|(_, half)| half.workload == slot)
            .map(|(cookie, _)| cookie)
            .collect();
        for cookie in flows {
            let _ = self.half_flows.remove(&cookie);
        }
        self.close_until(slot, 0);
        let own = self.namespaces.iter().flatten();
        let own: Vec<u64> = own
            .filter(|(_, owner)| *owner == slot)
            .map(|(netns, _)| netns)
            .collect();
        for netns in own {
            let _ = self.namespaces.remove(&netns);
        }
        self.empty_own(slot);
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
        let _ = self.reset_account(slot);
        let zeroes = nr_cpus()
            .map_err(|(_, e)| e)
            .and_then(|cpus| vec![Counters::default(); cpus].try_into());
        if let Ok(zeroes) = zeroes {
            let _ = self.counters.set(slot, zeroes, ANY);
        }
    }

    /// Connections of the kubelet that found the map full: pods took them for anybody's.
    pub fn probes_lost(&self) -> Result<u64, LoadError> {
        let per_cpu = self.probes_lost.get(&0, 0);
        let per_cpu = per_cpu.map_err(of(names::KUBELET_CONNECTIONS_LOST))?;
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
