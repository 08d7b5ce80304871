//! Socket options that no crate knows.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd},
    time::Duration,
};

use sidecar_common::{
    address::Address,
    layout::{
        ROOM_TCP, ROOM_UNDECIDED, SOCKET_OPTION_CLAIM_PEER, SOCKET_OPTION_LEVEL, SOCKET_OPTION_ROOM,
    },
};

/// Tells the kernel half, before `socket` connects to the application, which client the application shall see.
///
/// Fails with `EOPNOTSUPP` or `ENOPROTOOPT` where no kernel half is attached to the proxy's cgroup; the
/// application then sees the proxy.
pub fn claim_peer(socket: &impl AsFd, client: SocketAddr) -> io::Result<()> {
    let client = Address::from(client);
    // SAFETY: the option's value is a live, initialised `Address` of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            SOCKET_OPTION_LEVEL,
            SOCKET_OPTION_CLAIM_PEER,
            (&raw const client).cast(),
            size_of::<Address>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What the kernel half says of how much may be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// As much as TCP takes; also where no kernel half is attached.
    Tcp,
    /// The other end is not accepted yet: ask again.
    Undecided,
    /// So many bytes; 0: ask again later.
    Bytes(u32),
}

/// Asks the kernel half how many bytes may be written to `socket` now.
pub fn room(socket: &impl AsFd) -> Answer {
    let mut room = 0_u32;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: value and length are live and of the sizes that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            SOCKET_OPTION_LEVEL,
            SOCKET_OPTION_ROOM,
            (&raw mut room).cast(),
            &raw mut length,
        )
    };
    match room {
        _ if result != 0 => Answer::Tcp,
        ROOM_TCP => Answer::Tcp,
        ROOM_UNDECIDED => Answer::Undecided,
        bytes => Answer::Bytes(bytes),
    }
}

/// Accepts data in the SYN (RFC 7413) on a listening socket, for up to `pending` connections at once. Has an
/// effect only where `net.ipv4.tcp_fastopen` allows servers to.
pub fn set_fastopen(listener: &impl AsFd, pending: i32) -> io::Result<()> {
    // SAFETY: the option's value is a live `int` of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            listener.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_FASTOPEN,
            (&raw const pending).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The longest time between two retransmissions, or probes of a closed window (Linux 6.15; before, `ENOPROTOOPT`).
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// Bounds the time between two retransmissions, and between two probes of a closed window. 1 s to 2 min.
pub fn set_longest_retransmission(socket: &impl AsFd, bound: Duration) -> io::Result<()> {
    let milliseconds = i32::try_from(bound.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: the option's value is a live `int` of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw const milliseconds).cast(),
            size_of::<i32>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// What [`set_longest_retransmission`] has set, or the kernel's own.
pub fn longest_retransmission(socket: &impl AsFd) -> io::Result<Duration> {
    let mut milliseconds = 0_i32;
    let mut length = size_of::<i32>() as libc::socklen_t;
    // SAFETY: value and length are live and of the sizes that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_RTO_MAX_MS,
            (&raw mut milliseconds).cast(),
            &raw mut length,
        )
    };
    match u64::try_from(milliseconds) {
        Ok(milliseconds) if result == 0 => Ok(Duration::from_millis(milliseconds)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The kernel's cookie of the calling thread's network namespace (Linux 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    let socket = TcpListener::bind("127.0.0.1:0").or_else(|_| TcpListener::bind("[::1]:0"))?;
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: value and length are live and of the sizes that the option wants.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namespace_has_one_cookie() {
        let cookie = netns_cookie().unwrap();
        assert_ne!(cookie, 0);
        assert_eq!(netns_cookie().unwrap(), cookie);
    }

    #[test]
    fn without_the_kernel_half_a_claim_is_refused() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(claim_peer(&socket, "192.0.2.1:1".parse().unwrap()).is_err());
    }
}
