//! The ways by which traffic reaches the proxies, or none.

use std::{fmt, path::PathBuf, str::FromStr};

use anyhow::{Context, Error, Result, bail, ensure};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// No proxy.
    Direct,
    /// `sidecar proxy` behind iptables' REDIRECT, with the rules of istio-init.
    Iptables,
    /// `sidecar run` without redirect: the connect hook and sk_lookup.
    Steer,
    /// `sidecar run`.
    Redirect,
    /// Real Envoy behind the same iptables rules.
    Envoy,
    /// A proxy that a script starts, behind the same iptables rules.
    Script(PathBuf),
}

/// What `--peer` names: `envoy`, or the path of a script.
pub fn peer(name: &str) -> Result<Mode> {
    if name == "envoy" {
        return Ok(Mode::Envoy);
    }
    let path = PathBuf::from(name);
    let path = path.canonicalize().with_context(|| {
        format!("a peer is `envoy` or the path of a script, and {name} is neither")
    })?;
    let known = ["direct", "iptables", "steer", "redirect", "envoy"];
    let mode = Mode::Script(path);
    ensure!(
        !known.contains(&mode.to_string().as_str()),
        "a script called {mode} cannot be told from the mode: rename it"
    );
    Ok(mode)
}

/// The modes of our own proxy, and what they are compared with.
pub const OWN: [Mode; 4] = [Mode::Direct, Mode::Iptables, Mode::Steer, Mode::Redirect];

impl Mode {
    /// Whether iptables brings the connections to the proxies.
    pub fn uses_iptables(&self) -> bool {
        matches!(self, Self::Iptables | Self::Envoy | Self::Script(_))
    }
}

impl FromStr for Mode {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        Ok(match name {
            "direct" => Self::Direct,
            "iptables" => Self::Iptables,
            "steer" => Self::Steer,
            "redirect" => Self::Redirect,
            _ => bail!("no mode is called {name}: direct, iptables, steer or redirect"),
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Direct => f.write_str("direct"),
            Self::Iptables => f.write_str("iptables"),
            Self::Steer => f.write_str("steer"),
            Self::Redirect => f.write_str("redirect"),
            Self::Envoy => f.write_str("envoy"),
            Self::Script(path) => {
                let name = path.file_stem().unwrap_or_default();
                write!(f, "{}", name.to_string_lossy())
            }
        }
    }
}
