//! The programs that take part, ours and others', and their versions.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};
use sidecar_tests::world::programs::packaged;

pub struct Programs {
    pub sidecar: PathBuf,
    pub load: PathBuf,
    pub envoy: Option<PathBuf>,
}

impl Programs {
    /// `sidecar` is the binary under test. The load generator is that of this build: cargo puts it beside this program.
    pub fn find(sidecar: &Path, envoy: Option<&Path>) -> Result<Self> {
        let load = env::current_exe()?.with_file_name("load");
        ensure!(
            load.is_file(),
            "{} is missing: build it with `cargo build -p sidecar-tests --bin load`",
            load.display()
        );
        let sidecar = sidecar
            .canonicalize()
            .with_context(|| format!("no sidecar at {}", sidecar.display()))?;
        let envoy = match envoy {
            Some(path) => {
                let found = path.canonicalize();
                Some(found.with_context(|| format!("no Envoy at {}", path.display()))?)
            }
            None => None,
        };
        Ok(Self {
            sidecar,
            load,
            envoy,
        })
    }

    pub fn sidecar_version(&self) -> Result<String> {
        first_line(Command::new(&self.sidecar).arg("--version"))
    }

    /// What Envoy says of itself, in short.
    pub fn envoy_version(&self) -> Result<Option<String>> {
        let Some(envoy) = &self.envoy else {
            return Ok(None);
        };
        let output = Command::new(envoy).arg("--version").output();
        let said = output.with_context(|| format!("starting {}", envoy.display()))?;
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        // envoy  version: <commit>/<version>/Clean/RELEASE/BoringSSL
        let version = said.rsplit_once("version: ").map_or("", |(_, rest)| rest);
        let version = version.split('/').nth(1).unwrap_or(version.trim());
        Ok(Some(format!("Envoy {version}")))
    }

    pub fn nginx_version(&self) -> Result<String> {
        let version = first_line(Command::new(packaged("nginx", "nginx")?).arg("-v"))?;
        Ok(version.trim_start_matches("nginx version: ").to_owned())
    }
}

/// Of what a program says of its version, wherever it says it.
pub fn first_line(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("starting {command:?}"))?;
    let said = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let said = String::from_utf8_lossy(&said);
    Ok(said.lines().next().unwrap_or_default().trim().to_owned())
}
