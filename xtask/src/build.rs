//! `cargo xtask build`: the kernel half as one BPF object, then the `sidecar` binary that embeds it.

use crate::{paths, process, setup, step, toolchain::Toolchain};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

/// Optimised enough for load tests, quick to build.
pub const TEST_PROFILE: &str = "test-release";

/// What to build.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// Fully optimised, slower to build
    #[arg(long, conflicts_with = "profile")]
    release: bool,
    /// A profile of Cargo.toml
    #[arg(long, default_value = TEST_PROFILE)]
    profile: String,
}

impl Args {
    /// The profile that was asked for.
    pub fn profile(&self) -> &str {
        if self.release {
            "release"
        } else {
            &self.profile
        }
    }
}

/// Builds, and prints where the binary is.
///
/// # Errors
/// Those of the setup and of [`both_halves`].
pub fn verb(arguments: &Args) -> Result<()> {
    setup::ensure(setup::Needs::Build)?;
    let binary = both_halves(arguments.profile())?;
    println!("{}", binary.display());
    Ok(())
}

/// Builds both halves and gives the binary's path.
///
/// # Errors
/// If either half does not build; the error shows the compiler's last lines.
pub fn both_halves(profile: &str) -> Result<PathBuf> {
    kernel_half()?;
    let mut cargo = process::userspace_cargo();
    cargo.args([
        "build",
        "--locked",
        "--package",
        "sidecar-userspace",
        "--profile",
        profile,
    ]);
    step::run(
        &format!("building sidecar ({profile})"),
        "Mend what the compiler says above.",
        &mut cargo,
    )?;
    Ok(paths::sidecar(profile))
}

/// Builds the BPF object and puts it where the userspace half embeds it from.
///
/// # Errors
/// If it does not build, or what was built is no BPF object.
pub fn kernel_half() -> Result<()> {
    let toolchain = Toolchain::find()?;
    let mut cargo = toolchain.cargo();
    cargo.args(["build", "--locked"]).args(KERNEL_HALF);
    step::run(
        "building the BPF object",
        "Mend what the compiler or bpf-linker says above.",
        &mut cargo,
    )?;
    let built = paths::target().join("bpfel-unknown-none/bpf/sidecar-ebpf");
    place(&built, &paths::bpf_object())
}

/// Selects the kernel half: its package, target and profile, and the core library built for it.
pub const KERNEL_HALF: [&str; 10] = [
    "--package",
    "sidecar-ebpf",
    "--bin",
    "sidecar-ebpf",
    "--target",
    "bpfel-unknown-none",
    "--profile",
    "bpf",
    "-Z",
    "build-std=core",
];

/// Copies `built` only if it differs: an object that is newer makes cargo build the userspace half again.
fn place(built: &Path, object: &Path) -> Result<()> {
    let new = std::fs::read(built).with_context(|| format!("reading {}", built.display()))?;
    if !is_bpf_object(&new) {
        bail!("{} is no BPF object", built.display());
    }
    if std::fs::read(object).is_ok_and(|old| old == new) {
        return Ok(());
    }
    if let Some(directory) = object.parent() {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("creating {}", directory.display()))?;
    }
    std::fs::write(object, new).with_context(|| format!("writing {}", object.display()))
}

/// ELF, 64 bits, little endian, machine 247 (EM_BPF).
fn is_bpf_object(bytes: &[u8]) -> bool {
    bytes.starts_with(&[0x7f, b'E', b'L', b'F', 2, 1]) && bytes.get(18..20) == Some(&[247, 0])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;
    use std::time::{Duration, SystemTime};

    fn bpf_object(tail: u8) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1]);
        bytes[18] = 247;
        bytes.push(tail);
        bytes
    }

    #[test]
    fn an_unchanged_object_is_left_alone_and_a_changed_one_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let (built, object) = (
            directory.path().join("built"),
            directory.path().join("bpf/sidecar.o"),
        );
        std::fs::write(&built, bpf_object(1)).unwrap();
        place(&built, &object).unwrap();

        let yesterday = SystemTime::now() - Duration::from_secs(86_400);
        std::fs::File::open(&object)
            .unwrap()
            .set_modified(yesterday)
            .unwrap();
        let modified = || std::fs::metadata(&object).unwrap().modified().unwrap();
        let before = modified();
        place(&built, &object).unwrap();
        assert_eq!(modified(), before);

        std::fs::write(&built, bpf_object(2)).unwrap();
        place(&built, &object).unwrap();
        assert!(modified() > before);
    }

    #[test]
    fn a_host_binary_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = place(
            &std::env::current_exe().unwrap(),
            &directory.path().join("sidecar.o"),
        )
        .unwrap_err();
        assert!(error.to_string().ends_with("is no BPF object"), "{error}");
    }
}
