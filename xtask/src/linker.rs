//! bpf-linker, built into the target directory against Debian's LLVM.

use crate::{apt, paths, process, step, toolchain::LLVM_MAJOR};
use anyhow::{Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

const VERSION: &str = "0.13.0";

/// LLVM with its headers, what it links to, and a C++ compiler for its standard library.
const PACKAGES: [&str; 7] = [
    "llvm-22-dev",
    "libllvm22",
    "libpolly-22-dev",
    "zlib1g-dev",
    "libzstd-dev",
    "libxml2-dev",
    "g++",
];

/// Where it is.
pub fn directory() -> PathBuf {
    paths::tools().join("bin")
}

/// Builds it if it is not there, or no longer starts (as when LLVM's library was removed).
///
/// # Errors
/// If LLVM cannot be installed or the build fails.
pub fn ensure() -> Result<()> {
    if ready() {
        return Ok(());
    }
    let prefix = llvm_prefix()?;
    step::run(
        &format!("building bpf-linker {VERSION}"),
        "It needs LLVM's headers and libraries: see LLVM_PREFIX in the command's environment, and the network for its sources.",
        &mut build(&prefix),
    )?;
    if !ready() {
        bail!(
            "bpf-linker was built into {} but does not start there",
            directory().display()
        );
    }
    Ok(())
}

fn ready() -> bool {
    let version = process::output(Command::new(directory().join("bpf-linker")).arg("--version"));
    version.is_ok_and(|version| version == format!("bpf-linker {VERSION}"))
}

fn build(prefix: &Path) -> Command {
    let mut cargo = process::host_cargo();
    cargo
        .args([
            "install",
            "bpf-linker",
            "--version",
            VERSION,
            "--locked",
            "--force",
            "--no-default-features",
        ])
        .args(["--features", &format!("llvm-{LLVM_MAJOR}")])
        .arg("--root")
        .arg(paths::tools())
        .env("LLVM_PREFIX", prefix)
        .env(format!("LLVM_SYS_{LLVM_MAJOR}1_PREFIX"), prefix);
    cargo
}

/// Where LLVM is: as LLVM_PREFIX says, else where Debian puts it, installed if need be.
fn llvm_prefix() -> Result<PathBuf> {
    if let Some(given) = std::env::var_os("LLVM_PREFIX") {
        return Ok(given.into());
    }
    apt::ensure("for building bpf-linker", &PACKAGES.map(str::to_owned))?;
    Ok(PathBuf::from(format!("/usr/lib/llvm-{LLVM_MAJOR}")))
}
