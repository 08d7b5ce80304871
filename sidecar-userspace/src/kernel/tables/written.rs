//! What is written in the shared maps of rules, by workload: so that a change costs what differs, and no workload takes the
//! room of the others.
//!
//! Each map has 65,536 entries for all workloads of a node. [`GUARANTEED`] entries of each kind are kept free for every slot that
//! there can be, so that an enrolment with no more than these never fails for want of room. Of what is beyond that a workload gets at
//! most a part of what is left, so that many greedy ones together leave something, too.

use std::collections::BTreeMap;

use aya::maps::{MapError, lpm_trie::Key};
use sidecar_common::settings::{CidrTarget, DenyTarget, MAX_WORKLOADS, PortKey};
use thiserror::Error;

/// Of each of the maps.
const CAPACITY: usize = 65_536;
/// Entries of each kind that a workload always gets.
const GUARANTEED: usize = 8;
/// For a moment a map holds the new rules of one workload beside its old ones.
const OLD_BESIDE_NEW: usize = 4096;
/// What workloads share beyond what each always gets.
const SHARED: usize = CAPACITY - OLD_BESIDE_NEW - MAX_WORKLOADS as usize * GUARANTEED;
/// A workload gets at most one in so many of the shared entries that are left.
const PART: usize = 8;

/// What a rule is found by.
pub trait RuleKey: Copy {
    /// `PortKey` and the like have no order.
    type Order: Ord + Copy;
    fn slot(&self) -> u32;
    /// Among those of its slot.
    fn order(&self) -> Self::Order;
}

impl RuleKey for PortKey {
    type Order = (u16, u16);
    fn slot(&self) -> u32 {
        self.workload
    }
    fn order(&self) -> Self::Order {
        (self.direction, self.port)
    }
}

impl RuleKey for Key<CidrTarget> {
    type Order = (u32, [u32; 4]);
    fn slot(&self) -> u32 {
        self.data().workload
    }
    fn order(&self) -> Self::Order {
        (self.prefix_len(), self.data().ip.0)
    }
}

impl RuleKey for Key<DenyTarget> {
    type Order = (u32, u16, u16, [u32; 4]);
    fn slot(&self) -> u32 {
        self.data().workload
    }
    fn order(&self) -> Self::Order {
        let DenyTarget {
            port, protocol, ip, ..
        } = self.data();
        (self.prefix_len(), port, protocol, ip.0)
    }
}

/// Rules of one kind, of one workload.
pub struct Rules<K: RuleKey>(BTreeMap<K::Order, (K, u32)>);

impl<K: RuleKey> Default for Rules<K> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<K: RuleKey> FromIterator<(K, u32)> for Rules<K> {
    fn from_iter<I: IntoIterator<Item = (K, u32)>>(rules: I) -> Self {
        let ordered = rules.into_iter().map(|rule| (rule.0.order(), rule));
        Self(ordered.collect())
    }
}

impl<K: RuleKey> Rules<K> {
    fn add(&mut self, key: K, value: u32) {
        self.0.insert(key.order(), (key, value));
    }

    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.values().map(|(key, _)| key)
    }

    /// Makes these the `wanted` ones: what is missing is added before what is obsolete goes. `write` puts a value into the map,
    /// or takes the entry out. After an error these are what is in the map.
    pub fn follow(
        &mut self,
        wanted: &Self,
        mut write: impl FnMut(&K, Option<u32>) -> Result<(), MapError>,
    ) -> Result<(), MapError> {
        for (order, (key, value)) in &wanted.0 {
            if self.0.get(order).is_none_or(|(_, old)| old != value) {
                write(key, Some(*value))?;
                self.0.insert(*order, (*key, *value));
            }
        }
        let present = self.0.iter();
        let obsolete = present.filter(|(order, _)| !wanted.0.contains_key(order));
        let obsolete: Vec<_> = obsolete.map(|(order, (key, _))| (*order, *key)).collect();
        for (order, key) in obsolete {
            write(&key, None)?;
            self.0.remove(&order);
        }
        Ok(())
    }
}

/// Rules of one workload.
#[derive(Default)]
pub struct OfWorkload {
    pub ports: Rules<PortKey>,
    pub cidrs: Rules<Key<CidrTarget>>,
    pub denials: Rules<Key<DenyTarget>>,
}

impl OfWorkload {
    /// By kind.
    fn counts(&self) -> [usize; 3] {
        [self.ports.0.len(), self.cidrs.0.len(), self.denials.0.len()]
    }
}

const KINDS: [&str; 3] = [
    "port rules",
    "excluded ranges",
    "denied combinations of range, port and protocol",
];

/// The workload asks for more than there is room for.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "{wanted} {what} are too many for this node now, whose workloads share the room: this one may have {most}, and {GUARANTEED} always. \
     Let it have fewer, such as wider ranges"
)]
pub struct TooMany {
    what: &'static str,
    wanted: usize,
    most: usize,
}

/// What this process knows of the maps.
#[derive(Default)]
pub struct Known {
    /// Of workloads whose rules it has written: exactly what is there.
    held: BTreeMap<u32, OfWorkload>,
    /// Of others, when it looked: exact for those that it has taken over from a former agent.
    found: Option<BTreeMap<u32, OfWorkload>>,
}

impl Known {
    pub fn has_looked(&self) -> bool {
        self.found.is_some()
    }

    /// Takes in everything that is in the maps.
    pub fn look(
        &mut self,
        ports: impl Iterator<Item = (PortKey, u32)>,
        cidrs: impl Iterator<Item = (Key<CidrTarget>, u32)>,
        denials: impl Iterator<Item = (Key<DenyTarget>, u32)>,
    ) {
        let mut found: BTreeMap<u32, OfWorkload> = BTreeMap::new();
        for (key, value) in ports {
            found.entry(key.slot()).or_default().ports.add(key, value);
        }
        for (key, value) in cidrs {
            found.entry(key.slot()).or_default().cidrs.add(key, value);
        }
        for (key, value) in denials {
            found.entry(key.slot()).or_default().denials.add(key, value);
        }
        found.retain(|slot, _| !self.held.contains_key(slot));
        self.found = Some(found);
    }

    /// What is in the maps for a workload whose rules are about to be written; give it back with [`Known::hold`].
    pub fn take(&mut self, slot: u32) -> OfWorkload {
        let held = self.held.remove(&slot);
        let found = self.found.as_mut().and_then(|found| found.remove(&slot));
        held.or(found).unwrap_or_default()
    }

    pub fn hold(&mut self, slot: u32, rules: OfWorkload) {
        self.held.insert(slot, rules);
    }

    /// The slot is to be somebody else's: what is in the maps for it, if that is known for certain.
    pub fn forget(&mut self, slot: u32) -> Option<OfWorkload> {
        if let Some(found) = &mut self.found {
            found.remove(&slot);
        }
        self.held.remove(&slot)
    }

    /// Whether there is room for what the workload in `slot` wants; `None`: one that has no slot so far.
    pub fn check_room(&self, slot: Option<u32>, wanted: &OfWorkload) -> Result<(), TooMany> {
        let found = self.found.iter().flatten();
        let all = || self.held.iter().chain(found.clone());
        let own = slot.and_then(|slot| all().find(|(other, _)| **other == slot));
        let own = own.map_or([0; 3], |(_, rules)| rules.counts());
        let mut taken = [0; 3];
        for (_, rules) in all().filter(|(other, _)| Some(**other) != slot) {
            for (sum, count) in taken.iter_mut().zip(rules.counts()) {
                *sum += count.saturating_sub(GUARANTEED);
            }
        }
        for (((what, wanted), own), taken) in
            KINDS.into_iter().zip(wanted.counts()).zip(own).zip(taken)
        {
            let most = (GUARANTEED + SHARED.saturating_sub(taken) / PART).max(own);
            if wanted > most {
                return Err(TooMany { what, wanted, most });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports(slot: u32, ports: impl IntoIterator<Item = u16>) -> Rules<PortKey> {
        let key = |port| PortKey {
            workload: slot,
            port,
            direction: 1,
        };
        ports.into_iter().map(|port| (key(port), 1)).collect()
    }

    fn with_ports(slot: u32, count: u16) -> OfWorkload {
        OfWorkload {
            ports: ports(slot, 1..=count),
            ..OfWorkload::default()
        }
    }

    #[test]
    fn only_what_differs_is_written_and_additions_first() {
        let mut present = ports(7, [1, 2, 3]);
        let mut written = Vec::new();
        let mut record = |key: &PortKey, value: Option<u32>| {
            written.push((key.port, value));
            Ok(())
        };
        present.follow(&ports(7, [2, 3, 4]), &mut record).unwrap();
        present.follow(&ports(7, [2, 3, 4]), &mut record).unwrap();
        assert_eq!(written, [(4, Some(1)), (1, None)]);
    }

    #[test]
    fn what_failed_is_tried_again() {
        let mut present = ports(7, [1]);
        let refuse = |key: &PortKey, _: Option<u32>| match key.port {
            2 => Ok(()),
            _ => Err(MapError::KeyNotFound),
        };
        present.follow(&ports(7, [2, 3]), refuse).unwrap_err();
        let left: Vec<u16> = present.keys().map(|key| key.port).collect();
        assert_eq!(left, [1, 2]);
    }

    #[test]
    fn greedy_workloads_leave_room_for_everybody() {
        let mut known = Known::default();
        let mut granted = 0;
        // As many as a node can have; each asks for the most, and then for what it was told that it may have.
        for slot in 0..MAX_WORKLOADS {
            let mut rules = with_ports(slot, 3072);
            if let Err(refused) = known.check_room(None, &rules) {
                assert!(refused.most >= GUARANTEED, "{refused}");
                rules = with_ports(slot, u16::try_from(refused.most).unwrap());
            }
            assert_eq!(known.check_room(None, &rules), Ok(()));
            granted += rules.ports.0.len();
            known.hold(slot, rules);
        }
        assert!(granted + OLD_BESIDE_NEW <= CAPACITY, "{granted}");
        let refused = known.check_room(Some(0), &with_ports(0, 3073)).unwrap_err();
        assert!(refused.to_string().contains("3073 port rules"), "{refused}");
        // Nobody has to give back what it has.
        assert_eq!(known.check_room(Some(0), &with_ports(0, 3072)), Ok(()));
    }

    #[test]
    fn a_normal_workload_has_room_beside_many_greedy_ones() {
        let mut known = Known::default();
        for slot in 0..32 {
            let mut rules = with_ports(slot, 2048);
            if let Err(refused) = known.check_room(None, &rules) {
                rules = with_ports(slot, u16::try_from(refused.most).unwrap());
            }
            known.hold(slot, rules);
        }
        assert_eq!(known.check_room(None, &with_ports(99, 50)), Ok(()));
    }

    #[test]
    fn a_slot_is_known_only_while_it_is_held() {
        let mut known = Known::default();
        let key = PortKey {
            workload: 3,
            port: 80,
            direction: 1,
        };
        known.look([(key, 1)].into_iter(), [].into_iter(), [].into_iter());
        assert_eq!(known.take(3).counts(), [1, 0, 0]);
        known.hold(3, with_ports(3, 2));
        assert_eq!(known.forget(3).map(|rules| rules.counts()), Some([2, 0, 0]));
        // Another process may have written since.
        assert!(known.forget(3).is_none());
    }
}
