//! The ABI between the halves.

/// Raised with every change to a shared type or to the meaning of a map; part of the pin directory's name, so
/// that two versions on one node never read each other's maps.
pub const ABI_VERSION: u32 = 3;

/// Level of the socket options that the proxy sets on its own sockets and the kernel half answers.
pub const SOCKET_OPTION_LEVEL: i32 = 0x5ca7;
/// `setsockopt` before `connect`: the client address that the accepting application shall see; value
/// [`crate::address::Address`].
pub const SOCKET_OPTION_CLAIM_PEER: i32 = 1;
