//! An agent with another object goes on where a former one ended: our programs are put in the place of its own, on every
//! link that it pinned and behind the stub on `FLOWS`, so that pods and connections that exist run them from then on.
//!
//! Each is replaced at once, without a moment in which a link has no program. The whole is looked at afterwards; if
//! anything fails, all that was replaced is put back.

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{Ebpf, programs::SkLookup};
use sidecar_common::names;
use thiserror::Error;

use super::{
    links,
    load::{self, LoadError, Loader, NO_SLOT},
    pins::{PinError, Pins},
};
use crate::sys::bpf;

#[derive(Debug, Error)]
pub enum UpgradeError {
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Pins(#[from] PinError),
    #[error("the pinned link {pin} cannot be given our program: {source}")]
    Link { pin: PathBuf, source: io::Error },
    #[error("{0} is pinned by an agent that attaches a program that we do not have")]
    Unknown(PathBuf),
    #[error("what moves messages past TCP cannot be replaced: {0}")]
    Relay(io::Error),
    #[error("{0} has another program than the one that it was given")]
    Unverified(PathBuf),
    #[error("the tracepoint cannot be replaced: {0}")]
    Tracepoint(String),
    #[error("the self-test of the new programs failed: {0}")]
    Refused(String),
}

/// A link whose program was replaced.
struct Replaced {
    pin: PathBuf,
    link: OwnedFd,
    old: OwnedFd,
    new: OwnedFd,
}

/// What was replaced so far; dropped before [`Done::keep`] it puts everything back.
struct Done {
    links: Vec<Replaced>,
    /// The map, what was in it, and what is.
    relay: Option<(OwnedFd, Option<OwnedFd>, OwnedFd)>,
    /// The name of the new tracepoint until it has that of the old one.
    tracepoint: Option<PathBuf>,
}

/// Replaces the programs of everything that is pinned in `shared` by an agent. `bpf` has all its programs loaded but those
/// for lookups. Gives the number of links.
pub fn replace(bpf: &mut Ebpf, loader: &mut Loader, shared: &Pins) -> Result<usize, UpgradeError> {
    let mut done = Done {
        links: Vec::new(),
        relay: None,
        tracepoint: None,
    };
    let agent = shared.directory.join(super::pins::AGENT);
    let splice = agent.join(names::TRACE_SPLICE);
    if splice.exists() {
        // It cannot be updated: both are attached for a moment, and say the same.
        let new = agent.join(format!("new-{}", names::TRACE_SPLICE));
        let _ = fs::remove_file(&new);
        let failed = |error: String| UpgradeError::Tracepoint(error);
        let link = links::watch_splice(bpf).map_err(|error| failed(error.to_string()))?;
        let pinned = link.pin(&new).map_err(|error| failed(error.to_string()))?;
        drop(pinned);
        done.tracepoint = Some(new);
    }
    for pin in link_pins(&agent) {
        done.replace(bpf, pin)?;
    }
    for found in shared.workloads()?.iter().filter(|w| w.pod.is_some()) {
        let mut lookup = None;
        for pin in link_pins(&found.directory) {
            if program_name(&pin) != Some(names::LOOKUP_INBOUND) {
                done.replace(bpf, pin)?;
                continue;
            }
            let bpf = match &mut lookup {
                Some(bpf) => bpf,
                none => none.insert(loader.load(found.slot)?),
            };
            done.replace(bpf, pin)?;
        }
    }
    done.replace_relay(bpf, shared)?;
    done.verify()?;
    if let Some(new) = done.tracepoint.take() {
        fs::rename(&new, &splice).map_err(|error| {
            done.tracepoint = Some(new);
            UpgradeError::Tracepoint(error.to_string())
        })?;
    }
    Ok(done.keep())
}

/// An object whose lookups are not used, but whose programs must have been accepted by the kernel before any is replaced.
pub fn try_lookup(loader: &mut Loader) -> Result<(), LoadError> {
    let mut bpf = loader.load(NO_SLOT)?;
    lookup(&mut bpf).map(drop)
}

impl Done {
    fn replace(&mut self, bpf: &mut Ebpf, pin: PathBuf) -> Result<(), UpgradeError> {
        let name = program_name(&pin).map(str::to_owned);
        let new = match name.as_deref() {
            Some(names::LOOKUP_INBOUND) => Some(lookup(bpf)?),
            Some(name) => loaded(bpf, name),
            None => None,
        };
        let Some(new) = new else {
            return Err(UpgradeError::Unknown(pin));
        };
        let replaced = || -> io::Result<(OwnedFd, OwnedFd)> {
            let link = bpf::pinned(&pin)?;
            let old = bpf::program(bpf::program_of_link(&link)?)?;
            bpf::update_link(&link, &new, &old)?;
            Ok((link, old))
        };
        let (link, old) = replaced().map_err(|source| UpgradeError::Link {
            pin: pin.clone(),
            source,
        })?;
        self.links.push(Replaced {
            pin,
            link,
            old,
            new,
        });
        Ok(())
    }

    fn replace_relay(&mut self, bpf: &mut Ebpf, shared: &Pins) -> Result<(), UpgradeError> {
        if !shared.directory.join(names::MSG_STUB).exists() {
            // Nothing is redirected here.
            return Ok(());
        }
        let new = load::relay(bpf)?;
        let relays = load::relays(shared)?;
        let replaced = || -> io::Result<Option<OwnedFd>> {
            let old = bpf::program_in(&relays, 0)?.map(bpf::program).transpose()?;
            bpf::put_program(&relays, 0, Some(&new))?;
            Ok(old)
        };
        let old = replaced().map_err(UpgradeError::Relay)?;
        self.relay = Some((relays, old, new));
        Ok(())
    }

    /// Asks the kernel what is attached now.
    fn verify(&self) -> Result<(), UpgradeError> {
        for Replaced { pin, link, new, .. } in &self.links {
            let ids = bpf::program_of_link(link).and_then(|is| Ok((is, bpf::program_id(new)?)));
            match ids {
                Ok((is, new)) if is == new => {}
                Ok(_) => return Err(UpgradeError::Unverified(pin.clone())),
                Err(source) => {
                    let pin = pin.clone();
                    return Err(UpgradeError::Link { pin, source });
                }
            }
        }
        if let Some((relays, _, new)) = &self.relay {
            let is = bpf::program_in(relays, 0).map_err(UpgradeError::Relay)?;
            if is != Some(bpf::program_id(new).map_err(UpgradeError::Relay)?) {
                return Err(UpgradeError::Unverified(PathBuf::from(names::MSG_PROGRAMS)));
            }
        }
        Ok(())
    }

    fn keep(mut self) -> usize {
        self.relay = None;
        std::mem::take(&mut self.links).len()
    }
}

impl Drop for Done {
    fn drop(&mut self) {
        if let Some((relays, old, _)) = self.relay.take()
            && let Err(error) = bpf::put_program(&relays, 0, old.as_ref())
        {
            tracing::error!(%error, "the former program that moves messages past TCP cannot be put back");
        }
        for Replaced {
            pin,
            link,
            old,
            new,
        } in self.links.drain(..).rev()
        {
            if let Err(error) = bpf::update_link(&link, &old, &new) {
                tracing::error!(pin = %pin.display(), %error, "the former program cannot be put back");
            }
        }
        if let Some(new) = self.tracepoint.take() {
            // Detached with its pin; the old one is there.
            let _ = fs::remove_file(new);
        }
    }
}

/// Links that agents pinned in a directory, in a fixed order; the tracepoint's is replaced otherwise.
fn link_pins(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut pins: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file() && program_name(path).is_some())
        .filter(|path| program_name(path) != Some(names::TRACE_SPLICE))
        .collect();
    pins.sort();
    pins
}

/// The program of a pin `<anything>-<program>`.
fn program_name(pin: &Path) -> Option<&str> {
    let (_, name) = pin.file_name()?.to_str()?.rsplit_once('-')?;
    Some(name)
}

fn loaded(bpf: &Ebpf, name: &str) -> Option<OwnedFd> {
    let fd = bpf.program(name)?.fd().ok()?;
    fd.as_fd().try_clone_to_owned().ok()
}

fn lookup(bpf: &mut Ebpf) -> Result<OwnedFd, LoadError> {
    let name = names::LOOKUP_INBOUND;
    let refused = |error| LoadError::Program { name, error };
    let program: &mut SkLookup = load::program(bpf, name)?;
    if program.fd().is_err() {
        program.load().map_err(refused)?;
    }
    let fd = program.fd().map_err(refused)?;
    fd.as_fd().try_clone_to_owned().map_err(LoadError::Relay)
}
