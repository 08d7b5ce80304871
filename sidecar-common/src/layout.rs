//! The ABI between the halves.

/// Raised with every change to a shared type or to the meaning of a map; part of the pin directory's name, so
/// that two versions on one node never read each other's maps.
pub const ABI_VERSION: u32 = 11;

/// Level of the socket options that the proxy sets on its own sockets and the kernel half answers.
pub const SOCKET_OPTION_LEVEL: i32 = 0x5ca7;
/// `setsockopt` before `connect`: the client address that the accepting application shall see; value
/// [`crate::address::Address`].
pub const SOCKET_OPTION_CLAIM_PEER: i32 = 1;
/// `getsockopt` before a write: how many bytes may be written now, a `u32`. [`SEND_WINDOW_TCP`]: as many as TCP takes; 0: none
/// until the reader has read, ask again.
pub const SOCKET_OPTION_SEND_WINDOW: i32 = 2;
/// See [`SOCKET_OPTION_SEND_WINDOW`]: the other end is not accepted yet, ask again at once.
pub const SEND_WINDOW_UNDECIDED: u32 = u32::MAX - 1;
/// See [`SOCKET_OPTION_SEND_WINDOW`].
pub const SEND_WINDOW_TCP: u32 = u32::MAX;
/// `setsockopt` on a socket from which the proxy relays every byte unchanged to another one of its own; value the other one's
/// cookie, a `u64`.
pub const SOCKET_OPTION_JOIN: i32 = 4;
/// `setsockopt` when everything that arrived for the application at the other end has been written to it: how many bytes
/// that were so far, modulo 2^32, a `u32`.
pub const SOCKET_OPTION_SETTLE: i32 = 5;
/// `getsockopt`: bytes for this socket that went past the proxy, a `u64`.
pub const SOCKET_OPTION_BYPASSED_BYTES: i32 = 6;
/// `getsockopt` on a connected socket: whether the other end has what this one left for it, one of the `HANDOVER_`
/// constants, a `u32`.
pub const SOCKET_OPTION_HANDOVER: i32 = 7;
/// `getsockopt` on an accepted socket: what the steered application has bound its own to, a [`crate::address::Source`].
pub const SOCKET_OPTION_SOURCE: i32 = 8;
/// The accepting socket has taken it, or there was nothing to hand over.
pub const HANDOVER_TAKEN: u32 = 0;
/// Nobody has taken it: the listener at the other end is none of the workload's cgroup.
pub const HANDOVER_WAITING: u32 = 1;
/// The workload has too many connections under way: nothing could be handed over.
pub const HANDOVER_FAILED: u32 = 2;
