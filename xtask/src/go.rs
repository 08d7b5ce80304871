//! Programs in Go that the tests talk to: a folder of tests/peers each, built into the target directory.

use crate::{apt, paths, process, step};
use anyhow::{Context as _, Result};
use std::{path::Path, process::Command};

/// Their folders, and what the programs are called.
const PROGRAMS: [&str; 1] = ["kubelet"];

/// Builds those whose sources are not those that they were last built from.
///
/// # Errors
/// If there is no Go and none can be installed, or a build fails.
pub fn ensure() -> Result<()> {
    PROGRAMS.into_iter().try_for_each(program)
}

fn program(name: &str) -> Result<()> {
    let folder = paths::root().join("tests/peers").join(name);
    let built = paths::target().join("peers").join(name);
    let (sources, of_built) = (sources(&folder)?, built.with_extension("sources"));
    if built.is_file() && std::fs::read(&of_built).is_ok_and(|then| then == sources) {
        return Ok(());
    }
    // Any Go will do that is not older than the `go` line of the module says, which is that of Debian 12.
    let go = if process::on_path("go") {
        "go"
    } else {
        apt::ensure(
            "for a test's program in Go",
            &["ca-certificates", "golang-go"].map(str::to_owned),
        )?;
        "/usr/bin/go"
    };
    let mut build = Command::new(go);
    process::clean(&mut build);
    build
        .current_dir(&folder)
        // go.sum says what is built, whatever the user's settings. No C compiler is needed, nor git's opinion of who owns
        // the repository.
        .args([
            "build",
            "-mod=readonly",
            "-buildvcs=false",
            "-trimpath",
            "-o",
        ])
        .arg(&built)
        .arg(".")
        .env("CGO_ENABLED", "0");
    step::run(
        &format!("building tests/peers/{name}"),
        "It needs Go 1.19 or newer (golang-go in Debian 12) and, the first time, the network for its modules: see GOPROXY in `go env`.",
        &mut build,
    )?;
    std::fs::write(&of_built, sources).with_context(|| format!("writing {}", of_built.display()))
}

/// All files of a folder, with their names, in their order.
fn sources(folder: &Path) -> Result<Vec<u8>> {
    let reading = || format!("reading {}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(reading)? {
        files.push(entry.with_context(reading)?.path());
    }
    files.sort();
    let mut sources = Vec::new();
    for file in files {
        sources.extend_from_slice(file.as_os_str().as_encoded_bytes());
        sources.push(b'\n');
        sources.extend(std::fs::read(&file).with_context(reading)?);
    }
    Ok(sources)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn every_change_of_a_source_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        std::fs::write(file("main.go"), "package main").unwrap();
        let first = sources(folder.path()).unwrap();
        assert_eq!(sources(folder.path()).unwrap(), first);
        std::fs::write(file("go.sum"), "").unwrap();
        let second = sources(folder.path()).unwrap();
        assert_ne!(first, second);
        std::fs::write(file("go.sum"), "x").unwrap();
        assert_ne!(sources(folder.path()).unwrap(), second);
        assert!(sources(&file("none")).is_err());
    }

    #[test]
    fn every_folder_of_a_go_module_is_known() {
        let peers = std::fs::read_dir(paths::root().join("tests/peers")).unwrap();
        let folders = peers.map(|entry| entry.unwrap().path());
        let modules = folders.filter(|folder| folder.join("go.mod").is_file());
        let mut names: Vec<_> = modules
            .map(|folder| folder.file_name().unwrap().to_owned())
            .collect();
        names.sort();
        assert_eq!(names, PROGRAMS);
    }
}
