//! What userspace writes into the shared maps, and reads from them, for one workload.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    os::fd::AsRawFd,
    path::Path,
};

use aya::{
    Ebpf,
    maps::{
        Array, HashMap, Map, MapData, MapError, PerCpuArray, SkStorage, SockMap,
        lpm_trie::{Key, LpmTrie},
    },
    util::nr_cpus,
};
use sidecar_common::{
    address::Ip,
    flow::{Direction, FlowKey},
    names,
    origin::{Pending, SocketState},
    record::{Counter, Counters},
    settings::{
        CAPTURE_LISTED, CAPTURE_WORKLOAD, CIDR_EXCLUDE, Cgroup as CgroupEntry, CidrTarget,
        DenyTarget, INBOUND, ListeningKey, OUTBOUND, PORT_CAPTURE, PORT_EXCLUDE, PORT_NO_REDIRECT,
        PortKey, WORKLOAD_ADAPTIVE, WORKLOAD_ENROLLED, WORKLOAD_FAIL_CLOSED, WORKLOAD_REDIRECT,
        Workload,
    },
};

use super::load::LoadError;
use crate::model::{Cidr, EgressRule, FailRule, InboundCapture, Steering};

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

    /// Makes the rules of `slot` these: what is missing is added before what is obsolete goes.
    pub fn set_rules(&mut self, slot: u32, steering: &Steering) -> Result<(), LoadError> {
        let wanted = port_rules(slot, steering);
        for (key, rule) in &wanted {
            self.ports
                .insert(key.0, rule, ANY)
                .map_err(of(names::PORTS))?;
        }
        let obsolete = self.keys_of(slot, |key| !wanted.contains_key(&Sorted(*key)));
        for key in obsolete {
            self.ports.remove(&key).map_err(of(names::PORTS))?;
        }
        let wanted: Vec<_> = steering
            .outbound_exclude_cidrs
            .iter()
            .map(|cidr| cidr_key(slot, cidr))
            .collect();
        for key in &wanted {
            self.cidrs
                .insert(key, CIDR_EXCLUDE, ANY)
                .map_err(of(names::CIDRS))?;
        }
        for key in self.cidrs_of(slot) {
            if !wanted.iter().any(|w| same(w, &key)) {
                self.cidrs.remove(&key).map_err(of(names::CIDRS))?;
            }
        }
        let wanted = denials(slot, &steering.outbound_deny);
        for (key, rule) in &wanted {
            self.denials
                .insert(key, rule, ANY)
                .map_err(of(names::DENIALS))?;
        }
        for key in self.denials_of(slot) {
            let same = |(w, _): &(Key<DenyTarget>, u32)| {
                w.prefix_len() == key.prefix_len() && w.data() == key.data()
            };
            if !wanted.iter().any(same) {
                self.denials.remove(&key).map_err(of(names::DENIALS))?;
            }
        }
        Ok(())
    }

    /// Forgets everything about the workload in `slot`.
    pub fn clear(&mut self, slot: u32) {
        // Best effort by nature: what is gone already is what is wanted.
        let _ = self.set_workload(slot, Workload::default());
        let _ = self.listeners.clear_index(&slot);
        for id in self.cgroups_of(slot) {
            let _ = self.cgroups.remove(&id);
        }
        for key in self.keys_of(slot, |_| true) {
            let _ = self.ports.remove(&key);
        }
        for key in self.cidrs_of(slot) {
            let _ = self.cidrs.remove(&key);
        }
        for key in self.denials_of(slot) {
            let _ = self.denials.remove(&key);
        }
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

    fn keys_of(&self, slot: u32, filter: impl Fn(&PortKey) -> bool) -> Vec<PortKey> {
        self.ports
            .keys()
            .flatten()
            .filter(|key| key.workload == slot && filter(key))
            .collect()
    }

    fn denials_of(&self, slot: u32) -> Vec<Key<DenyTarget>> {
        let keys = self.denials.keys().flatten();
        keys.filter(|key| key.data().workload == slot).collect()
    }

    fn cidrs_of(&self, slot: u32) -> Vec<Key<CidrTarget>> {
        self.cidrs
            .keys()
            .flatten()
            .filter(|key| key.data().workload == slot)
            .collect()
    }
}

/// The entries for `rules`. Of rules for the same port and range the first one counts.
fn denials(slot: u32, rules: &[EgressRule]) -> Vec<(Key<DenyTarget>, u32)> {
    let mut entries: BTreeMap<(u16, u32, [u8; 16]), u32> = BTreeMap::new();
    let mapped = |cidr: &Cidr| match cidr.address() {
        IpAddr::V4(v4) => (96 + u32::from(cidr.prefix_bits()), v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => (u32::from(cidr.prefix_bits()), v6),
    };
    for (rule, number) in rules.iter().zip(1..) {
        for port in rule.kernel_ports() {
            for cidr in &rule.kernel_cidrs() {
                let (bits, ip) = mapped(cidr);
                entries.entry((port, bits, ip.octets())).or_insert(number);
            }
        }
    }
    // A range of IPv6 that IPv4's place in it is part of does not mean IPv4.
    let ports: BTreeSet<u16> = entries.keys().map(|(port, ..)| *port).collect();
    for port in ports {
        let v4 = std::net::Ipv4Addr::UNSPECIFIED.to_ipv6_mapped().octets();
        entries.entry((port, 96, v4)).or_insert(0);
    }
    let key = |((port, bits, ip), number): ((u16, u32, [u8; 16]), u32)| {
        let target = DenyTarget {
            workload: slot,
            port: u32::from(port),
            ip: Ip::from(IpAddr::from(ip)),
        };
        (Key::new(64 + bits, target), number)
    };
    entries.into_iter().map(key).collect()
}

/// The entry of a workload in `WORKLOADS`.
pub fn workload_entry(
    steering: &Steering,
    netns: u64,
    outbound_port: u16,
    redirect: bool,
) -> Workload {
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    Workload {
        outbound_port,
        capture: match steering.inbound_capture {
            InboundCapture::Workload => CAPTURE_WORKLOAD,
            InboundCapture::Listed => CAPTURE_LISTED,
            InboundCapture::None => 0,
        },
        flags: WORKLOAD_ENROLLED
            | flag(redirect && steering.redirect.enabled, WORKLOAD_REDIRECT)
            | flag(steering.redirect.adaptive, WORKLOAD_ADAPTIVE)
            | flag(steering.fail_rule == FailRule::Closed, WORKLOAD_FAIL_CLOSED),
        credit_bytes: steering.redirect.credit_bytes,
        generation: 0,
        netns,
        splices_since_ns: 0,
    }
}

/// `PortKey` in an order of its own, for sets.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sorted(PortKey);

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |k: &PortKey| (k.workload, k.direction, k.port);
        key(&self.0).cmp(&key(&other.0))
    }
}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn port_rules(slot: u32, steering: &Steering) -> BTreeMap<Sorted, u32> {
    let mut rules = BTreeMap::new();
    let mut add = |direction, port, rule| {
        *rules
            .entry(Sorted(PortKey {
                workload: slot,
                port,
                direction,
            }))
            .or_insert(0) |= rule;
    };
    steering
        .outbound_exclude_ports
        .iter()
        .for_each(|port| add(OUTBOUND, *port, PORT_EXCLUDE));
    steering
        .inbound_exclude_ports
        .iter()
        .for_each(|port| add(INBOUND, *port, PORT_EXCLUDE));
    steering
        .inbound_ports
        .iter()
        .for_each(|port| add(INBOUND, *port, PORT_CAPTURE));
    for port in &steering.redirect.exclude_ports {
        add(OUTBOUND, *port, PORT_NO_REDIRECT);
        add(INBOUND, *port, PORT_NO_REDIRECT);
    }
    rules
}

fn cidr_key(slot: u32, cidr: &Cidr) -> Key<CidrTarget> {
    let mapped = if matches!(cidr.address(), IpAddr::V4(_)) {
        96
    } else {
        0
    };
    let bits = 32 + mapped + u32::from(cidr.prefix_bits());
    Key::new(
        bits,
        CidrTarget {
            workload: slot,
            ip: Ip::from(cidr.address()),
        },
    )
}

fn same(a: &Key<CidrTarget>, b: &Key<CidrTarget>) -> bool {
    a.prefix_len() == b.prefix_len() && a.data() == b.data()
}
