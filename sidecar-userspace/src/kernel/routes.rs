//! Step accept: which address a connection of the workload would have, and what its network's devices are called.
//!
//! The application's socket is connected to the proxy, over loopback. `getsockname` shall show what it would have without a
//! sidecar, and at once, when the proxy has yet to connect. So the kernel half has a table of it for each workload. The
//! kernel itself is asked for the source address towards one address of each prefix that any route or rule of the namespace
//! names: all others within the prefix have the same one. What a mark, a user or a port decides is not asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    time::{Duration, Instant},
};

use sidecar_common::{
    address::Ip,
    settings::{DEVICE_NAME_BYTES, Device, MAX_DEVICES, MAX_ROUTES},
};
use tracing::debug;

use super::{
    listening::LOOK_EVERY,
    load::LoadError,
    tables::{Tables, network::Network},
};
use crate::sys::{
    netns::Namespace,
    route::{self, Routing, Watch},
};

/// And where that fails.
const FAILED_EVERY: Duration = Duration::from_secs(10);
/// Looking takes a hundredth of the time at most, whatever a workload does to its network.
const PAUSE: u32 = 100;
/// Prefixes of one family that are looked at: the kernel is asked about each.
const MAX_PREFIXES: usize = 1024;
/// Routes of one family that are read, to find these.
const MAX_READ: usize = 16_384;

/// Looks at the routing of a workload's network namespace.
#[derive(Debug)]
pub struct Routes {
    watch: Watch,
    slot: u32,
    changed: bool,
    next: Instant,
}

impl Routes {
    pub fn new(namespace: &Namespace, slot: u32) -> io::Result<Self> {
        Ok(Self {
            // First: a change meanwhile is seen twice rather than never.
            watch: Watch::new(namespace)?,
            slot,
            changed: true,
            next: Instant::now(),
        })
    }

    /// Brings the workload's table up to date, if it is time and anything has changed.
    pub fn take(&mut self, tables: &mut Tables) {
        if Instant::now() < self.next {
            return;
        }
        self.next = Instant::now() + LOOK_EVERY;
        if let Err(error) = self.look(tables) {
            debug!(slot = self.slot, %error, "the routes of a workload cannot be read");
            self.changed = true;
            self.next = Instant::now() + FAILED_EVERY;
        }
    }

    fn look(&mut self, tables: &mut Tables) -> Result<(), LookError> {
        self.changed |= self.watch.has_changed()?;
        if self.changed {
            let begun = Instant::now();
            let (sources, devices) = route::read(&Namespace::of_socket(&self.watch)?, read)?;
            let pause = begun.elapsed().saturating_mul(PAUSE).max(LOOK_EVERY);
            self.next = Instant::now() + pause;
            tables.set_network(self.slot, network(&sources, devices))?;
            self.changed = false;
        }
        Ok(())
    }
}

#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("{0}")]
    Netlink(#[from] io::Error),
    #[error(transparent)]
    Tables(#[from] LoadError),
}

/// Part of the address space, IPv4 as its part of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    /// First: an ordered set has those before that contain others.
    bits: u32,
    first: u128,
}

const V4: Prefix = Prefix {
    bits: 96,
    first: 0xffff_0000_0000,
};
const ALL: Prefix = Prefix { bits: 0, first: 0 };

impl Prefix {
    fn new(bits: u32, address: u128) -> Self {
        let first = address & !Self { bits, first: 0 }.mask();
        Self { bits, first }
    }

    fn of(bits: u8, address: IpAddr) -> Self {
        let bits = u32::from(bits);
        let bits = if address.is_ipv4() { 96 + bits } else { bits };
        Self::new(bits.min(128), number(address))
    }

    /// The bits that addresses within it differ in.
    fn mask(self) -> u128 {
        u128::MAX.checked_shr(self.bits).unwrap_or(0)
    }

    fn last(self) -> u128 {
        self.first | self.mask()
    }

    fn is_v4(self) -> bool {
        self.bits >= V4.bits && V4.contains(self.first)
    }

    fn contains(self, address: u128) -> bool {
        address & !self.mask() == self.first
    }

    /// An address in it that is in none of the others within it.
    fn own_address(self, all: &BTreeSet<Self>) -> Option<u128> {
        let inner: Vec<Self> = all
            .iter()
            .copied()
            .filter(|other| other.bits > self.bits && self.contains(other.first))
            .collect();
        let taken_until = |address| {
            let around = inner.iter().filter(|other| other.contains(address));
            around.map(|other| other.last()).max()
        };
        // The first addresses of all mean something else.
        let ordinary = ORDINARY.iter().filter_map(|text| text.parse().ok());
        let mut ordinary = ordinary.map(number).filter(|a| self.contains(*a));
        if let Some(address) = ordinary.find(|a| taken_until(*a).is_none()) {
            return Some(address);
        }
        let mut address = self.first + u128::from(self.bits < 127);
        while let Some(until) = taken_until(address) {
            address = until.checked_add(1)?;
            if !self.contains(address) {
                return None;
            }
        }
        Some(address)
    }
}

fn number(address: IpAddr) -> u128 {
    let v6 = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped(),
        IpAddr::V6(v6) => v6,
    };
    v6.to_bits()
}

fn ip(number: u128) -> IpAddr {
    IpAddr::V6(Ipv6Addr::from_bits(number)).to_canonical()
}

/// Source addresses by prefix.
type Sources = BTreeMap<Prefix, Option<IpAddr>>;

/// What is asked about where everything has the same answer.
const ORDINARY: [&str; 3] = ["198.51.100.1", "2001:db8::1", "2a00::1"];

fn read(routing: &Routing) -> io::Result<(Sources, Vec<Device>)> {
    let mut all = BTreeSet::from([ALL, V4]);
    for v4 in [true, false] {
        let found = routing.prefixes(v4, MAX_READ)?;
        let found = found
            .into_iter()
            .map(|(bits, address)| Prefix::of(bits, address));
        // Those before that others are within: the more that is, the less a missing one matters.
        let found: BTreeSet<Prefix> = found.collect();
        all.extend(found.into_iter().take(MAX_PREFIXES));
    }
    // Of several addresses, IPv6 chooses one of the same kind as the destination (RFC 6724).
    for kind in ["2000::", "2001::", "2002::", "fc00::"] {
        let bits = match kind {
            "2000::" => 3,
            "2001::" => 32,
            "2002::" => 16,
            _ => 7,
        };
        all.extend(kind.parse().map(|address| Prefix::of(bits, address)));
    }
    let asked = all.iter().filter_map(|prefix| {
        let address = prefix.own_address(&all)?;
        Some((*prefix, ip(address)))
    });
    let asked: Vec<(Prefix, IpAddr)> = asked.collect();
    let mut sources = Sources::new();
    for (prefix, address) in &asked {
        sources.insert(*prefix, routing.source(*address, 0)?);
    }
    let mut devices = Vec::new();
    for (index, name) in routing.devices(MAX_DEVICES as usize)? {
        let mut device = Device {
            index,
            ..Device::default()
        };
        let Some(place) = device.name.get_mut(..name.len()) else {
            continue;
        };
        if name.len() < DEVICE_NAME_BYTES {
            place.copy_from_slice(&name);
            device.v4 = source_of(routing, index, &asked, true)?;
            device.v6 = source_of(routing, index, &asked, false)?;
            devices.push(device);
        }
    }
    Ok((sources, devices))
}

/// The source address of what leaves by a device: towards the largest of the prefixes that it leads to.
fn source_of(
    routing: &Routing,
    device: u32,
    asked: &[(Prefix, IpAddr)],
    v4: bool,
) -> io::Result<Ip> {
    const MOST: usize = 32;
    let of_family = asked.iter().filter(|(prefix, _)| prefix.is_v4() == v4);
    for (_, address) in of_family.take(MOST) {
        match routing.source(*address, device)?.map(Ip::from) {
            // Of the link alone.
            Some(source) if source.is_scoped() => {}
            Some(source) => return Ok(source),
            None => {}
        }
    }
    Ok(Ip::default())
}

/// As entries of the maps, without those that say the same as what they are within.
fn network(sources: &Sources, devices: Vec<Device>) -> Network {
    let mut kept = Sources::new();
    for (prefix, source) in sources {
        // From one that ends nearest around it.
        let around = kept
            .iter()
            .rev()
            .find(|(other, _)| other.bits < prefix.bits && other.contains(prefix.first));
        let around = around.and_then(|(_, source)| *source);
        // IPv4 takes nothing from what it is a part of.
        if *prefix == V4 || around != *source {
            kept.insert(*prefix, *source);
        }
    }
    let entry = |(prefix, source): (Prefix, Option<IpAddr>)| {
        let none = match prefix.is_v4() {
            true => Ipv4Addr::UNSPECIFIED.into(),
            false => Ipv6Addr::UNSPECIFIED.into(),
        };
        let first = Ipv6Addr::from_bits(prefix.first);
        let key = (prefix.bits, Ip::from(IpAddr::V6(first)));
        (key, Ip::from(source.unwrap_or(none)))
    };
    let kept = kept.into_iter().take(MAX_ROUTES as usize);
    Network {
        routes: kept.map(entry).collect(),
        devices: devices.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, bits) = text.split_once('/').unwrap();
        Prefix::of(bits.parse().unwrap(), address.parse().unwrap())
    }

    #[test]
    fn each_prefix_is_asked_about_by_an_address_of_its_own() {
        let texts = [
            "0.0.0.0/0",
            "198.51.100.0/24",
            "10.0.0.0/8",
            "10.0.0.0/9",
            "10.128.0.0/9",
            "10.0.0.0/24",
        ];
        let texts = texts
            .iter()
            .chain(&["10.0.0.1/32", "::/0", "fd00::/64", "fd00::1/128"]);
        let all: BTreeSet<Prefix> = texts.map(|text| prefix(text)).collect();
        let own = |text: &str| prefix(text).own_address(&all).map(|n| ip(n).to_string());
        assert_eq!(own("10.0.0.1/32").as_deref(), Some("10.0.0.1"));
        assert_eq!(own("10.0.0.0/24").as_deref(), Some("10.0.0.2"));
        assert_eq!(own("10.0.0.0/9").as_deref(), Some("10.0.1.0"));
        assert_eq!(
            own("10.0.0.0/8"),
            None,
            "its halves have routes of their own"
        );
        assert_eq!(own("0.0.0.0/0").as_deref(), Some("0.0.0.1"));
        assert_eq!(own("::/0").as_deref(), Some("2001:db8::1"));
        assert_eq!(own("fd00::/64").as_deref(), Some("fd00::2"));
        let alone = BTreeSet::from([prefix("0.0.0.0/0")]);
        let address = prefix("0.0.0.0/0").own_address(&alone).map(ip);
        assert_eq!(address.unwrap().to_string(), "198.51.100.1");
    }

    #[test]
    fn what_says_nothing_new_is_not_kept() {
        let (a, b) = ("10.0.0.1".parse().ok(), "10.1.0.1".parse().ok());
        let sources = Sources::from([
            (ALL, None),
            (V4, a),
            (prefix("10.0.0.0/24"), a),
            (prefix("10.1.0.0/24"), b),
            (prefix("10.1.0.1/32"), b),
            (prefix("10.9.0.0/24"), None),
            (prefix("fd00::/64"), "fd00::1".parse().ok()),
        ]);
        let network = network(&sources, Vec::new());
        let kept: Vec<(u32, String)> = network
            .routes
            .iter()
            .map(|((bits, _), source)| (*bits, IpAddr::from(*source).to_string()))
            .collect();
        let wanted = [
            (64, "fd00::1"),
            (96, "10.0.0.1"),
            (120, "10.1.0.1"),
            (120, "0.0.0.0"),
        ];
        assert_eq!(kept, wanted.map(|(bits, source)| (bits, source.to_owned())));
    }

    #[test]
    fn without_routes_there_is_an_entry_for_ipv4() {
        let sources = Sources::from([(ALL, "fd00::1".parse().ok()), (V4, None)]);
        let network = network(&sources, Vec::new());
        let v4 = network.routes.get(&(96, Ip::from_v4(0)));
        assert!(
            v4.unwrap().is_unspecified(),
            "IPv4 would have an address of IPv6"
        );
    }
}
