//! `cargo xtask setup`: installs what is missing. Silent, and done in a moment, when all is there.

use crate::{apt, go, linker, paths, process, step, toolchain::Toolchain};
use anyhow::{Context as _, Result};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// How much of the setup a verb needs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// To build both halves.
    Build,
    /// And the Debian packages that the tests and the machines of `vm` use.
    Packages,
    /// And what else the tests use.
    Everything,
}

/// The test runner, and the version that is built where the machine has none.
const NEXTEST_VERSION: &str = "0.9.143";

/// Installs what `needs` lack.
///
/// # Errors
/// With what could not be installed and what to do about it.
pub fn ensure(needs: Needs) -> Result<()> {
    let toolchain = Toolchain::find_or_install()?;
    linker::ensure()?;
    sources(&toolchain)?;
    if needs != Needs::Build {
        apt::ensure(
            "for the tests",
            &listed(&paths::root().join("tests/packages.txt"))?,
        )?;
    }
    if needs == Needs::Everything {
        python()?;
        go::ensure()?;
        nextest()?;
    }
    Ok(())
}

/// Where tests find the python with the packages of tests/requirements.txt, if that file asks for any.
pub fn venv() -> PathBuf {
    paths::target().join("venv")
}

/// Downloads the sources of every crate in Cargo.lock and of those that the core library is resolved with, so that builds need no
/// network from here on.
fn sources(toolchain: &Toolchain) -> Result<()> {
    let library = toolchain.library();
    let mut locks = Vec::new();
    for lock in [
        paths::root().join("Cargo.lock"),
        library.with_file_name("Cargo.lock"),
    ] {
        locks.extend(std::fs::read(&lock).with_context(|| format!("reading {}", lock.display()))?);
    }
    let fetched = paths::tools().join("fetched.lock");
    if std::fs::read(&fetched).is_ok_and(|then| then == locks) {
        return Ok(());
    }
    let advice = "Check the network, and that Cargo.lock is committed as it is.";
    step::run(
        "downloading crates",
        advice,
        process::host_cargo().args(["fetch", "--locked"]),
    )?;
    let mut library_crates = toolchain.cargo();
    library_crates
        .args(["fetch", "--locked", "--manifest-path"])
        .arg(&library);
    step::run(
        "downloading the core library's crates",
        advice,
        &mut library_crates,
    )?;
    std::fs::create_dir_all(paths::tools()).context("creating the directory of tools")?;
    std::fs::write(&fetched, locks).with_context(|| format!("writing {}", fetched.display()))
}

fn python() -> Result<()> {
    let requirements = paths::root().join("tests/requirements.txt");
    if !requirements.is_file() || listed(&requirements)?.is_empty() {
        return Ok(());
    }
    let installed = venv().join("installed.txt");
    if same_content(&requirements, &installed) {
        return Ok(());
    }
    apt::ensure(
        "for a Python environment",
        &["python3".to_owned(), "python3-venv".to_owned()],
    )?;
    // /usr/bin: a python3 earlier on PATH may be a version manager's shim, gone tomorrow.
    step::run(
        "creating target/venv",
        "It needs Debian's python3 and python3-venv.",
        Command::new("/usr/bin/python3")
            .args(["-m", "venv", "--clear"])
            .arg(venv()),
    )?;
    step::run(
        "installing tests/requirements.txt",
        "Check the network and the versions in that file.",
        Command::new(venv().join("bin/pip"))
            .args(["install", "--quiet", "--requirement"])
            .arg(&requirements),
    )?;
    std::fs::copy(&requirements, &installed)
        .with_context(|| format!("writing {}", installed.display()))?;
    Ok(())
}

/// A process a test, and time limits: plain `cargo test` has neither, so the tests are not run without it.
fn nextest() -> Result<()> {
    if process::on_path("cargo-nextest") || paths::tools().join("bin/cargo-nextest").is_file() {
        return Ok(());
    }
    step::run(
        &format!("building cargo-nextest {NEXTEST_VERSION} (some minutes, once)"),
        "Or install it yourself: https://nexte.st",
        process::host_cargo()
            .args([
                "install",
                "cargo-nextest",
                "--version",
                NEXTEST_VERSION,
                "--locked",
                "--root",
            ])
            .arg(paths::tools()),
    )
}

/// The entries of a list, one a line, `#` begins a comment.
fn listed(path: &Path) -> Result<Vec<String>> {
    let text =
        std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    Ok(entries(&text))
}

fn entries(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.split('#').next())
        .map(|line| line.trim().to_owned())
        .filter(|line| !line.is_empty())
        .collect()
}

fn same_content(one: &Path, other: &Path) -> bool {
    match (std::fs::read(one), std::fs::read(other)) {
        (Ok(one), Ok(other)) => one == other,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn lists_allow_comments_and_empty_lines() {
        assert_eq!(
            entries("# servers\nnginx-light\n\n  redis-server # speaks first? no\n"),
            ["nginx-light", "redis-server"]
        );
    }
}
