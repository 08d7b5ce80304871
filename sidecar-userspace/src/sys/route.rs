//! Routing of a network namespace, by linux/rtnetlink.h: which prefixes there are, which source address the kernel would choose
//! towards an address, as `ip route get` says, and when any of that changes.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, netlink::SocketAddrNetlink,
    recv, send, socket_with,
};

use super::{
    diag::{NLMSG_DONE, NLMSG_ERROR, error_in, message, split},
    netns::within,
};

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWRULE: u16 = 32;
const RTM_GETRULE: u16 = 34;
/// `NLM_F_REQUEST`, and with `NLM_F_DUMP`
const REQUEST: u16 = 1;
const DUMP: u16 = 1 | 0x300;

/// `RTA_DST`, and `FRA_DST` of rules.
const DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_PREFSRC: u16 = 7;
const IFLA_IFNAME: u16 = 3;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// `struct rtmsg`, and `struct fib_rule_hdr`, which begins like it.
const ROUTE_BYTES: usize = 12;
/// `struct ifinfomsg`
const LINK_BYTES: usize = 16;
/// As large as messages of a dump become.
const BUFFER_BYTES: usize = 64 << 10;

/// `RTMGRP_LINK`, `IPV4_IFADDR`, `IPV4_ROUTE`, `IPV4_RULE`, `IPV6_IFADDR` and `IPV6_ROUTE`, and the bit of
/// `RTNLGRP_IPV6_RULE`.
const GROUPS: u32 = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;

/// Tells when addresses, routes, rules or devices of a network namespace have changed.
#[derive(Debug)]
pub struct Watch(OwnedFd);

impl Watch {
    pub fn new(namespace: &impl AsFd) -> io::Result<Self> {
        within(namespace, || {
            let socket = open()?;
            bind(&socket, &SocketAddrNetlink::new(0, GROUPS))?;
            Ok(Self(socket))
        })
    }

    /// Whether anything has changed since it was asked last.
    pub fn has_changed(&self) -> io::Result<bool> {
        let mut changed = false;
        loop {
            // What has changed does not matter: all is read again.
            match recv(&self.0, &mut [0_u8; 1][..], RecvFlags::DONTWAIT) {
                Ok(_) | Err(rustix::io::Errno::NOBUFS) => changed = true,
                Err(rustix::io::Errno::AGAIN) => return Ok(changed),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Runs `work` with the routing of a network namespace.
pub fn read<T: Send>(
    namespace: &impl AsFd,
    work: impl FnOnce(&Routing) -> io::Result<T> + Send,
) -> io::Result<T> {
    within(namespace, || work(&Routing(open()?)))
}

/// The routing of the network namespace that the thread is in.
#[derive(Debug)]
pub struct Routing(OwnedFd);

impl Routing {
    /// Destinations of all routes and rules of a family, `most` at most: the length of each prefix, and its address. Other
    /// addresses than these are treated like those around them.
    pub fn prefixes(&self, v4: bool, most: usize) -> io::Result<Vec<(u8, IpAddr)>> {
        let mut found = Vec::new();
        for (get, new) in [(RTM_GETROUTE, RTM_NEWROUTE), (RTM_GETRULE, RTM_NEWRULE)] {
            if found.len() >= most {
                break;
            }
            let mut header = [0; ROUTE_BYTES];
            header[0] = family(v4);
            dump(get, &header, |kind, body| {
                if kind == new {
                    found.extend(prefix(body, v4));
                }
                found.len() < most
            })?;
        }
        Ok(found)
    }

    /// The source address towards `destination`, as the kernel chooses it for a socket without a mark; `None`: it has no route.
    /// `device`: index of the one that the socket is bound to, or 0.
    pub fn source(&self, destination: IpAddr, device: u32) -> io::Result<Option<IpAddr>> {
        let (v4, octets) = match destination {
            IpAddr::V4(v4) => (true, v4.octets().to_vec()),
            IpAddr::V6(v6) => (false, v6.octets().to_vec()),
        };
        let mut body = vec![0; ROUTE_BYTES];
        body[0] = family(v4);
        body[1] = if v4 { 32 } else { 128 };
        attribute(&mut body, DST, &octets);
        if device != 0 {
            attribute(&mut body, RTA_OIF, &device.to_ne_bytes());
        }
        send(
            &self.0,
            &message(RTM_GETROUTE, REQUEST, &body),
            SendFlags::empty(),
        )?;
        let mut answer = [0; 4096];
        let (length, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        let answer = answer.get(..length).unwrap_or_default();
        Ok(match split(answer) {
            Some((RTM_NEWROUTE, body, _)) => {
                attribute_of(body, ROUTE_BYTES, RTA_PREFSRC).and_then(|bytes| address(bytes, v4))
            }
            Some((NLMSG_ERROR, ..)) => None,
            _ => return Err(io::Error::other("an answer that netlink does not give")),
        })
    }

    /// Index and name of the devices, `most` at most.
    pub fn devices(&self, most: usize) -> io::Result<Vec<(u32, Vec<u8>)>> {
        let mut found = Vec::new();
        let mut header = vec![0; LINK_BYTES];
        attribute(
            &mut header,
            IFLA_EXT_MASK,
            &RTEXT_FILTER_SKIP_STATS.to_ne_bytes(),
        );
        dump(RTM_GETLINK, &header, |kind, body| {
            if kind == RTM_NEWLINK {
                found.extend(device(body));
            }
            found.len() < most
        })?;
        Ok(found)
    }
}

/// Asks for all of a kind, until `each` wants no more.
fn dump(get: u16, header: &[u8], mut each: impl FnMut(u16, &[u8]) -> bool) -> io::Result<()> {
    // Its own, as the rest of an answer may be left in it.
    let socket = open()?;
    send(&socket, &message(get, DUMP, header), SendFlags::empty())?;
    let mut answer = vec![0; BUFFER_BYTES];
    loop {
        let (length, _) = recv(&socket, &mut answer[..], RecvFlags::empty())?;
        let mut rest = answer.get(..length).unwrap_or_default();
        if rest.is_empty() {
            return Err(io::Error::other("an answer that netlink does not give"));
        }
        while let Some((kind, body, next)) = split(rest) {
            rest = next;
            match kind {
                NLMSG_DONE => return Ok(()),
                // A kernel without IPv6, or without rules, has none.
                NLMSG_ERROR => match error_in(body) {
                    error if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(()),
                    error => return Err(error),
                },
                kind if each(kind, body) => {}
                _ => return Ok(()),
            }
        }
    }
}

/// Of the family of routing, which is the first one.
fn open() -> io::Result<OwnedFd> {
    Ok(socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

fn family(v4: bool) -> u8 {
    let family = if v4 {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    family.as_raw() as u8
}

/// From a route or a rule; that for every address has none.
fn prefix(body: &[u8], v4: bool) -> Option<(u8, IpAddr)> {
    if *body.first()? != family(v4) {
        return None;
    }
    let bits = *body.get(1)?;
    let address = match attribute_of(body, ROUTE_BYTES, DST) {
        Some(bytes) => address(bytes, v4)?,
        None if v4 => Ipv4Addr::UNSPECIFIED.into(),
        None => Ipv6Addr::UNSPECIFIED.into(),
    };
    Some((bits, address))
}

fn device(body: &[u8]) -> Option<(u32, Vec<u8>)> {
    let index = u32::from_ne_bytes(body.get(4..8)?.try_into().ok()?);
    let name = attribute_of(body, LINK_BYTES, IFLA_IFNAME)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some((index, name.to_vec()))
}

fn address(bytes: &[u8], v4: bool) -> Option<IpAddr> {
    Some(match v4 {
        true => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        false => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    })
}

/// Appends a `struct rtattr`.
fn attribute(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    body.extend(length.to_ne_bytes());
    body.extend(kind.to_ne_bytes());
    body.extend(value);
}

/// The value of the first attribute of a kind, behind a header of so many bytes.
fn attribute_of(body: &[u8], header_bytes: usize, kind: u16) -> Option<&[u8]> {
    let mut rest = body.get(header_bytes..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let this = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        let value = rest.get(4..length)?;
        if this == kind {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_namespace_has_loopback() {
        let routing = Routing(open().unwrap());
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        assert_eq!(routing.source(loopback, 0).unwrap(), Some(loopback));
        let prefixes = routing.prefixes(true, 100_000).unwrap();
        assert!(prefixes.contains(&(32, loopback)), "{prefixes:?}");
        assert_eq!(routing.prefixes(true, 1).unwrap().len(), 1);
        let devices = routing.devices(100_000).unwrap();
        assert!(devices.contains(&(1, b"lo".to_vec())), "{devices:?}");
        // Another question behind an error.
        let nowhere = "240.0.0.1".parse().unwrap();
        let _ = routing.source(nowhere, 0).unwrap();
        assert_eq!(routing.source(loopback, 0).unwrap(), Some(loopback));
    }

    #[test]
    fn whatever_netlink_says_is_no_panic() {
        for length in 0..100_u8 {
            for fill in [0, 1, 2, 4, 16, 0xff] {
                let bytes = vec![fill; usize::from(length)];
                let _ = (prefix(&bytes, true), prefix(&bytes, false), device(&bytes));
            }
        }
    }
}
