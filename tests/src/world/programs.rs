//! Where the programs are: ours, and those of Debian's packages.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

/// Variables of the environment that change what the programs do: a proxy for the machine's own traffic, a log filter.
pub const FOREIGN_VARIABLES: [&str; 14] = [
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "RUST_LOG",
    "SIDECAR_LOG",
    "SIDECAR_FAULT",
    "SIDECAR_AGENT",
    "SIDECAR_SETTINGS",
    "SIDECAR_IMAGE",
];

/// The program that plays connections.
pub fn traffic() -> Result<PathBuf> {
    own("traffic")
}

/// A binary of the tests, of this build: cargo puts it beside the tests' directory.
pub fn own(name: &str) -> Result<PathBuf> {
    let test = env::current_exe()?;
    let path = test
        .ancestors()
        .nth(2)
        .map(|profile| profile.join(name))
        .context("the tests stand nowhere")?;
    if !path.is_file() {
        bail!(
            "{} is missing: build it with `cargo build -p sidecar-tests --bin {name}`",
            path.display()
        );
    }
    Ok(path)
}

/// The binary under test: `SIDECAR_BIN`, else what `cargo xtask build` made.
pub fn sidecar() -> Result<PathBuf> {
    let target = target()?;
    let built = ["test-release", "debug"].map(|profile| target.join(profile).join("sidecar"));
    let candidates: Vec<PathBuf> = match env::var_os("SIDECAR_BIN") {
        Some(path) => vec![path.into()],
        None => built.into(),
    };
    candidates.iter().find(|path| path.is_file()).cloned().with_context(|| {
        format!("no sidecar binary at {candidates:?}: run `cargo xtask build`, or name one with SIDECAR_BIN")
    })
}

/// A Python with the packages of tests/requirements.txt, which `cargo xtask setup` installs.
pub fn python() -> Result<PathBuf> {
    let python = interpreter()?;
    if !python.is_file() {
        bail!("{} is missing: run `cargo xtask setup`", python.display());
    }
    Ok(python)
}

/// Whether it is there or not.
fn interpreter() -> Result<PathBuf> {
    if let Some(python) = env::var_os("SIDECAR_PYTHON") {
        return Ok(python.into());
    }
    Ok(target()?.join("venv/bin/python3"))
}

/// Where cargo builds.
fn target() -> Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .context("the tests stand in no workspace")?;
    Ok(env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace.join("target"), PathBuf::from))
}

/// A program in Go of tests/peers, which `cargo xtask setup` builds.
pub fn peer(name: &str) -> Result<PathBuf> {
    let path = target()?.join("peers").join(name);
    if !path.is_file() {
        bail!("{} is missing: run `cargo xtask setup`", path.display());
    }
    Ok(path)
}

/// Envoy: `SIDECAR_ENVOY`, else that of tests/requirements.txt, which `cargo xtask setup` installs.
pub fn envoy() -> Result<PathBuf> {
    if let Some(path) = env::var_os("SIDECAR_ENVOY") {
        return Ok(path.into());
    }
    let python = interpreter()?;
    let environment = python.ancestors().nth(2).unwrap_or(&python).join("lib");
    // lib/python3.11/site-packages/…
    let versions = std::fs::read_dir(&environment)
        .into_iter()
        .flatten()
        .flatten();
    versions
        .map(|version| version.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
        .with_context(|| {
            format!(
                "no Envoy in {}: run `cargo xtask setup`, or name one with SIDECAR_ENVOY",
                environment.display()
            )
        })
}

/// A program that a package of tests/requirements.txt brings.
pub fn in_venv(program: &str) -> Result<PathBuf> {
    let path = python()?.with_file_name(program);
    if !path.is_file() {
        bail!("no {}: run `cargo xtask setup`", path.display());
    }
    Ok(path)
}

/// A program of a Debian package, by its usual paths: a missing one is an error that names the package.
pub fn packaged(program: &str, package: &str) -> Result<PathBuf> {
    ["/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        .iter()
        .map(|directory| Path::new(directory).join(program))
        .find(|path| path.is_file())
        .with_context(|| format!("{program} is missing: apt-get install {package}"))
}
