//! The routing and the devices of a workload's network namespace, as entries of the shared maps.

use std::collections::{BTreeMap, BTreeSet};

use aya::maps::lpm_trie::Key;
use sidecar_common::{
    address::Ip,
    names,
    settings::{CidrTarget, Device, DeviceKey},
};

use super::{ANY, Tables, of};
use crate::kernel::load::LoadError;

/// Of one workload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Network {
    /// Source addresses by the length of a prefix and its first address, all zero where there is none.
    pub routes: BTreeMap<(u32, Ip), Ip>,
    pub devices: BTreeSet<Device>,
}

impl Network {
    fn key(slot: u32, (bits, ip): (u32, Ip)) -> Key<CidrTarget> {
        Key::new(32 + bits, CidrTarget { workload: slot, ip })
    }

    /// All of a key, none of which is a prefix of others.
    fn whole(key: DeviceKey) -> Key<DeviceKey> {
        Key::new(8 * size_of::<DeviceKey>() as u32, key)
    }

    /// A device by its index, and by its name.
    fn keys(slot: u32, device: &Device) -> [DeviceKey; 2] {
        let nothing = DeviceKey {
            workload: slot,
            ..DeviceKey::default()
        };
        [
            DeviceKey {
                index: device.index,
                ..nothing
            },
            DeviceKey {
                name: device.name,
                ..nothing
            },
        ]
    }
}

impl Tables {
    /// The network namespace of the workload in `slot` is like that now: what is missing is added before what is obsolete goes.
    pub fn set_network(&mut self, slot: u32, wanted: Network) -> Result<(), LoadError> {
        let present = match self.networks.remove(&slot) {
            Some(present) => present,
            None => self.read_network(slot),
        };
        let written = self.write_network(slot, &present, &wanted);
        if written.is_ok() {
            self.networks.insert(slot, wanted);
        }
        written
    }

    pub(super) fn clear_network(&mut self, slot: u32) {
        // What another process may have left in the slot is not known.
        let present = match self.networks.remove(&slot) {
            Some(present) => present,
            None => self.read_network(slot),
        };
        // Best effort by nature: what is gone already is what is wanted.
        let _ = self.write_network(slot, &present, &Network::default());
    }

    fn read_network(&self, slot: u32) -> Network {
        let routes = self.routes.iter().flatten();
        let routes = routes.filter(|(key, _)| key.data().workload == slot);
        let devices = self.devices.iter().flatten();
        let devices = devices.filter(|(key, _)| key.data().workload == slot);
        Network {
            routes: routes
                .map(|(key, source)| ((key.prefix_len().saturating_sub(32), key.data().ip), source))
                .collect(),
            devices: devices.map(|(_, device)| device).collect(),
        }
    }

    fn write_network(
        &mut self,
        slot: u32,
        present: &Network,
        wanted: &Network,
    ) -> Result<(), LoadError> {
        for (prefix, source) in &wanted.routes {
            if present.routes.get(prefix) != Some(source) {
                self.routes
                    .insert(&Network::key(slot, *prefix), source, ANY)
                    .map_err(of(names::ROUTES))?;
            }
        }
        for prefix in present.routes.keys() {
            if !wanted.routes.contains_key(prefix) {
                // Not there: that is what is wanted.
                let _ = self.routes.remove(&Network::key(slot, *prefix));
            }
        }
        let mut keys = BTreeSet::new();
        for device in &wanted.devices {
            for key in Network::keys(slot, device) {
                keys.insert(key);
                if !present.devices.contains(device) {
                    self.devices
                        .insert(&Network::whole(key), device, ANY)
                        .map_err(of(names::DEVICES))?;
                }
            }
        }
        let obsolete = present.devices.difference(&wanted.devices);
        for key in obsolete.flat_map(|device| Network::keys(slot, device)) {
            // A name may have gone over to another device.
            if !keys.contains(&key) {
                let _ = self.devices.remove(&Network::whole(key));
            }
        }
        Ok(())
    }
}
