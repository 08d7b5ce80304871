//! The ABI between the halves.

/// Raised with every change to a shared type or to the meaning of a map; part of the pin directory's name, so
/// that two versions on one node never read each other's maps.
pub const ABI_VERSION: u32 = 4;

/// Level of the socket options that the proxy sets on its own sockets and the kernel half answers.
pub const SOCKET_OPTION_LEVEL: i32 = 0x5ca7;
/// `setsockopt` before `connect`: the client address that the accepting application shall see; value
/// [`crate::address::Address`].
pub const SOCKET_OPTION_CLAIM_PEER: i32 = 1;
/// `getsockopt` before a write: how many bytes may be written now, a `u32`. [`ROOM_TCP`]: as many as TCP takes; 0: none
/// until the reader has read, ask again.
pub const SOCKET_OPTION_ROOM: i32 = 2;
/// See [`SOCKET_OPTION_ROOM`]: the other end is not accepted yet, ask again at once.
pub const ROOM_UNDECIDED: u32 = u32::MAX - 1;
/// See [`SOCKET_OPTION_ROOM`].
pub const ROOM_TCP: u32 = u32::MAX;
