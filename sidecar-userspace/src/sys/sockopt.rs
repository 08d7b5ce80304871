//! Socket options that no crate knows.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use rustix::net::sockopt::socket_cookie;
use sidecar_common::{
    address::{Address, Source},
    layout::{
        HANDOVER_FAILED, HANDOVER_WAITING, SEND_WINDOW_TCP, SEND_WINDOW_UNDECIDED,
        SOCKET_OPTION_BYPASSED_BYTES, SOCKET_OPTION_CLAIM_PEER, SOCKET_OPTION_HANDOVER,
        SOCKET_OPTION_JOIN, SOCKET_OPTION_LEVEL, SOCKET_OPTION_SEND_WINDOW, SOCKET_OPTION_SETTLE,
        SOCKET_OPTION_SOURCE,
    },
};

/// Tells the kernel half, before `socket` connects to the application, which client the application shall see.
///
/// Fails with `EOPNOTSUPP` or `ENOPROTOOPT` where no kernel half is attached to the proxy's cgroup; the
/// application then sees the proxy.
pub fn claim_peer(socket: &impl AsFd, client: SocketAddr) -> io::Result<()> {
    let client = Address::from(client);
    set(
        socket,
        SOCKET_OPTION_LEVEL,
        SOCKET_OPTION_CLAIM_PEER,
        client,
    )
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
pub fn send_window(socket: &impl AsFd) -> Answer {
    match get(
        socket,
        SOCKET_OPTION_LEVEL,
        SOCKET_OPTION_SEND_WINDOW,
        0_u32,
    ) {
        Err(_) | Ok(SEND_WINDOW_TCP) => Answer::Tcp,
        Ok(SEND_WINDOW_UNDECIDED) => Answer::Undecided,
        Ok(bytes) => Answer::Bytes(bytes),
    }
}

/// What became of a claim, see [`claim_peer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// The accepted socket has it; also where no kernel half is attached.
    Taken,
    /// Nobody has taken it: the listener was made outside the workload, and shows the proxy's address.
    Waiting,
    /// There was no room for it.
    Failed,
}

/// Asks the kernel half whether what was claimed has reached the other end of a connected `socket`.
pub fn handover(socket: &impl AsFd) -> Handover {
    match get(socket, SOCKET_OPTION_LEVEL, SOCKET_OPTION_HANDOVER, 0_u32) {
        Ok(HANDOVER_FAILED) => Handover::Failed,
        Ok(HANDOVER_WAITING) => Handover::Waiting,
        _ => Handover::Taken,
    }
}

/// Asks the kernel half what the application has bound its socket to at the other end of an accepted `socket`. Fails where no
/// kernel half is attached.
pub fn source(socket: &impl AsFd) -> io::Result<Source> {
    get(
        socket,
        SOCKET_OPTION_LEVEL,
        SOCKET_OPTION_SOURCE,
        Source::default(),
    )
}

/// Binds a socket to a network device by its index; no privilege is needed where it is not bound yet (Linux 5.7).
pub fn bind_to_device(socket: &impl AsFd, index: u32) -> io::Result<()> {
    // asm-generic/socket.h; libc has no name for it.
    const SO_BINDTOIFINDEX: i32 = 62;
    set(socket, libc::SOL_SOCKET, SO_BINDTOIFINDEX, index)
}

/// Has the kernel choose the port of a socket that is bound to port 0 when it connects, so that it may be that of another
/// connection as well.
pub fn bind_without_port(socket: &impl AsFd) -> io::Result<()> {
    set(
        socket,
        libc::IPPROTO_IP,
        libc::IP_BIND_ADDRESS_NO_PORT,
        1_i32,
    )
}

/// Tells the kernel half that every byte is relayed as it is between the two sockets, both ways. Fails where messages to one
/// of them are never redirected.
pub fn join(one: &impl AsFd, other: &impl AsFd) -> io::Result<()> {
    let cookies = (socket_cookie(one)?, socket_cookie(other)?);
    set(one, SOCKET_OPTION_LEVEL, SOCKET_OPTION_JOIN, cookies.1)?;
    set(other, SOCKET_OPTION_LEVEL, SOCKET_OPTION_JOIN, cookies.0)
}

/// Tells the kernel half that everything for the application at the other end of `socket` is written, `bytes` since the
/// connection began. Fails where the other end is no application, or messages to it take TCP.
pub fn settle(socket: &impl AsFd, bytes: u64) -> io::Result<()> {
    // Modulo 2^32, as sequence numbers are.
    set(
        socket,
        SOCKET_OPTION_LEVEL,
        SOCKET_OPTION_SETTLE,
        bytes as u32,
    )
}

/// Bytes for `socket` that went past it to where [`join`] leads.
pub fn bypassed_bytes(socket: &impl AsFd) -> io::Result<u64> {
    get(socket, SOCKET_OPTION_LEVEL, SOCKET_OPTION_BYPASSED_BYTES, 0)
}

/// Accepts data in the SYN (RFC 7413) on a listening socket, for up to `pending` connections at once. Has an
/// effect only where `net.ipv4.tcp_fastopen` allows servers to.
pub fn set_fastopen(listener: &impl AsFd, pending: i32) -> io::Result<()> {
    set(listener, libc::IPPROTO_TCP, libc::TCP_FASTOPEN, pending)
}

/// The longest time between two retransmissions, or probes of a closed window (Linux 6.15; before, `ENOPROTOOPT`).
const TCP_RTO_MAX_MS: libc::c_int = 44;

/// Bounds the time between two retransmissions, and between two probes of a closed window. 1 s to 2 min.
pub fn set_longest_retransmission(socket: &impl AsFd, bound: Duration) -> io::Result<()> {
    let milliseconds = i32::try_from(bound.as_millis()).unwrap_or(i32::MAX);
    set(socket, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, milliseconds)
}

/// What [`set_longest_retransmission`] has set, or the kernel's own.
pub fn longest_retransmission(socket: &impl AsFd) -> io::Result<Duration> {
    let milliseconds = get(socket, libc::IPPROTO_TCP, TCP_RTO_MAX_MS, 0_i32)?;
    Ok(Duration::from_millis(
        u64::try_from(milliseconds).unwrap_or(0),
    ))
}

/// The kernel's cookie of the calling thread's network namespace (Linux 5.14).
pub fn netns_cookie() -> io::Result<u64> {
    let socket = TcpListener::bind("127.0.0.1:0").or_else(|_| TcpListener::bind("[::1]:0"))?;
    netns_cookie_of(&socket)
}

/// The kernel's cookie of the network namespace that a socket is in (Linux 5.14).
pub fn netns_cookie_of(socket: &impl AsFd) -> io::Result<u64> {
    get(socket, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, 0)
}

/// A descriptor of the process that connected a Unix socket (Linux 6.5; before, `ENOPROTOOPT`): no later process can be
/// mistaken for it.
pub fn peer_pidfd(socket: &impl AsFd) -> io::Result<OwnedFd> {
    // asm-generic/socket.h; libc has no name for it.
    const SO_PEERPIDFD: i32 = 77;
    let fd = get(socket, libc::SOL_SOCKET, SO_PEERPIDFD, -1_i32)?;
    if fd < 0 {
        return Err(io::Error::from(io::ErrorKind::NotFound));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A type that every pattern of bytes is a value of, and that has no padding: what options of sockets are made of.
trait Plain: Copy {}

impl Plain for i32 {}
impl Plain for u32 {}
impl Plain for u64 {}
impl Plain for Address {}
impl Plain for Source {}

fn set<T: Plain>(socket: &impl AsFd, level: i32, name: i32, value: T) -> io::Result<()> {
    // SAFETY: the option's value is live, initialised and of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw const value).cast(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `value`: what the option is where the kernel says less.
fn get<T: Plain>(socket: &impl AsFd, level: i32, name: i32, mut value: T) -> io::Result<T> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: value and length are live and of the sizes that are given; any bytes are a value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            level,
            name,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(value)
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
