//! `cargo xtask run -- ARGS`: builds, then becomes `sidecar ARGS`.

use crate::{build, process, setup};
use anyhow::{Context as _, Result};
use std::{ffi::OsString, os::unix::process::CommandExt as _, process::Command};

/// How to build, and what to run.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    build: build::Args,
    /// What `sidecar` is given
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Builds, then replaces this process: signals and the exit code are sidecar's own.
///
/// # Errors
/// Those of the build, or if the binary does not start.
pub fn verb(arguments: &Args) -> Result<()> {
    setup::ensure(setup::Needs::Build)?;
    let binary = build::both_halves(arguments.build.profile())?;
    let mut sidecar = Command::new(&binary);
    process::clean(&mut sidecar);
    let error = sidecar.args(&arguments.arguments).exec();
    Err(error).with_context(|| format!("starting {}", binary.display()))
}
