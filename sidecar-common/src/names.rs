//! Names of maps and programs: the kernel half defines them, the loader looks them up.

/// Workloads by index.
pub const WORKLOADS: &str = "WORKLOADS";
/// cgroup id to workload and role.
pub const CGROUPS: &str = "CGROUPS";
/// Rules by workload, direction and port.
pub const PORTS: &str = "PORTS";
/// Rules by workload and destination prefix.
pub const CIDRS: &str = "CIDRS";
/// Denied destinations, and exceptions, by workload, port, protocol and prefix.
pub const DENIALS: &str = "DENIALS";
/// Where workloads listen, a map for each.
pub const LISTENING: &str = "LISTENING";
/// Workloads that have a network namespace of their own, by its cookie.
pub const NAMESPACES: &str = "NAMESPACES";
/// Until when what is not in [`LISTENING`] is known to be closed, by workload.
pub const CLOSED_UNTIL: &str = "CLOSED_UNTIL";
/// The proxies' inbound listeners, by workload index; IPv4 at `2i`, IPv6 at `2i + 1`.
pub const LISTENERS: &str = "LISTENERS";
/// Socket storage.
pub const SOCKETS: &str = "SOCKETS";
/// What connecting ends leave for accepting ends of the same workload, a map for each workload.
pub const HANDOVERS: &str = "HANDOVERS";
/// What a proxy's own connections leave, a map for each workload: no application can use it up.
pub const DIALS: &str = "DIALS";
/// Sockets whose both ends are on this node.
pub const FLOWS: &str = "FLOWS";
/// What connecting ends leave for accepting ends of other workloads.
pub const PAIRINGS: &str = "PAIRINGS";
/// State of the sockets in [`FLOWS`] that their other ends look at.
pub const HALF_FLOWS: &str = "HALF_FLOWS";
/// How redirect fares by port.
pub const PROFILES: &str = "PROFILES";
/// What the kernel half keeps of each workload itself.
pub const ACCOUNTS: &str = "ACCOUNTS";
/// Counters by workload, per CPU.
pub const COUNTERS: &str = "COUNTERS";
/// Events, of one sidecar's programs: a ring buffer has one reader.
pub const EVENTS: &str = "EVENTS";

/// What `msg_stub` calls: `msg_redirect`, or nothing.
pub const MSG_PROGRAMS: &str = "MSG_PROGRAMS";
/// Connections of the kubelet that are being made or exist.
pub const KUBELET_CONNECTIONS: &str = "KUBELET_CONNECTIONS";
/// How many of them found [`KUBELET_CONNECTIONS`] full.
pub const KUBELET_CONNECTIONS_LOST: &str = "KUBELET_CONNECTIONS_LOST";

/// Maps that every sidecar on the node shares, pinned by name.
pub const SHARED_MAPS: [&str; 21] = [
    WORKLOADS,
    CGROUPS,
    PORTS,
    CIDRS,
    DENIALS,
    LISTENING,
    CLOSED_UNTIL,
    NAMESPACES,
    LISTENERS,
    SOCKETS,
    HANDOVERS,
    DIALS,
    PAIRINGS,
    FLOWS,
    HALF_FLOWS,
    PROFILES,
    ACCOUNTS,
    COUNTERS,
    MSG_PROGRAMS,
    KUBELET_CONNECTIONS,
    KUBELET_CONNECTIONS_LOST,
];

pub const CGROUP_CONNECT4: &str = "cgroup_connect4";
pub const CGROUP_CONNECT6: &str = "cgroup_connect6";
pub const SOCK_CREATE: &str = "sock_create";
pub const LOOKUP_INBOUND: &str = "lookup_inbound";
pub const GETPEERNAME4: &str = "getpeername4";
pub const GETPEERNAME6: &str = "getpeername6";
pub const CGROUP_GETSOCKOPT: &str = "cgroup_getsockopt";
pub const CGROUP_SETSOCKOPT: &str = "cgroup_setsockopt";
pub const WORKLOAD_SOCKOPS: &str = "workload_sockops";
pub const MSG_REDIRECT: &str = "msg_redirect";
pub const MSG_STUB: &str = "msg_stub";
pub const KUBELET_SOCKOPS: &str = "kubelet_sockops";
pub const TRACE_SPLICE: &str = "trace_splice";

/// Where there are rules for destinations.
pub const EGRESS_CONNECT4: &str = "egress_connect4";
pub const EGRESS_CONNECT6: &str = "egress_connect6";
pub const EGRESS_SENDMSG4: &str = "egress_sendmsg4";
pub const EGRESS_SENDMSG6: &str = "egress_sendmsg6";
pub const EGRESS_PACKET: &str = "egress_packet";
pub const EGRESS_SETSOCKOPT: &str = "egress_setsockopt";
pub const EGRESS_FRAME: &str = "egress_frame";

/// `static` in .rodata: offsets and switches.
pub const LOAD_CONSTANTS: &str = "LOAD_CONSTANTS";
/// `static` in .rodata of `lookup_inbound`: whose inbound connections this instance steers.
pub const LOOKUP_WORKLOAD: &str = "LOOKUP_WORKLOAD";
