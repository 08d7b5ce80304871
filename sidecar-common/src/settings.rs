//! What userspace tells the kernel half: workloads, their cgroups and listeners, exclusions, constants.

use crate::address::Ip;

/// Workloads on one node at most.
pub const MAX_WORKLOADS: u32 = 4096;
/// Flows redirected at once at most; beyond it connections stay on TCP and are counted.
pub const MAX_FLOWS: u32 = 65_536;

/// Connections of one workload's application at once that are being made, and of its proxy: beyond it, they are refused.
pub const MAX_HANDOVERS: u32 = 8192;
/// Connections between workloads of the node at once that are being made and still find each other for redirect.
pub const MAX_PAIRINGS: u32 = 16_384;

/// Places at which one workload listens that are remembered. Where there are more, none counts as closed.
pub const MAX_LISTENING: u32 = 4096;

/// Prefixes of one workload's routing whose source addresses are remembered.
pub const MAX_ROUTES: u32 = 128;
/// Devices of one workload's network namespace that are remembered.
pub const MAX_DEVICES: u32 = 64;

/// Connections of the kubelet at once at most.
pub const MAX_KUBELET_CONNECTIONS: u32 = 16_384;

/// A cgroup that belongs to a workload.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cgroup {
    pub workload: u32,
    /// One of the `ROLE_` constants.
    pub role: u32,
    /// See [`Workload::enrolment`].
    pub enrolment: u64,
}

pub const ROLE_APPLICATION: u32 = 1;
pub const ROLE_PROXY: u32 = 2;
/// Below the application's cgroup, and none of the workload's.
pub const ROLE_EXCLUDED: u32 = 3;

/// One enrolled workload. A zeroed entry is a free one.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workload {
    /// The proxy's outbound listener on loopback, host order; 0: no steering.
    pub outbound_port: u16,
    /// One of the `CAPTURE_` constants.
    pub capture: u16,
    /// Flags, see the `WORKLOAD_` constants.
    pub flags: u32,
    /// Credit of one direction of one flow.
    pub credit_bytes: u32,
    /// Why redirect goes no further than its flags say: userspace's number, for `sidecar inspect`.
    pub redirect_limit: u32,
    /// Which enrolment it is: no later one of the node has the same, while places among the workloads are used again. What bears
    /// another one is of a workload that has left. Never 0 of one that is enrolled.
    pub enrolment: u64,
    /// Cookie of the workload's network namespace.
    pub netns: u64,
}

/// In use.
pub const WORKLOAD_ENROLLED: u32 = 1;
/// Redirect is allowed, between proxies at least.
pub const WORKLOAD_REDIRECT: u32 = 2;
/// And from applications to their proxies.
pub const WORKLOAD_REDIRECT_TO_PROXIES: u32 = 64;
/// And from proxies to their applications.
pub const WORKLOAD_REDIRECT_TO_APPLICATIONS: u32 = 128;
/// And past the proxies, between applications.
pub const WORKLOAD_REDIRECT_JOINED: u32 = 256;
/// A process of the application read a socket with `splice`: never redirect towards it. Never in the map of workloads, but in the
/// workload's `Account`.
pub const WORKLOAD_SPLICES: u32 = 4;
/// As above, for the proxy.
pub const WORKLOAD_PROXY_SPLICES: u32 = 16;
/// Without a proxy, refuse rather than bypass.
pub const WORKLOAD_FAIL_CLOSED: u32 = 8;

/// Connections to ports where redirect does not pay stay out of the SOCKHASH.
pub const WORKLOAD_ADAPTIVE: u32 = 32;
/// There are rules in `DENIALS` for it.
pub const WORKLOAD_DENIES: u32 = 512;

/// Destinations that no service claims may be reached: link-local ones, which cannot be steered, may be left alone.
pub const WORKLOAD_PASSES_UNKNOWN: u32 = 1024;

/// The kubelet's connections pass to the ports with `PORT_PROBE` only, not to all.
pub const WORKLOAD_PROBES_LISTED: u32 = 2048;

/// Inbound: every port on which the workload listens.
pub const CAPTURE_WORKLOAD: u16 = 1;
/// Inbound: ports with `PORT_CAPTURE` only.
pub const CAPTURE_LISTED: u16 = 2;
/// Inbound, in a network namespace of the workload's own: every port but those that are known to be closed.
pub const CAPTURE_NAMESPACE: u16 = 3;

/// A port of a workload, as destination (outbound) or as its own (inbound).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PortKey {
    pub workload: u32,
    /// Host order.
    pub port: u16,
    /// `INBOUND` or `OUTBOUND`.
    pub direction: u16,
}

pub const OUTBOUND: u16 = 1;
pub const INBOUND: u16 = 2;

/// Value of a port rule.
pub const PORT_EXCLUDE: u32 = 1;
pub const PORT_NO_REDIRECT: u32 = 2;
pub const PORT_CAPTURE: u32 = 4;
/// The kubelet may ask the application there; see [`WORKLOAD_PROBES_LISTED`].
pub const PORT_PROBE: u32 = 8;

/// What a destination range is matched by, most significant first: prefix length = 32 + bits of the v6 form.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CidrTarget {
    pub workload: u32,
    pub ip: Ip,
}

pub const CIDR_EXCLUDE: u32 = 1;

/// What a rule for destinations is matched by: prefix length = 64 + bits of the v6 form. The value is a [`Ruling`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DenyTarget {
    pub workload: u32,
    /// Host order; 0: every port, and what has none.
    pub port: u16,
    /// Number of the IP protocol; 0: every one.
    pub protocol: u16,
    pub ip: Ip,
}

/// What a rule says of the destinations that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ruling(pub u32);

impl Ruling {
    /// Says neither: of what a shorter prefix does not mean, or where there is no rule.
    pub const NONE: Self = Self(0);

    const BITS_AT: u32 = 16;
    const ALLOW: u32 = 1 << 31;

    /// `rule`: its position plus one. `bits`: of its range, in the v6 form.
    pub const fn deny(rule: u16, bits: u32) -> Self {
        Self((bits & 0xff) << Self::BITS_AT | rule as u32)
    }

    /// An exception from wider rules.
    pub const fn allow(bits: u32) -> Self {
        Self((bits & 0xff) << Self::BITS_AT | Self::ALLOW)
    }

    #[inline(always)]
    pub const fn allows(self) -> bool {
        self.0 & Self::ALLOW != 0
    }

    #[inline(always)]
    pub const fn denies(self) -> bool {
        self.0 != 0 && !self.allows()
    }

    /// The rule that denies, as it was given.
    #[inline(always)]
    pub const fn rule(self) -> u32 {
        self.0 & 0xffff
    }

    /// Bits of the range.
    #[inline(always)]
    pub const fn bits(self) -> u32 {
        self.0 >> Self::BITS_AT & 0xff
    }
}

/// Numbers of IP protocols, of linux/in.h.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const DCCP: u8 = 33;
    pub const ICMPV6: u8 = 58;
    pub const SCTP: u8 = 132;
    pub const UDP_LITE: u8 = 136;

    /// Whether its packets name ports.
    #[inline(always)]
    pub const fn has_ports(protocol: u8) -> bool {
        matches!(protocol, TCP | UDP | DCCP | SCTP | UDP_LITE)
    }
}

/// A device of a workload's network namespace is found by its index, without a name, and by its name, with index 0.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct DeviceKey {
    pub workload: u32,
    pub index: u32,
    /// Zeroes follow it, one at least.
    pub name: [u8; DEVICE_NAME_BYTES],
}

/// A device of a workload's network namespace.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Device {
    pub index: u32,
    pub name: [u8; DEVICE_NAME_BYTES],
    /// The source addresses of what leaves by it, all zero where it has none.
    pub v4: Ip,
    pub v6: Ip,
}

/// `IFNAMSIZ`
pub const DEVICE_NAME_BYTES: usize = 16;

/// Where a socket of a workload listens. The value in the map is when that was noted, in nanoseconds of the monotonic clock,
/// and [`LISTENING_EXCLUDED`].
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct ListeningKey {
    /// `0.0.0.0` and `::` are every address of their family.
    pub ip: Ip,
    /// Host order.
    pub port: u32,
}

/// In the value: only processes of excluded cgroups listen there.
pub const LISTENING_EXCLUDED: u64 = 1 << 63;

/// Redirect on any map hit.
pub const NAIVE_REDIRECT: u32 = 1;
/// Go past the proxies whatever is under way between.
pub const NAIVE_JOIN: u32 = 2;

/// Offsets into the running kernel's structures, from its BTF; and switches fixed at load.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LoadConstants {
    /// `tcp_sock.copied_seq`
    pub copied_seq: u32,
    /// `tcp_sock.write_seq`
    pub write_seq: u32,
    /// `sock.sk_user_data`
    pub sk_user_data: u32,
    /// `sk_psock.ingress_msg`
    pub ingress_msg: u32,
    /// 1 when the start-up self-test passed (or is running).
    pub redirect: u32,
    /// Which evidence is not asked for: one of the `NAIVE_` constants. For tests that must catch it, never for use.
    pub naive: u32,
    /// Number of `splice(2)` on this architecture.
    pub splice_number: u32,
    /// Numbers of the system calls that read a socket whichever way its bytes came: `read`, `readv`, `recvfrom`, `recvmsg`,
    /// `recvmmsg`.
    pub read_numbers: [u32; 5],
    /// Offset of a system call's number in `pt_regs`.
    pub call_number: u32,
    /// `task_struct.flags`
    pub task_flags: u32,
    /// `sock.sk_socket`
    pub sk_socket: u32,
    /// `socket.file`
    pub socket_file: u32,
    /// `file.f_flags`
    pub file_flags: u32,
    /// `inet_connection_sock.icsk_ulp_ops`
    pub ulp_ops: u32,
    /// 1 where programs at `connect` may choose the error (`bpf_set_retval`, Linux 5.18).
    pub set_retval: u32,
}

const _: () = assert!(
    size_of::<DenyTarget>() == 24
        && size_of::<Workload>() == 32
        && size_of::<CidrTarget>() == 20
        && size_of::<PortKey>() == 8
);
const _: () = assert!(
    size_of::<ListeningKey>() == 20
        && size_of::<LoadConstants>() == 76
        && size_of::<Cgroup>() == 16
);
const _: () = assert!(size_of::<DeviceKey>() == 24 && size_of::<Device>() == 52);

#[cfg(feature = "user")]
mod user {
    // SAFETY: repr(C), no padding, any bytes are a value.
    unsafe impl aya::Pod for super::Cgroup {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Workload {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::PortKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::CidrTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DenyTarget {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::ListeningKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::DeviceKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Device {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::LoadConstants {}
}
