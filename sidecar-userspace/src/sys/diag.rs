//! TCP sockets seen from outside, by linux/sock_diag.h: who listens in a network namespace, as `ss -tln` says, and the end of
//! a connection, as `ss --kill` does it.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::fd::{AsFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

use super::netns::{Namespace, within};

const SOCK_DESTROY: u16 = 21;
/// `NLM_F_REQUEST | NLM_F_ACK`
const FLAGS: u16 = 1 | 4;
pub(super) const NLMSG_ERROR: u16 = 2;
const IPPROTO_TCP: u8 = 6;

fn open() -> io::Result<OwnedFd> {
    let kind = netlink::SOCK_DIAG;
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(kind),
    )?)
}

/// A TCP socket that listens, of Multipath TCP and whoever made it, too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listener {
    pub address: SocketAddr,
    /// `[::]` that takes no IPv4.
    pub v6_only: bool,
    /// Of the socket, as /proc/PID/fd shows it; 0: it has no file.
    pub inode: u32,
    /// The id of the cgroup in which it was made; 0 where the kernel does not say.
    pub cgroup: u64,
}

/// Lists the listeners of one network namespace, again and again.
#[derive(Debug)]
pub struct Diag(OwnedFd);

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `NLM_F_REQUEST | NLM_F_DUMP`
const DUMP: u16 = 1 | 0x300;
pub(super) const NLMSG_DONE: u16 = 3;
const LISTEN: u32 = 1 << 10;
/// `struct inet_diag_msg`
const ANSWER_BYTES: usize = 72;
const INET_DIAG_SKV6ONLY: u16 = 11;
/// From Linux 5.9 on.
const INET_DIAG_CGROUP_ID: u16 = 21;

impl Diag {
    /// For the network namespace `namespace`.
    pub fn new(namespace: &impl AsFd) -> io::Result<Self> {
        within(namespace, open).map(Self)
    }

    pub fn namespace(&self) -> io::Result<Namespace> {
        Namespace::of_socket(&self.0)
    }

    /// Every TCP listener. Fails with `QuotaExceeded` if there are more than `most`; after other errors it is of no use any more.
    pub fn listeners(&self, most: usize) -> io::Result<Vec<Listener>> {
        let mut found = Vec::new();
        for family in [AddressFamily::INET, AddressFamily::INET6] {
            let (any, unspecified) = (0, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)));
            let body = body(family, LISTEN, unspecified, unspecified, any);
            send(
                &self.0,
                &message(SOCK_DIAG_BY_FAMILY, DUMP, &body),
                SendFlags::empty(),
            )?;
            let mut answer = vec![0; 32 << 10];
            'dump: loop {
                let (length, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
                let mut rest = answer.get(..length).unwrap_or_default();
                if rest.is_empty() {
                    return Err(io::Error::other("an answer that netlink does not give"));
                }
                while let Some((kind, body, next)) = split(rest) {
                    rest = next;
                    match kind {
                        NLMSG_DONE => break 'dump,
                        NLMSG_ERROR => return Err(error_in(body)),
                        // The rest of the answer has to be read all the same, else it would be taken for the next one.
                        _ if found.len() > most => {}
                        _ => found.extend(listener(body)),
                    }
                }
            }
        }
        match found.len() > most {
            true => Err(io::ErrorKind::QuotaExceeded.into()),
            false => Ok(found),
        }
    }
}

/// The first message: its type, its body, and what follows it.
pub(super) fn split(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
    let body = bytes.get(16..length)?;
    let next = length.checked_next_multiple_of(4)?;
    Some((kind, body, bytes.get(next..).unwrap_or_default()))
}

pub(super) fn error_in(body: &[u8]) -> io::Error {
    let code = body.get(..4).and_then(|code| code.try_into().ok());
    io::Error::from_raw_os_error(-code.map_or(-libc::EIO, i32::from_ne_bytes))
}

/// From a `struct inet_diag_msg` and its attributes.
fn listener(body: &[u8]) -> Option<Listener> {
    let port = u16::from_be_bytes(body.get(4..6)?.try_into().ok()?);
    let source: [u8; 16] = body.get(8..24)?.try_into().ok()?;
    let inode = u32::from_ne_bytes(body.get(68..72)?.try_into().ok()?);
    let v4 = i32::from(*body.first()?) == i32::from(AddressFamily::INET.as_raw());
    let ip = match v4 {
        true => IpAddr::from([source[0], source[1], source[2], source[3]]),
        false => IpAddr::V6(Ipv6Addr::from(source)),
    };
    let mut attributes = body.get(ANSWER_BYTES..).unwrap_or_default();
    let (mut v6_only, mut cgroup) = (false, 0);
    while let Some(head) = attributes.get(..4) {
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        match u16::from_ne_bytes([head[2], head[3]]) {
            INET_DIAG_SKV6ONLY => v6_only = attributes.get(4).is_some_and(|only| *only != 0),
            INET_DIAG_CGROUP_ID => {
                let id = attributes.get(4..12).and_then(|id| id.try_into().ok());
                cgroup = id.map_or(0, u64::from_ne_bytes);
            }
            _ => {}
        }
        let next = length.max(4).next_multiple_of(4);
        attributes = attributes.get(next..).unwrap_or_default();
    }
    Some(Listener {
        address: SocketAddr::new(ip, port),
        v6_only,
        inode,
        cgroup,
    })
}

/// Resets the connection between `local` and `remote` in a network namespace, whose socket there has this cookie: no other one
/// can be meant. Needs `CAP_NET_ADMIN` and a kernel with `CONFIG_INET_DIAG_DESTROY`; `NotFound` if there is no such
/// connection (any more).
pub fn destroy(
    namespace: &impl AsFd,
    cookie: u64,
    local: SocketAddr,
    remote: SocketAddr,
) -> io::Result<()> {
    within(namespace, || destroy_here(cookie, local, remote))
}

fn destroy_here(cookie: u64, local: SocketAddr, remote: SocketAddr) -> io::Result<()> {
    let request = request(cookie, local, remote);
    let socket = open()?;
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
fn request(cookie: u64, local: SocketAddr, remote: SocketAddr) -> Vec<u8> {
    let family = match local.is_ipv4() {
        true => AddressFamily::INET,
        false => AddressFamily::INET6,
    };
    let every_state = u32::MAX;
    message(
        SOCK_DESTROY,
        FLAGS,
        &body(family, every_state, local, remote, cookie),
    )
}

fn body(
    family: AddressFamily,
    states: u32,
    local: SocketAddr,
    remote: SocketAddr,
    cookie: u64,
) -> Vec<u8> {
    let mut body = vec![family.as_raw() as u8, IPPROTO_TCP, 0, 0];
    body.extend(states.to_ne_bytes());
    body.extend(local.port().to_be_bytes());
    body.extend(remote.port().to_be_bytes());
    body.extend(address(local));
    body.extend(address(remote));
    // Any interface.
    body.extend(0_u32.to_ne_bytes());
    // Low half first, whatever the machine's order.
    body.extend((cookie as u32).to_ne_bytes());
    body.extend(((cookie >> 32) as u32).to_ne_bytes());
    body
}

pub(super) fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let mut message = Vec::with_capacity(16 + body.len());
    message.extend((16 + body.len() as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
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
            7,
            "10.0.0.1:80".parse().unwrap(),
            "10.0.0.2:1024".parse().unwrap(),
        );
        assert_eq!(request.len(), 72);
        assert_eq!(request[16], 2);
        assert_eq!(request[24..28], [0, 80, 4, 0]);
        assert_eq!(request[28..32], [10, 0, 0, 1]);
        assert_eq!(request[44..48], [10, 0, 0, 2]);
        assert_eq!(request[64..68], 7_u32.to_ne_bytes());
    }

    #[test]
    fn listeners_of_both_families_are_found() {
        use std::net::TcpListener;
        let diag = Diag(open().unwrap());
        let v4 = TcpListener::bind("127.0.0.2:0").unwrap();
        let v6 = TcpListener::bind("[::1]:0").unwrap();
        let found = diag.listeners(100_000).unwrap();
        for listener in [&v4, &v6] {
            let address = listener.local_addr().unwrap();
            assert!(
                found.iter().any(|found| found.address == address),
                "{address}"
            );
        }
        let again = diag.listeners(100_000).unwrap();
        assert!(again.len() >= 2);
        assert_eq!(
            diag.listeners(0).unwrap_err().kind(),
            io::ErrorKind::QuotaExceeded
        );
    }

    #[test]
    fn whatever_netlink_says_is_no_panic() {
        for length in 0..200 {
            let bytes: Vec<u8> = (0..length).map(|n| n as u8).collect();
            let _ = listener(&bytes);
            let _ = split(&bytes);
        }
        let _ = split(&[0xff; 64]);
        let _ = listener(&[0xff; 128]);
        let _ = listener(&[0; 128]);
    }
}
