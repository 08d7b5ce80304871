//! The maps, all shared by the sidecars of a node. Names as in `sidecar_common::names`.

use aya_ebpf::{
    btf_maps::{
        Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf,
        SockHash, SockMap,
    },
    macros::btf_map,
};
use sidecar_common::{
    flow::{FlowKey, HalfFlow, KubeletConnection, Rendezvous},
    record::{Account, Counters, Event, Profile},
    settings::{
        Cgroup, CidrTarget, DenyTarget, ListeningKey, MAX_FLOWS, MAX_HANDOVERS,
        MAX_KUBELET_CONNECTIONS, MAX_LISTENING, MAX_PAIRINGS, MAX_WORKLOADS, PortKey, Workload,
    },
    socket_state::SocketState,
};

use crate::context::SocketStorage;

const FLOW_SLOTS: usize = MAX_FLOWS as usize;
const WORKLOAD_SLOTS: usize = MAX_WORKLOADS as usize;

/// Entries are allocated when used: most nodes use few.
const NO_PREALLOC: usize = 1;

#[btf_map]
pub static WORKLOADS: Array<Workload, WORKLOAD_SLOTS> = Array::new();

#[btf_map]
pub static CGROUPS: HashMap<u64, Cgroup, { WORKLOAD_SLOTS * 4 }, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static PORTS: HashMap<PortKey, u32, 65_536, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static CIDRS: LpmTrie<CidrTarget, u32, 65_536> = LpmTrie::new();

#[btf_map]
pub static DENIALS: LpmTrie<DenyTarget, u32, 65_536> = LpmTrie::new();

/// A map for each workload, made when it is enrolled.
#[btf_map]
pub static LISTENING: ArrayOfMaps<Listening, WORKLOAD_SLOTS> = ArrayOfMaps::new();

pub type Listening = HashMap<ListeningKey, u64, { MAX_LISTENING as usize }, NO_PREALLOC>;

#[btf_map]
pub static NAMESPACES: HashMap<u64, u32, WORKLOAD_SLOTS, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static CLOSED_UNTIL: Array<u64, WORKLOAD_SLOTS> = Array::new();

#[btf_map]
pub static LISTENERS: SockMap<WORKLOAD_SLOTS> = SockMap::new();

#[btf_map]
pub static SOCKETS: SocketStorage<SocketState> = SocketStorage::new();

/// What applications' connecting sockets leave for accepted ones of the same workload: a map for each workload, made when it is enrolled,
/// so that none can use up another's.
#[btf_map]
pub static HANDOVERS: ArrayOfMaps<Handovers, WORKLOAD_SLOTS> = ArrayOfMaps::new();

/// The same of proxies' own connections, so that their applications cannot use it up.
#[btf_map]
pub static DIALS: ArrayOfMaps<Handovers, WORKLOAD_SLOTS> = ArrayOfMaps::new();

pub type Handovers = HashMap<FlowKey, Rendezvous, { MAX_HANDOVERS as usize }, NO_PREALLOC>;

/// What they leave for sockets of other workloads. Only redirect depends on it: when it is full, the oldest are forgotten.
#[btf_map]
pub static PAIRINGS: LruHashMap<FlowKey, Rendezvous, { MAX_PAIRINGS as usize }> = LruHashMap::new();

/// By socket cookie.
#[btf_map]
pub static FLOWS: SockHash<u64, FLOW_SLOTS> = SockHash::new();

/// By socket cookie.
#[btf_map]
pub static HALF_FLOWS: HashMap<u64, HalfFlow, FLOW_SLOTS, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static PROFILES: HashMap<PortKey, Profile, 16_384, NO_PREALLOC> = HashMap::new();

#[btf_map]
pub static ACCOUNTS: Array<Account, WORKLOAD_SLOTS> = Array::new();

#[btf_map]
pub static COUNTERS: PerCpuArray<Counters, WORKLOAD_SLOTS> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, { 256 * 1024 }> = RingBuf::new();

#[btf_map]
pub static MSG_PROGRAMS: ProgramArray<1> = ProgramArray::new();

/// Keyed by the flow of the socket that will be accepted.
#[btf_map]
pub static KUBELET_CONNECTIONS: HashMap<
    FlowKey,
    KubeletConnection,
    { MAX_KUBELET_CONNECTIONS as usize },
    NO_PREALLOC,
> = HashMap::new();

#[btf_map]
pub static KUBELET_CONNECTIONS_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();
