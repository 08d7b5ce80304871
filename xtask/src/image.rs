//! `cargo xtask image`: the `sidecar` binary as a container image, in one archive that every engine loads. No engine, no base image
//! and no network are needed to build it, and the same inputs give the same digests.

mod archive;
mod contents;
mod layer;

use crate::{build, paths, process, setup, step};
use anyhow::{Context as _, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// What a node stores. The profile that is quick to build makes a larger binary, and is held to this compressed.
const LIMIT_BYTES: u64 = 25 * 1024 * 1024;

/// What to put into an image.
#[derive(clap::Args)]
#[group(skip)]
pub struct Args {
    /// A profile of Cargo.toml
    #[arg(long, default_value = RELEASE)]
    profile: String,
    /// The image's name and tag [default: localhost/sidecar:VERSION]
    #[arg(long, value_name = "NAME")]
    tag: Option<String>,
}

const RELEASE: &str = "release";

/// Builds both halves and the image, and prints where its archive is.
///
/// # Errors
/// Those of the setup, of the build and of [`of`].
pub fn verb(arguments: &Args) -> Result<()> {
    setup::ensure(setup::Needs::Build)?;
    let binary = build::both_halves(&arguments.profile)?;
    let tag = arguments.tag.clone().unwrap_or_else(default_tag);
    let archive = of(&binary, &arguments.profile, &tag)?;
    println!("{}", archive.display());
    Ok(())
}

/// Of the image that the manifests in deploy/ name.
pub fn default_tag() -> String {
    format!("localhost/sidecar:{}", env!("CARGO_PKG_VERSION"))
}

/// Writes the image of `binary`, says how large it is, and gives the archive's path.
///
/// # Errors
/// If a file that belongs into it cannot be read, or the image is larger than it may be.
pub fn of(binary: &Path, profile: &str, tag: &str) -> Result<PathBuf> {
    let directory = paths::target().join("image");
    std::fs::create_dir_all(&directory)
        .with_context(|| format!("creating {}", directory.display()))?;
    let stripped = strip(binary, &directory)?;
    let layers = [
        layer::pack(&contents::base(binary)?)?,
        layer::pack(&contents::sidecar(&stripped)?)?,
    ];
    let unpacked: u64 = layers.iter().map(|layer| layer.unpacked_bytes).sum();
    let compressed: u64 = layers.iter().map(|layer| layer.blob.len() as u64).sum();
    within_limit(profile, unpacked, compressed)?;

    let path = directory.join(format!("sidecar-{}.tar", env!("CARGO_PKG_VERSION")));
    let image = archive::Image {
        tag,
        revision: revision(),
        layers: &layers,
    };
    let digest = image.write(&path)?;
    eprintln!(
        " ✓ {tag}: {} compressed, {} unpacked, {digest}",
        mebibytes(compressed),
        mebibytes(unpacked)
    );
    Ok(path)
}

fn within_limit(profile: &str, unpacked: u64, compressed: u64) -> Result<()> {
    let (size, what) = if profile == RELEASE {
        (unpacked, "unpacked")
    } else {
        (compressed, "compressed")
    };
    if size > LIMIT_BYTES {
        bail!(
            "the image has {} {what}, and may have {}. Look for what made the binary grow: `cargo bloat`, a new dependency, debug information",
            mebibytes(size),
            mebibytes(LIMIT_BYTES)
        );
    }
    Ok(())
}

/// The binary without its symbols, a fifth of it that only a debugger reads.
fn strip(binary: &Path, directory: &Path) -> Result<PathBuf> {
    let stripped = directory.join("sidecar");
    step::run(
        "stripping the binary",
        "It needs `strip` of binutils, which compilers bring.",
        Command::new("strip")
            .arg("--strip-all")
            .arg("-o")
            .arg(&stripped)
            .arg(binary),
    )?;
    Ok(stripped)
}

/// The commit, where this is a git repository.
fn revision() -> Option<String> {
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args(["rev-parse", "HEAD"]);
    process::output(&mut git).ok()
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / 1_048_576.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn an_image_that_grew_too_large_is_refused() {
        assert!(within_limit(RELEASE, LIMIT_BYTES, 1).is_ok());
        let error = within_limit(RELEASE, LIMIT_BYTES + 1, 1).unwrap_err();
        assert!(error.to_string().contains("25.0 MiB unpacked"), "{error}");
        assert!(within_limit(build::TEST_PROFILE, LIMIT_BYTES + 1, 1).is_ok());
        assert!(within_limit(build::TEST_PROFILE, 1, LIMIT_BYTES + 1).is_err());
    }
}
