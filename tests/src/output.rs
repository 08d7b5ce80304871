//! How the programs `load` and `traffic` speak to the test that started them: in lines.

use std::{
    fmt::Display,
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::Result;
use serde::Serialize;

/// Prints one line, at once: somebody may be waiting for it.
pub fn say(line: impl Display) -> Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Prints the account of a program as one line of JSON.
pub fn tell(account: &impl Serialize) -> Result<()> {
    say(serde_json::to_string(account)?)
}

/// What the program `name` ends with; an error is said.
pub fn end(name: &str, result: Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}
