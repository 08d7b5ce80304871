//! Ends a TCP connection of this network namespace from outside, as `ss --kill` does: `SOCK_DESTROY` of
//! linux/sock_diag.h. Both ends see a reset.

use std::{fs::File, io, net::SocketAddr, os::fd::AsFd, thread};

use rustix::{
    net::{
        AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send,
        socket_with,
    },
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

const SOCK_DESTROY: u16 = 21;
/// `NLM_F_REQUEST | NLM_F_ACK`
const FLAGS: u16 = 1 | 4;
const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;

/// As [`destroy`], in the network namespace of the process `pid`.
pub fn destroy_of(pid: u32, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // A thread of its own: it never comes back from there.
    thread::scope(|scope| {
        let work = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            destroy(local, remote)
        });
        let panicked = |_| Err(io::Error::other("the thread panicked"));
        work.join().unwrap_or_else(panicked)
    })
}

/// Resets the connection between `local` and `remote`. Needs `CAP_NET_ADMIN` and a kernel with
/// `CONFIG_INET_DIAG_DESTROY`; `NotFound` if there is no such connection (any more).
pub fn destroy(local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let request = request(local, remote);
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    send(&socket, &request, SendFlags::empty())?;
    let mut answer = [0; 512];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    let kind = answer
        .get(4..6)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u16::from_ne_bytes);
    let code = answer
        .get(16..20)
        .and_then(|bytes| bytes.try_into().ok())
        .map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) if length >= 20 => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) if length >= 20 => Err(io::Error::from_raw_os_error(-code)),
        _ => Err(io::Error::other("an answer that netlink does not give")),
    }
}

/// `struct nlmsghdr` and `struct inet_diag_req_v2`.
fn request(local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = if local.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let mut body = vec![family.as_raw() as u8, IPPROTO_TCP, 0, 0];
    // Every state.
    body.extend(u32::MAX.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    body.extend(address(local));
    body.extend(address(remote));
    // Any interface, no cookie.
    body.extend(0_u32.to_ne_bytes());
    body.extend([0xff; 8]);
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(SOCK_DESTROY.to_ne_bytes());
    message.extend(FLAGS.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn address(address: SocketAddr) -> [u8; 16] {
    let mut bytes = [0; 16];
    match address {
        SocketAddr::V4(v4) => bytes[..4].copy_from_slice(&v4.ip().octets()),
        SocketAddr::V6(v6) => bytes = v6.ip().octets(),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_layout() {
        let request = request(
            "10.0.0.1:80".parse().unwrap(),
            "10.0.0.2:1024".parse().unwrap(),
        );
        assert_eq!(request.len(), 72);
        assert_eq!(request[16], 2);
        assert_eq!(request[24..28], [0, 80, 4, 0]);
        assert_eq!(request[28..32], [10, 0, 0, 1]);
        assert_eq!(request[44..48], [10, 0, 0, 2]);
    }
}
