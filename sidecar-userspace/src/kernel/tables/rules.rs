//! The rules of a workload: what its configuration says of ports and addresses, as entries of the shared maps.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv6Addr},
};

use aya::{
    Pod,
    maps::{
        MapData, MapError,
        lpm_trie::{Key, LpmTrie},
    },
};
use sidecar_common::{
    address::Ip,
    names,
    settings::{
        CAPTURE_LISTED, CAPTURE_NAMESPACE, CAPTURE_WORKLOAD, CIDR_EXCLUDE, CidrTarget, INBOUND,
        OUTBOUND, PORT_CAPTURE, PORT_EXCLUDE, PORT_NO_REDIRECT, PortKey, WORKLOAD_ADAPTIVE,
        WORKLOAD_DENIES, WORKLOAD_ENROLLED, WORKLOAD_FAIL_CLOSED, Workload,
    },
};

use super::{
    ANY, Tables,
    denials::denials,
    of,
    written::{OfWorkload, RuleKey, Rules},
};
use crate::{
    kernel::{
        load::LoadError,
        proof::{Proof, Reach},
    },
    model::{Cidr, FailRule, InboundCapture, Steering},
};

impl Tables {
    /// Makes the rules of `slot` these: what is missing is added before what is obsolete goes.
    pub fn set_rules(&mut self, slot: u32, steering: &Steering) -> Result<(), LoadError> {
        self.look_at_rules();
        let wanted = rules(slot, steering);
        let mut present = self.rules.take(slot);
        let written = self.write_rules(&mut present, &wanted);
        self.rules.hold(slot, present);
        written
    }

    /// Whether the node has room for the rules of a workload: the one in `slot`, or one that has none so far.
    pub fn check_room(&mut self, slot: Option<u32>, steering: &Steering) -> Result<(), LoadError> {
        self.look_at_rules();
        let wanted = rules(slot.unwrap_or_default(), steering);
        Ok(self.rules.check_room(slot, &wanted)?)
    }

    pub(super) fn clear_rules(&mut self, slot: u32) {
        // What another process may have left in the slot is not known.
        let present = match self.rules.forget(slot) {
            Some(known) => known,
            None => OfWorkload {
                ports: of_slot(slot, self.ports.iter()),
                cidrs: of_slot(slot, self.cidrs.iter()),
                denials: of_slot(slot, self.denials.iter()),
            },
        };
        // Best effort by nature: what is gone already is what is wanted.
        for key in present.ports.keys() {
            let _ = self.ports.remove(key);
        }
        for key in present.cidrs.keys() {
            let _ = self.cidrs.remove(key);
        }
        for key in present.denials.keys() {
            let _ = self.denials.remove(key);
        }
    }

    /// Once: from then on what is in the maps is known without reading them, which costs by what all workloads have.
    fn look_at_rules(&mut self) {
        if !self.rules.has_looked() {
            let (ports, cidrs) = (self.ports.iter(), self.cidrs.iter());
            let denials = self.denials.iter();
            self.rules
                .look(ports.flatten(), cidrs.flatten(), denials.flatten());
        }
    }

    fn write_rules(
        &mut self,
        present: &mut OfWorkload,
        wanted: &OfWorkload,
    ) -> Result<(), LoadError> {
        let ports = &mut self.ports;
        let ports = present.ports.follow(&wanted.ports, |key, rule| match rule {
            Some(rule) => ports.insert(key, rule, ANY),
            None => gone(ports.remove(key)),
        });
        ports.map_err(of(names::PORTS))?;
        let cidrs = present
            .cidrs
            .follow(&wanted.cidrs, |key, rule| write(&mut self.cidrs, key, rule));
        cidrs.map_err(of(names::CIDRS))?;
        let denials = present.denials.follow(&wanted.denials, |key, rule| {
            write(&mut self.denials, key, rule)
        });
        denials.map_err(of(names::DENIALS))
    }
}

/// Puts an entry into a trie, or takes it out.
fn write<K: Pod>(
    trie: &mut LpmTrie<MapData, K, u32>,
    key: &Key<K>,
    rule: Option<u32>,
) -> Result<(), MapError> {
    match rule {
        Some(rule) => trie.insert(key, rule, ANY),
        None => gone(trie.remove(key)),
    }
}

/// An entry that is not there is one that was to go.
fn gone(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        removed => removed,
    }
}

fn of_slot<K: RuleKey>(
    slot: u32,
    entries: impl Iterator<Item = Result<(K, u32), MapError>>,
) -> Rules<K> {
    let entries = entries.flatten();
    entries.filter(|(key, _)| key.slot() == slot).collect()
}

/// All rules of a workload, as entries of the maps.
fn rules(slot: u32, steering: &Steering) -> OfWorkload {
    let ports = port_rules(slot, steering).into_iter();
    OfWorkload {
        ports: ports.map(|(key, rule)| (key.0, rule)).collect(),
        cidrs: exclusions(slot, &steering.outbound_exclude_cidrs)
            .into_iter()
            .collect(),
        denials: denials(slot, &steering.outbound_deny, &steering.outbound_allow)
            .into_iter()
            .collect(),
    }
}

/// The entry of a workload in `WORKLOADS`. `own_namespace`: nobody else uses the network namespace.
pub fn workload_entry(
    steering: &Steering,
    enrolment: u64,
    netns: u64,
    outbound_port: u16,
    reach: &Reach,
    own_namespace: bool,
) -> Workload {
    let flag = |on: bool, flag: u32| if on { flag } else { 0 };
    let (level, limit) = reach.within(steering.redirect.allowed());
    Workload {
        outbound_port,
        capture: match steering.inbound_capture {
            InboundCapture::Workload if own_namespace => CAPTURE_NAMESPACE,
            InboundCapture::Workload => CAPTURE_WORKLOAD,
            InboundCapture::Listed => CAPTURE_LISTED,
            InboundCapture::None => 0,
        },
        flags: WORKLOAD_ENROLLED
            | level.flags()
            | flag(steering.redirect.adaptive, WORKLOAD_ADAPTIVE)
            | flag(!steering.outbound_deny.is_empty(), WORKLOAD_DENIES)
            | flag(steering.fail_rule == FailRule::Closed, WORKLOAD_FAIL_CLOSED),
        credit_bytes: steering.redirect.credit_bytes,
        redirect_limit: limit.map_or(0, Proof::number),
        enrolment,
        netns,
    }
}

/// `PortKey` in an order of its own, for sets.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Sorted(PortKey);

impl Ord for Sorted {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        let key = |k: &PortKey| (k.workload, k.direction, k.port);
        key(&self.0).cmp(&key(&other.0))
    }
}

impl PartialOrd for Sorted {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

fn port_rules(slot: u32, steering: &Steering) -> BTreeMap<Sorted, u32> {
    let mut rules = BTreeMap::new();
    let mut add = |direction, port, rule| {
        *rules
            .entry(Sorted(PortKey {
                workload: slot,
                port,
                direction,
            }))
            .or_insert(0) |= rule;
    };
    steering
        .outbound_exclude_ports
        .iter()
        .for_each(|port| add(OUTBOUND, *port, PORT_EXCLUDE));
    steering
        .inbound_exclude_ports
        .iter()
        .for_each(|port| add(INBOUND, *port, PORT_EXCLUDE));
    steering
        .inbound_ports
        .iter()
        .for_each(|port| add(INBOUND, *port, PORT_CAPTURE));
    for port in &steering.redirect.exclude_ports {
        add(OUTBOUND, *port, PORT_NO_REDIRECT);
        add(INBOUND, *port, PORT_NO_REDIRECT);
    }
    rules
}

/// The entries for ranges that are not steered.
fn exclusions(slot: u32, cidrs: &[Cidr]) -> Vec<(Key<CidrTarget>, u32)> {
    let entry = |cidr: &Cidr| {
        let (bits, ip) = mapped(cidr);
        let target = CidrTarget {
            workload: slot,
            ip: Ip::from(IpAddr::from(ip)),
        };
        (Key::new(32 + bits, target), CIDR_EXCLUDE)
    };
    cidrs.iter().map(entry).collect()
}

/// The length of a range's prefix, and its address, in IPv6, of which IPv4 has a part.
pub(super) fn mapped(cidr: &Cidr) -> (u32, Ipv6Addr) {
    let bits = u32::from(cidr.prefix_bits());
    match cidr.address() {
        IpAddr::V4(v4) => (96 + bits, v4.to_ipv6_mapped()),
        IpAddr::V6(v6) => (bits, v6),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::Snapshot;

    #[test]
    fn ipv4_has_its_place_in_ipv6() {
        let ranges = ["10.0.0.0/8", "fd00::/8"];
        let ranges: Vec<Cidr> = ranges.iter().filter_map(|r| r.parse().ok()).collect();
        let entries = exclusions(7, &ranges);
        let seen = |(key, rule): &(Key<CidrTarget>, u32)| {
            let target = key.data();
            assert_eq!((target.workload, *rule), (7, CIDR_EXCLUDE));
            (key.prefix_len(), IpAddr::from(target.ip).to_string())
        };
        let entries: Vec<_> = entries.iter().map(seen).collect();
        assert_eq!(entries[0], (32 + 96 + 8, "10.0.0.0".to_owned()));
        assert_eq!(entries[1], (32 + 8, "fd00::".to_owned()));
    }

    #[test]
    fn ports_with_several_rules_have_one_entry() {
        let mut steering = Steering::from(&Snapshot::builtin());
        steering.inbound_exclude_ports = BTreeSet::from([80]);
        steering.inbound_ports = BTreeSet::from([80]);
        steering.redirect.exclude_ports = BTreeSet::from([80]);
        let rules = port_rules(7, &steering);
        let of = |direction| {
            rules[&Sorted(PortKey {
                workload: 7,
                port: 80,
                direction,
            })]
        };
        assert_eq!(of(INBOUND), PORT_EXCLUDE | PORT_CAPTURE | PORT_NO_REDIRECT);
        assert_eq!(of(OUTBOUND), PORT_NO_REDIRECT);
    }
}
