//! What objects must have in common to share maps: the ABI, and how each map is made.
//!
//! The directory of pins is called after it, so that objects of one layout meet, whichever build they are, and others
//! never do. What is pinned there is looked at all the same before it is used: somebody may have put it there.

use std::{collections::BTreeMap, path::Path, sync::OnceLock};

use aya::maps::MapInfo;
use aya_obj::Object;
use sidecar_common::{layout::ABI_VERSION, names};

use super::{
    load::{LoadError, OBJECT},
    pins::PinError,
};

/// Set to `other-abi`, objects are taken for such of the next ABI: for tests that need two, never for use.
const FAULT: (&str, &str) = ("SIDECAR_FAULT", "other-abi");

/// Type, key, value, entries and flags.
type Made = [u32; 5];

/// Of the embedded object.
#[derive(Debug)]
pub struct Layout {
    name: String,
    maps: BTreeMap<&'static str, Made>,
}

impl Layout {
    pub fn own() -> Result<&'static Self, LoadError> {
        static OWN: OnceLock<Layout> = OnceLock::new();
        if let Some(own) = OWN.get() {
            return Ok(own);
        }
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        let read = Self::read(OBJECT)?;
        Ok(OWN.get_or_init(|| read))
    }

    fn read(object: &[u8]) -> Result<Self, LoadError> {
        let object = Object::parse(object).map_err(aya::EbpfError::from)?;
        let mut maps = BTreeMap::new();
        for name in names::SHARED_MAPS.into_iter().chain([names::EVENTS]) {
            let map = object.maps.get(name).ok_or(LoadError::Missing(name))?;
            let made = [
                map.map_type(),
                map.key_size(),
                map.value_size(),
                map.max_entries(),
                map.map_flags(),
            ];
            maps.insert(name, made);
        }
        let other = std::env::var(FAULT.0).is_ok_and(|fault| fault == FAULT.1);
        let abi = ABI_VERSION + u32::from(other);
        let bytes = maps.iter().flat_map(|(name, made)| {
            let numbers = made.iter().flat_map(|number| number.to_le_bytes());
            name.bytes().chain(numbers)
        });
        Ok(Self {
            name: format!("v{abi}-{:08x}", fingerprint(bytes)),
            maps,
        })
    }

    /// Of the directory of pins.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether what is pinned in `directory` under the names of our maps was made like them.
    pub fn check(&self, directory: &Path) -> Result<(), PinError> {
        for (name, made) in &self.maps {
            let path = match *name {
                names::EVENTS => directory.join(super::pins::AGENT).join(name),
                _ => directory.join(name),
            };
            if !path.exists() {
                continue;
            }
            let found = MapInfo::from_pin(&path).ok().map(|map| {
                let kind = map.map_type().map_or(u32::MAX, |kind| kind as u32);
                let (key, value, entries) = (map.key_size(), map.value_size(), map.max_entries());
                [kind, key, value, entries, map.map_flags()]
            });
            // For some types the kernel sets flags of its own.
            if found.is_none_or(|found| found[..4] != made[..4]) {
                return Err(PinError::Foreign(path));
            }
        }
        Ok(())
    }
}

/// FNV-1a: tells builds apart, guards nothing.
pub fn fingerprint(bytes: impl IntoIterator<Item = u8>) -> u32 {
    bytes.into_iter().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}
