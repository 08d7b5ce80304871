//! The toolchain that builds the kernel half: one that has the library's source and the LLVM that bpf-linker is built with.
//!
//! Two ways, in this order: a rustup nightly with rust-src, and Debian's packages beside rustup in /usr/bin.

use crate::{apt, linker, paths, process, step};
use anyhow::{Context as _, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// LLVM's major version, of rustc and of bpf-linker alike: bitcode of a newer LLVM cannot be read by an older one.
pub const LLVM_MAJOR: u32 = 22;

/// Debian's toolchain: the newest rustc that it keeps for its browsers, with the matching library source.
const DEBIAN_PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];
/// Where they are.
const DEBIAN_BIN: &str = "/usr/bin";
/// `SIDECAR_BPF_TOOLCHAIN=nightly` or `=debian` leaves only that way.
const CHOICE: &str = "SIDECAR_BPF_TOOLCHAIN";
/// A component of a toolchain is a few MB: where it does not come in this time, there is no way to rustup's server.
const COMPONENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a toolchain keeps the library's source.
const LIBRARY: &str = "lib/rustlib/src/rust/library";

/// A toolchain that can build BPF.
#[derive(Debug)]
pub struct Toolchain {
    /// Where its cargo and rustc are.
    bin: PathBuf,
}

impl Toolchain {
    /// The first that is ready, without installing anything.
    ///
    /// # Errors
    /// If none is.
    pub fn find() -> Result<Self> {
        find()?.with_context(|| "no toolchain here can build BPF: run `cargo xtask setup`")
    }

    /// The first that is ready; if none is, installs one.
    ///
    /// # Errors
    /// If neither way is open; the error says why, for each.
    pub fn find_or_install() -> Result<Self> {
        match find()? {
            Some(found) => Ok(found),
            None => install(),
        }
    }

    /// Its cargo, for the kernel half only: bpf-linker first on PATH, and no trace of the toolchain that runs xtask.
    pub fn cargo(&self) -> Command {
        let mut command = Command::new(self.bin.join("cargo"));
        process::clean(&mut command);
        for name in [
            "CARGO",
            "RUSTC",
            "RUSTDOC",
            "RUSTUP_TOOLCHAIN",
            "RUSTC_WRAPPER",
            "CARGO_BUILD_TARGET",
            "CARGO_ENCODED_RUSTFLAGS",
        ] {
            command.env_remove(name);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = [linker::directory(), self.bin.clone()]
            .into_iter()
            .chain(std::env::split_paths(&path));
        // join_paths refuses only what split_paths cannot have given.
        command.env("PATH", std::env::join_paths(path).unwrap_or_default());
        command
            .current_dir(paths::root())
            // `-Z build-std` on a compiler that is not a nightly.
            .env("RUSTC_BOOTSTRAP", "1")
            .env("RUSTFLAGS", "-C debuginfo=2 -C link-arg=--btf");
        command
    }

    /// The manifest of the library's source, which `-Z build-std` builds.
    pub fn library(&self) -> PathBuf {
        let sysroot = self.bin.parent().unwrap_or(&self.bin);
        sysroot.join(LIBRARY).join("Cargo.toml")
    }

    /// Installs its clippy where it has none.
    ///
    /// # Errors
    /// If that is not possible, with what to do.
    pub fn ensure_clippy(&self) -> Result<()> {
        if self.bin.join("cargo-clippy").is_file() {
            return Ok(());
        }
        if self.bin == Path::new(DEBIAN_BIN) {
            return apt::ensure(
                "for checking the kernel half",
                &["rust-web-clippy".to_owned()],
            );
        }
        bail!(
            "{} has no clippy: `rustup component add clippy` for that nightly",
            self.bin.display()
        )
    }
}

fn find() -> Result<Option<Toolchain>> {
    if wanted("nightly")? {
        for nightly in nightlies() {
            if nightly.fits() && nightly.has_source() {
                return Ok(Some(nightly.toolchain()));
            }
        }
    }
    Ok(if wanted("debian")? { debian() } else { None })
}

fn wanted(way: &str) -> Result<bool> {
    match std::env::var(CHOICE).as_deref() {
        Err(_) => Ok(true),
        Ok(choice @ ("nightly" | "debian")) => Ok(choice == way),
        Ok(other) => bail!("{CHOICE} is \"{other}\", expected \"nightly\" or \"debian\""),
    }
}

fn install() -> Result<Toolchain> {
    let mut refusals = Vec::new();
    if wanted("nightly")? {
        match install_source() {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => refusals.push(format!("rustup nightly: {error:#}")),
        }
    }
    if wanted("debian")? {
        let installed = apt::ensure("for building BPF", &DEBIAN_PACKAGES.map(str::to_owned))
            .and_then(|()| {
                debian().with_context(|| format!("/usr/bin/rustc is not of LLVM {LLVM_MAJOR}"))
            });
        match installed {
            Ok(toolchain) => return Ok(toolchain),
            Err(error) => refusals.push(format!("Debian's packages: {error:#}")),
        }
    }
    bail!(
        "found no way to a toolchain that can build BPF (library source, LLVM {LLVM_MAJOR}):\n  {}\n\
         Either way will do: `rustup toolchain install nightly-2026-05-20 --component rust-src`, or Debian's {}",
        refusals.join("\n  "),
        DEBIAN_PACKAGES.join(" ")
    )
}

/// A nightly of rustup's.
struct Nightly {
    name: String,
    /// Its directory, with `bin/` and `lib/`.
    sysroot: PathBuf,
}

impl Nightly {
    fn fits(&self) -> bool {
        llvm_major(&self.sysroot.join("bin/rustc")) == Some(LLVM_MAJOR)
            && self.sysroot.join("bin/cargo").is_file()
    }

    fn has_source(&self) -> bool {
        self.sysroot.join(LIBRARY).join("core").is_dir()
    }

    fn toolchain(&self) -> Toolchain {
        Toolchain {
            bin: self.sysroot.join("bin"),
        }
    }
}

/// The nightlies that rustup has installed; none if there is no rustup.
fn nightlies() -> Vec<Nightly> {
    let listed =
        process::output(Command::new("rustup").args(["toolchain", "list"])).unwrap_or_default();
    nightly_names(&listed)
        .filter_map(|name| {
            let rustc = process::output(Command::new("rustup").args([
                "which",
                "rustc",
                "--toolchain",
                name,
            ]))
            .ok()?;
            let sysroot = Path::new(&rustc).parent()?.parent()?.to_owned();
            Some(Nightly {
                name: name.to_owned(),
                sysroot,
            })
        })
        .collect()
}

fn nightly_names(listed: &str) -> impl Iterator<Item = &str> {
    listed
        .lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| name.starts_with("nightly"))
}

/// Adds the library's source to an installed nightly. No toolchain is installed: today's nightly may have any LLVM.
fn install_source() -> Result<Toolchain> {
    let nightly = nightlies()
        .into_iter()
        .find(Nightly::fits)
        .with_context(|| format!("none with LLVM {LLVM_MAJOR} is installed"))?;
    let limit = COMPONENT_TIMEOUT.as_secs().to_string();
    step::run(
        &format!("adding rust-src to {}", nightly.name),
        "The next way is tried.",
        Command::new("timeout").args([
            &limit,
            "rustup",
            "component",
            "add",
            "rust-src",
            "--toolchain",
            &nightly.name,
        ]),
    )?;
    if !nightly.has_source() {
        bail!(
            "{} has no library source although rustup added it",
            nightly.name
        );
    }
    Ok(nightly.toolchain())
}

fn debian() -> Option<Toolchain> {
    let bin = PathBuf::from(DEBIAN_BIN);
    let cargo = bin.join("cargo").is_file();
    let source = Path::new("/usr").join(LIBRARY).join("core").is_dir();
    let fits = cargo && source && llvm_major(&bin.join("rustc")) == Some(LLVM_MAJOR);
    fits.then_some(Toolchain { bin })
}

fn llvm_major(rustc: &Path) -> Option<u32> {
    // rustup's library path would make Debian's rustc load the wrong compiler.
    let mut command = Command::new(rustc);
    process::clean(&mut command);
    parse_llvm_major(&process::output(command.arg("-vV")).ok()?)
}

fn parse_llvm_major(version: &str) -> Option<u32> {
    let llvm = version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    llvm.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn llvm_is_read_from_rustcs_own_words() {
        assert_eq!(
            parse_llvm_major("rustc 1.96.0\nhost: x86_64\nLLVM version: 22.1.8"),
            Some(22)
        );
        assert_eq!(parse_llvm_major("rustc 1.96.0"), None);
    }

    #[test]
    fn only_nightlies_are_taken_from_the_list() {
        let listed = "stable-x86_64-unknown-linux-gnu (active, default)\nnightly-x86_64-unknown-linux-gnu\n1.95.0-x86_64\nnightly-2026-05-20 (override)";
        assert_eq!(
            nightly_names(listed).collect::<Vec<_>>(),
            ["nightly-x86_64-unknown-linux-gnu", "nightly-2026-05-20"]
        );
    }
}
