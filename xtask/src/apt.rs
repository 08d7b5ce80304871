//! Debian packages: which are missing, and their installation without starting any service that they bring.

use crate::{process, step};
use anyhow::{Context as _, Result, bail};
use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

/// Whether this machine has Debian's package manager.
pub fn available() -> bool {
    Path::new("/usr/bin/apt-get").is_file()
}

/// Set by the owner of a machine where packages are installed by other means.
const WITHOUT: &str = "XTASK_WITHOUT_APT";

/// Installs those of `packages` that are missing. `purpose` completes "installing packages …".
///
/// # Errors
/// If some are missing and cannot be installed: no apt-get, no root, or apt-get's own failure. Each says what to do.
pub fn ensure(purpose: &str, packages: &[String]) -> Result<()> {
    if packages.is_empty() || std::env::var_os(WITHOUT).is_some() {
        return Ok(());
    }
    if !available() {
        bail!(
            "this machine has no apt-get, and installing packages {purpose} is written for Debian. Install the like of these by hand: {}; \
             then set {WITHOUT}=1 to go on without this check",
            packages.join(" ")
        );
    }
    let missing = missing(packages)?;
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !process::is_root() {
        bail!(
            "packages {purpose} are missing. Install them as root: apt-get install --no-install-recommends {names}"
        );
    }
    let _no_services = NoServices::begin()?;
    // Stale lists name package versions that are gone. If one source of several fails, the installation tells whether it mattered.
    let refreshed = step::run(
        "apt-get update",
        "Check the network and /etc/apt/sources.list*.",
        apt_get().arg("update"),
    );
    step::run(
        &format!("installing packages {purpose}: {names}"),
        "Check the network and /etc/apt/sources.list*, or install them by hand.",
        apt_get()
            .args(["install", "-y", "--no-install-recommends"])
            .args(&missing),
    )
    .or_else(|error| refreshed.and(Err(error)))
}

fn apt_get() -> Command {
    let mut command = Command::new("/usr/bin/apt-get");
    process::clean(&mut command);
    command.env("DEBIAN_FRONTEND", "noninteractive").args([
        "-q",
        "-o",
        "DPkg::Lock::Timeout=300",
        "-o",
        "Dpkg::Use-Pty=0",
    ]);
    command
}

/// Those of `packages` that dpkg does not have installed.
fn missing(packages: &[String]) -> Result<Vec<String>> {
    // dpkg-query fails if it has never heard of one of them, and still lists the others.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${db:Status-Status}\n"])
        .args(packages)
        .output()
        .context("starting dpkg-query")?;
    let listed = String::from_utf8_lossy(&output.stdout);
    Ok(not_installed(packages, &listed))
}

fn not_installed(packages: &[String], listed: &str) -> Vec<String> {
    let installed: BTreeSet<_> = listed
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect();
    packages
        .iter()
        .filter(|package| !installed.contains(package.as_str()))
        .cloned()
        .collect()
}

/// While it lives, packages may not start their services; when dropped, services that were enabled meanwhile are disabled again,
/// so that none starts at the next boot either.
struct NoServices {
    policy: Option<PathBuf>,
    enabled_before: BTreeSet<PathBuf>,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";
const WANTED: &str = "/etc/systemd/system/multi-user.target.wants";

impl NoServices {
    fn begin() -> Result<Self> {
        // Debian's invoke-rc.d asks this program before it starts anything; 101 means no.
        let made = std::fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY);
        let policy = match made {
            Ok(mut file) => {
                file.write_all(b"#!/bin/sh\n# Written by cargo xtask for the time of one apt-get install.\nexit 101\n")
                    .with_context(|| format!("writing {POLICY}"))?;
                file.set_permissions(std::fs::Permissions::from_mode(0o755))
                    .with_context(|| format!("making {POLICY} executable"))?;
                Some(PathBuf::from(POLICY))
            }
            // The machine has a policy of its own, as container images do.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => None,
            Err(error) => return Err(error).with_context(|| format!("creating {POLICY}")),
        };
        Ok(Self {
            policy,
            enabled_before: enabled(),
        })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        for unit in enabled().difference(&self.enabled_before) {
            let name = unit.file_name().unwrap_or_default();
            let disabled = Command::new("systemctl").arg("disable").arg(name).output();
            if !disabled.is_ok_and(|output| output.status.success()) {
                eprintln!(
                    " ! {} will start at the next boot: systemctl disable it",
                    name.display()
                );
            }
        }
        if let Some(policy) = &self.policy
            && let Err(error) = std::fs::remove_file(policy)
        {
            eprintln!(
                " ! remove {} by hand ({error}): it keeps packages from starting services",
                policy.display()
            );
        }
    }
}

fn enabled() -> BTreeSet<PathBuf> {
    std::fs::read_dir(WANTED)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn removed_and_unknown_packages_are_missing() {
        let packages = ["curl", "nginx-light", "unheard-of"].map(str::to_owned);
        let listed = "curl installed\nnginx-light config-files\n";
        assert_eq!(
            not_installed(&packages, listed),
            ["nginx-light", "unheard-of"]
        );
        assert!(not_installed(&packages[..1], listed).is_empty());
    }
}
