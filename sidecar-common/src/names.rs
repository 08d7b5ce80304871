//! Names of maps and programs: the kernel half defines them, the loader looks them up.

/// Workloads by index.
pub const WORKLOADS: &str = "WORKLOADS";
/// cgroup id to workload and role.
pub const CGROUPS: &str = "CGROUPS";
/// Rules by workload, direction and port.
pub const PORTS: &str = "PORTS";
/// Rules by workload and destination prefix.
pub const CIDRS: &str = "CIDRS";
/// Denied destinations by workload, port and prefix.
pub const DENIALS: &str = "DENIALS";
/// Ports on which workloads listen.
pub const LISTENING: &str = "LISTENING";
/// The proxies' inbound listeners, by workload index; IPv4 at `2i`, IPv6 at `2i + 1`.
pub const LISTENERS: &str = "LISTENERS";
/// Socket storage.
pub const SOCKETS: &str = "SOCKETS";
/// What connecting ends leave for accepting ends.
pub const PENDING: &str = "PENDING";
/// Sockets whose both ends are on this node.
pub const FLOWS: &str = "FLOWS";
/// Evidence by receiver.
pub const DIRECTIONS: &str = "DIRECTIONS";
/// How redirect fares by port.
pub const PROFILES: &str = "PROFILES";
/// Counters by workload, per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// Events, of one sidecar's programs: a ring buffer has one reader.
pub const EVENTS: &str = "EVENTS";

/// What `relay_stub` calls: `relay_message`, or nothing.
pub const RELAYS: &str = "RELAYS";
/// Connections of the kubelet that are being made or exist.
pub const PROBES: &str = "PROBES";
/// How many of them found [`PROBES`] full.
pub const PROBES_LOST: &str = "PROBES_LOST";

/// Maps that every sidecar on the node shares, pinned by name.
pub const SHARED_MAPS: [&str; 16] = [
    WORKLOADS,
    CGROUPS,
    PORTS,
    CIDRS,
    DENIALS,
    LISTENING,
    LISTENERS,
    SOCKETS,
    PENDING,
    FLOWS,
    DIRECTIONS,
    PROFILES,
    COUNTERS,
    RELAYS,
    PROBES,
    PROBES_LOST,
];

pub const ACCEPT_CONNECT4: &str = "accept_connect4";
pub const ACCEPT_CONNECT6: &str = "accept_connect6";
pub const ACCEPT_SOCKET: &str = "accept_socket";
pub const ACCEPT_LOOKUP: &str = "accept_lookup";
pub const ORIGIN_PEERNAME4: &str = "origin_peername4";
pub const ORIGIN_PEERNAME6: &str = "origin_peername6";
pub const ORIGIN_GETSOCKOPT: &str = "origin_getsockopt";
pub const ORIGIN_SETSOCKOPT: &str = "origin_setsockopt";
pub const RELAY_SOCKOPS: &str = "relay_sockops";
pub const RELAY_MESSAGE: &str = "relay_message";
pub const RELAY_STUB: &str = "relay_stub";
pub const PROBE_SOCKOPS: &str = "probe_sockops";
pub const RECORD_SPLICE: &str = "record_splice";

/// `static` in .rodata: offsets and switches.
pub const TUNABLES: &str = "TUNABLES";
/// `static` in .rodata of `accept_lookup`: whose inbound connections this instance steers.
pub const LOOKUP_WORKLOAD: &str = "LOOKUP_WORKLOAD";
