//! Proxies that know nothing of us (`sidecar agent --byo-proxy`): Envoy, or any other that asks for the original
//! destination with `SO_ORIGINAL_DST`. They do not enrol; the agent's file says where they run, and the agent takes their
//! listeners from them.
//!
//! ```yaml
//! workloads:
//! - cgroup: /my.slice/shop          # the application's, with the proxy's in it
//!   proxy: /my.slice/shop/envoy
//!   outboundPort: 15001             # on loopback
//!   inboundPort: 15006
//!   steering: { name: shop, failRule: closed }
//! ```

use std::{
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Deserialize;
use thiserror::Error;

use super::caller::is_alive;
use crate::{
    kernel::{
        adopt::listening_sockets,
        held::{self, Budget},
    },
    model::Steering,
    sys::{
        cgroup::{Cgroup, CgroupError},
        netns::Namespace,
    },
};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    workloads: Vec<Foreign>,
}

/// A workload whose proxy is somebody else's.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Foreign {
    cgroup: PathBuf,
    proxy: PathBuf,
    #[serde(default = "outbound_port")]
    pub outbound_port: u16,
    #[serde(default = "inbound_port")]
    pub inbound_port: u16,
    pub steering: Steering,
}

fn outbound_port() -> u16 {
    15001
}

fn inbound_port() -> u16 {
    15006
}

#[derive(Debug, Error)]
pub enum ForeignError {
    #[error("{path}: {source}")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path}: {message}")]
    Content { path: PathBuf, message: String },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error("the proxy's cgroup {proxy} is not below the workload's, {cgroup}")]
    NotBelow { proxy: PathBuf, cgroup: PathBuf },
    #[error(
        "no process in {cgroup} listens on both port {outbound} (outbound) and {inbound} (inbound)"
    )]
    NoProxy {
        cgroup: PathBuf,
        outbound: u16,
        inbound: u16,
    },
    #[error("cannot tell its network namespace: {0}")]
    Namespace(io::Error),
}

/// The workloads of the file.
pub fn load(path: &Path) -> Result<Vec<Foreign>, ForeignError> {
    let text = fs::read_to_string(path).map_err(|source| ForeignError::Read {
        path: path.to_owned(),
        source,
    })?;
    let wrong = |message: String| ForeignError::Content {
        path: path.to_owned(),
        message,
    };
    let file: File = serde_saphyr::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    for workload in &file.workloads {
        workload.steering.check().map_err(wrong)?;
    }
    Ok(file.workloads)
}

/// A proxy that runs.
pub struct Found {
    pub cgroup: Cgroup,
    pub proxy: Cgroup,
    pub pid: u32,
    pub process: OwnedFd,
    pub namespace: Namespace,
    /// Its listeners, the inbound one first.
    pub sockets: Vec<OwnedFd>,
}

impl Foreign {
    pub fn cgroup(&self) -> Result<Cgroup, CgroupError> {
        Cgroup::open(&self.cgroup)
    }

    /// Looks for the proxy.
    pub fn look(&self) -> Result<Found, ForeignError> {
        let (cgroup, proxy) = (self.cgroup()?, Cgroup::open(&self.proxy)?);
        if !cgroup.contains(&proxy) || cgroup == proxy {
            return Err(ForeignError::NotBelow {
                proxy: proxy.path().to_owned(),
                cgroup: cgroup.path().to_owned(),
            });
        }
        for pid in proxy.all_processes() {
            if let Some((process, sockets)) = self.listeners_of(pid) {
                let inbound = sockets.first().ok_or_else(|| self.missing(&proxy))?;
                let namespace = Namespace::of_socket(inbound).map_err(ForeignError::Namespace)?;
                return Ok(Found {
                    cgroup,
                    proxy,
                    pid,
                    process,
                    namespace,
                    sockets,
                });
            }
        }
        Err(self.missing(&proxy))
    }

    fn missing(&self, proxy: &Cgroup) -> ForeignError {
        ForeignError::NoProxy {
            cgroup: proxy.path().to_owned(),
            outbound: self.outbound_port,
            inbound: self.inbound_port,
        }
    }

    fn listeners_of(&self, pid: u32) -> Option<(OwnedFd, Vec<OwnedFd>)> {
        let process = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let process = pidfd_open(process, PidfdFlags::empty()).ok()?;
        let mut sockets = listening_sockets(pid, &held::directory(pid), &mut Budget::default());
        let listens = |port| sockets.iter().any(|(on, _)| *on == port);
        if !listens(self.outbound_port) || !listens(self.inbound_port) {
            return None;
        }
        sockets.sort_by_key(|(port, _)| *port != self.inbound_port);
        let sockets = sockets.into_iter().map(|(_, socket)| socket.into());
        // They were its own, if it lives still.
        is_alive(process.as_fd()).then(|| (process, sockets.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loaded(text: &str) -> Result<Vec<Foreign>, ForeignError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxies.yaml");
        fs::write(&path, text).unwrap();
        load(&path)
    }

    #[test]
    fn a_file_says_who_is_whose() {
        let text = "workloads:\n- cgroup: /a\n  proxy: /a/envoy\n  steering: { name: shop }\n";
        let workloads = loaded(text).unwrap();
        assert_eq!(workloads[0].outbound_port, 15001);
        assert_eq!(workloads[0].steering.name, "shop");
        for bad in [
            text.replace("proxy:", "porxy:"),
            text.replace("shop", "../x"),
            text.replace("name: shop", "failRule: maybe, name: shop"),
        ] {
            let error = loaded(&bad).unwrap_err().to_string();
            assert!(error.contains("proxies.yaml"), "{error}");
        }
    }
}
