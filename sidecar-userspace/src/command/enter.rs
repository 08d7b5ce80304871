//! `enter`: this process moves into a cgroup and becomes the application, so that it is steered from its first
//! system call.

use std::{
    os::unix::process::CommandExt,
    process::{Command, ExitCode},
};

use anyhow::{Context, Result};

use crate::{cli::Enter, sys::cgroup::Cgroup};

pub fn run(args: Enter) -> Result<ExitCode> {
    let (program, arguments) = args.command.split_first().context("no command")?;
    Cgroup::open(&args.cgroup)?.enter()?;
    let error = Command::new(program).args(arguments).exec();
    // As a shell says it: 127 not found, 126 found and not runnable.
    eprintln!("sidecar: cannot run {}: {error}", program.display());
    Ok(ExitCode::from(
        if error.kind() == std::io::ErrorKind::NotFound {
            127
        } else {
            126
        },
    ))
}
