//! `schema`, `completions`, `man`: generated from the definitions of settings and arguments.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{cli::Cli, config};

pub fn schema() -> Result<ExitCode> {
    print(config::schema::json().as_bytes())
}

pub fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sidecar", &mut script);
    print(&script)
}

pub fn man() -> Result<ExitCode> {
    let mut page = Vec::new();
    clap_mangen::Man::new(Cli::command()).render(&mut page)?;
    print(&page)
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(bytes: &[u8]) -> Result<ExitCode> {
    match io::stdout().write_all(bytes) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}
