//! Loads the BPF object: shared maps from their pins where another sidecar has made them, programs anew.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::Path,
    sync::OnceLock,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapError, SockHash},
    pin::PinError as AyaPinError,
    programs::{Program, ProgramError, SkMsg},
};
use sidecar_common::{
    names,
    settings::{LoadConstants, MAX_WORKLOADS},
};
use thiserror::Error;

use super::{
    pins::Pins,
    tables::{self, TooMany},
};
use crate::sys::bpf;

/// The BPF object, as `cargo xtask build` made it; empty in a build without the kernel half.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sidecar.o"));

#[derive(Debug, Error)]
pub enum LoadError {
    #[error("this binary was built without the kernel half: build it with `cargo xtask build`")]
    NoObject,
    #[error("cannot load the kernel half: {0}; `sidecar check` says what this kernel lacks")]
    Object(#[from] aya::EbpfError),
    #[error(
        "the kernel refused {name}: {}; `sidecar check` says what this kernel lacks",
        brief(error)
    )]
    // Not called its source, which would be shown again with all of the verifier's log.
    Program {
        name: &'static str,
        error: ProgramError,
    },
    #[error("the kernel half has no {0}: object and binary are of different versions")]
    Missing(&'static str),
    #[error("map {name}: {source}")]
    Map {
        name: &'static str,
        source: MapError,
    },
    #[error(transparent)]
    Rules(#[from] TooMany),
    #[error("cannot make the map {name}: {source}")]
    Array {
        name: &'static str,
        source: io::Error,
    },
    #[error("cannot say what moves messages past TCP: {0}")]
    Relay(io::Error),
    #[error("cannot pin {name}: {source}")]
    Pin {
        name: &'static str,
        source: AyaPinError,
    },
}

/// The verifier's log is for `--log debug`, not for a line of text.
pub(super) fn brief(error: &ProgramError) -> String {
    match error {
        ProgramError::LoadError {
            io_error,
            verifier_log,
        } => {
            tracing::debug!(%verifier_log, "program refused");
            io_error.to_string()
        }
        other => other.to_string(),
    }
}

/// Loads the object, once or several times.
///
/// The maps are shared by the sidecars of a node; the programs are this one's own, because `lookup_inbound`
/// carries whose it is in its constants.
pub struct Loader(EbpfLoader<'static>);

impl Loader {
    /// `events`: where the ring buffer is pinned, if it is to outlive its reader; else each object has one of its own.
    pub fn new(
        pins: &Pins,
        constants: &LoadConstants,
        events: Option<&Path>,
    ) -> Result<Self, LoadError> {
        if OBJECT.is_empty() {
            return Err(LoadError::NoObject);
        }
        // One for the life of the process, as are those of which there are few.
        static LOAD_CONSTANTS: OnceLock<LoadConstants> = OnceLock::new();
        let constants = LOAD_CONSTANTS.get_or_init(|| *constants);
        tables::make_arrays(&pins.directory)?;
        let mut loader = EbpfLoader::new();
        // It has the kernel's types read for relocations that Rust does not make: 10 ms and 20 MB each time.
        loader.btf(None);
        for name in names::SHARED_MAPS {
            loader.map_pin_path(name, pins.directory.join(name));
        }
        if let Some(events) = events {
            loader.map_pin_path(names::EVENTS, events.to_owned());
        }
        let log_level = match tracing::enabled!(tracing::Level::DEBUG) {
            true => &DEBUG,
            false => &SILENT,
        };
        loader
            .override_global(names::LOAD_CONSTANTS, constants, true)
            .override_global(LOG_LEVEL, log_level, true);
        Ok(Self(loader))
    }

    /// The object for the workload in `slot`, whose inbound connections `lookup_inbound` steers.
    pub fn load(&mut self, slot: u32) -> Result<Ebpf, LoadError> {
        let slot = SLOTS.get(slot as usize).unwrap_or(&NO_SLOT);
        self.0.override_global(names::LOOKUP_WORKLOAD, slot, true);
        Ok(self.0.load(OBJECT)?)
    }
}

/// The loader keeps references, which must live as long as it does.
static SLOTS: [u32; MAX_WORKLOADS as usize] = {
    let mut slots = [0; MAX_WORKLOADS as usize];
    let mut slot = 0;
    while slot < MAX_WORKLOADS {
        slots[slot as usize] = slot;
        slot += 1;
    }
    slots
};
/// Of an object whose lookup is not used.
pub const NO_SLOT: u32 = u32::MAX;

/// aya-log's switch: below it the programs contain no logging at all.
const LOG_LEVEL: &str = "AYA_LOG_LEVEL";

static DEBUG: u8 = 4;
static SILENT: u8 = 0;

/// Attaches `msg_stub` to `FLOWS`, unless somebody has; the map keeps it for as long as it lives. Has it call our
/// `msg_redirect`, if `ours` says so or it calls none.
pub fn attach_relay(bpf: &mut Ebpf, pins: &Pins, ours: bool) -> Result<(), LoadError> {
    let name = names::MSG_STUB;
    let pin = pins.directory.join(name);
    if !pin.exists() {
        let map_error = |source| LoadError::Map {
            name: names::FLOWS,
            source,
        };
        let flows = bpf
            .map(names::FLOWS)
            .ok_or(LoadError::Missing(names::FLOWS))?;
        let flows = SockHash::<_, u64>::try_from(flows).map_err(map_error)?;
        let flows = flows.fd().try_clone().map_err(|e| map_error(e.into()))?;
        let refused = |error| LoadError::Program { name, error };
        let stub: &mut SkMsg = program(bpf, name)?;
        stub.load().map_err(refused)?;
        let link = stub.attach(&flows).map_err(refused)?;
        // Dropped, it would detach the program for every sidecar of the node: from here on the map owns it.
        std::mem::forget(stub.take_link(link).map_err(refused)?);
        stub.pin(&pin)
            .map_err(|source| LoadError::Pin { name, source })?;
    }
    let relays = relays(pins)?;
    let called = bpf::program_in(&relays, 0).map_err(LoadError::Relay)?;
    if ours || called.is_none() {
        let relay = relay(bpf)?;
        bpf::put_program(&relays, 0, Some(&relay)).map_err(LoadError::Relay)?;
    }
    Ok(())
}

/// The map in which `msg_stub` finds what it calls.
pub fn relays(pins: &Pins) -> Result<OwnedFd, LoadError> {
    bpf::pinned(&pins.directory.join(names::MSG_PROGRAMS)).map_err(LoadError::Relay)
}

/// Our `msg_redirect`, loaded.
pub fn relay(bpf: &mut Ebpf) -> Result<OwnedFd, LoadError> {
    let name = names::MSG_REDIRECT;
    let refused = |error| LoadError::Program { name, error };
    let relay: &mut SkMsg = program(bpf, name)?;
    if relay.fd().is_err() {
        relay.load().map_err(refused)?;
    }
    let fd = relay.fd().map_err(refused)?;
    fd.as_fd().try_clone_to_owned().map_err(LoadError::Relay)
}

/// A program of the object by name and type.
pub fn program<'a, T>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut T, LoadError>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = bpf.program_mut(name).ok_or(LoadError::Missing(name))?;
    program
        .try_into()
        .map_err(|error| LoadError::Program { name, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `sidecar check` has a row for it, and an agent that cannot start a line.
    #[test]
    fn a_refusal_is_one_line() {
        let error = || ProgramError::LoadError {
            io_error: io::Error::from_raw_os_error(libc::EACCES),
            verifier_log: aya_obj::VerifierLog::new("a line of the verifier's log\n".repeat(900)),
        };
        let name = names::CGROUP_CONNECT4;
        let refused = LoadError::Program {
            name,
            error: error(),
        };
        let attached = super::super::attach::AttachError::Attach {
            name,
            target: "/cgroup".into(),
            error: error(),
        };
        for error in [anyhow::Error::from(refused), attached.into()] {
            for text in [error.to_string(), format!("{error:#}")] {
                assert!(
                    text.contains(name) && text.lines().count() == 1,
                    "{} lines",
                    text.lines().count()
                );
            }
        }
    }
}
