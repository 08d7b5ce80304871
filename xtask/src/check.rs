//! `cargo xtask check`: formatting, lints of both halves, documentation, and rules that no compiler knows.
//!
//! Everything is checked even where something fails, so that one run tells all there is to mend.

use crate::{
    apt, build, documents, paths, process, setup, step, toolchain::Toolchain, unsafe_rooms, verbs,
};
use anyhow::{Context as _, Result, bail};
use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// Sets up, builds, then checks.
///
/// # Errors
/// With all that is to mend.
pub fn verb() -> Result<()> {
    setup::ensure(setup::Needs::Build)?;
    let sidecar = build::both_halves(build::TEST_PROFILE)?;
    all(&sidecar)
}

/// Checks the repository; `sidecar` is the built binary, asked for its verbs and options.
///
/// # Errors
/// With all that is to mend.
pub fn all(sidecar: &Path) -> Result<()> {
    let results = [
        formatting(),
        lints_of_the_host_half(),
        lints_of_the_kernel_half(),
        other_architecture(),
        documentation(),
        unsafe_in_its_rooms(),
        documents_are_true(sidecar),
        dependencies(),
    ];
    let failures: Vec<_> = results
        .into_iter()
        .filter_map(Result::err)
        .map(|error| format!("{error:#}"))
        .collect();
    if !failures.is_empty() {
        bail!(
            "{} of the checks failed\n\n{}",
            failures.len(),
            failures.join("\n\n")
        );
    }
    Ok(())
}

fn formatting() -> Result<()> {
    step::run(
        "checking the formatting",
        "Run `cargo fmt --all`.",
        process::host_cargo().args(["fmt", "--all", "--", "--check"]),
    )
}

fn lints_of_the_host_half() -> Result<()> {
    clippy(
        "clippy, host half",
        &["--workspace", "--exclude", "sidecar-ebpf", "--all-targets"],
    )?;
    clippy(
        "clippy, the kernel half's pure part",
        &["--package", "sidecar-ebpf", "--lib", "--tests"],
    )
}

fn clippy(title: &str, selection: &[&str]) -> Result<()> {
    let mut cargo = process::userspace_cargo();
    cargo
        .args(["clippy", "--locked"])
        .args(selection)
        .args(["--", "-D", "warnings"]);
    step::run(
        title,
        "Mend what clippy says, or `#[expect]` it with a reason.",
        &mut cargo,
    )
}

/// Apart from the host half: it has a toolchain and a target of its own.
fn lints_of_the_kernel_half() -> Result<()> {
    let toolchain = Toolchain::find()?;
    toolchain.ensure_clippy()?;
    let mut cargo = toolchain.cargo();
    cargo
        .args(["clippy", "--locked"])
        .args(build::KERNEL_HALF)
        .args(["--", "-D", "warnings"]);
    step::run(
        "clippy, kernel half",
        "Mend what clippy says, or `#[expect]` it with a reason.",
        &mut cargo,
    )
}

/// The host half for the other architecture that is supported; the BPF object is the same for both.
fn other_architecture() -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    if !has_target(TARGET)? {
        let added = step::run(
            &format!("adding the standard library for {TARGET}"),
            "Check the network.",
            // Where there is no way to rustup's server, it tries for minutes.
            Command::new("timeout").args(["60", "rustup", "target", "add", TARGET]),
        );
        if let Err(error) = added {
            eprintln!(
                " ! {TARGET} is not checked: rustup cannot add its standard library: {error:#}"
            );
            return Ok(());
        }
    }
    // aws-lc-sys compiles C even for a check, which is half of the minute and a half that this takes two CPUs at first.
    if !process::on_path("aarch64-linux-gnu-gcc") {
        apt::ensure(
            "for checking aarch64",
            &["gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"].map(str::to_owned),
        )?;
    }
    let mut cargo = process::userspace_cargo();
    cargo.args(["check", "--locked", "--target", TARGET]);
    cargo.args([
        "--workspace",
        "--exclude",
        "sidecar-ebpf",
        "--exclude",
        "xtask",
    ]);
    step::run(
        &format!("checking for {TARGET}"),
        "Mend what the compiler says above.",
        &mut cargo,
    )
}

/// Whether the toolchain that builds the host half has the target's standard library.
fn has_target(target: &str) -> Result<bool> {
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    process::clean(&mut rustc);
    rustc.args(["--print", "target-libdir", "--target", target]);
    Ok(Path::new(&process::output(&mut rustc)?).is_dir())
}

fn documentation() -> Result<()> {
    let mut cargo = process::userspace_cargo();
    cargo
        .args([
            "doc",
            "--locked",
            "--no-deps",
            "--document-private-items",
            "--workspace",
            "--exclude",
            "sidecar-ebpf",
        ])
        .env("RUSTDOCFLAGS", "-D warnings");
    step::run(
        "building the documentation",
        "Mend what rustdoc says.",
        &mut cargo,
    )
}

fn unsafe_in_its_rooms() -> Result<()> {
    let mut strays = Vec::new();
    for path in tracked("*.rs")? {
        strays.extend(unsafe_rooms::strays(&path, &read(&path)?));
    }
    if !strays.is_empty() {
        bail!(
            "unsafe code outside sys/, the kernel half's context/ and Pod impls. Move it there:\n  {}",
            strays.join("\n  ")
        );
    }
    Ok(())
}

fn documents_are_true(sidecar: &Path) -> Result<()> {
    let help_of =
        |program: &Path, verb: &str| process::output(Command::new(program).args([verb, "--help"]));
    let this = std::env::current_exe().context("finding xtask's own binary")?;
    let mut commands = documents::Commands::new();
    let mut ours = std::collections::BTreeMap::new();
    for verb in verbs() {
        let help = help_of(&this, &verb)?;
        ours.insert(verb, help);
    }
    commands.insert("cargo xtask".to_owned(), ours);
    let mut theirs = std::collections::BTreeMap::new();
    for verb in verbs_in_help(&process::output(Command::new(sidecar).arg("--help"))?) {
        let mut help = help_of(sidecar, &verb)?;
        // Options of `sidecar ca issue` are found under `ca`.
        for below in verbs_in_help(&help) {
            help += &process::output(Command::new(sidecar).args([&verb, &below, "--help"]))?;
        }
        theirs.insert(verb, help);
    }
    commands.insert("sidecar".to_owned(), theirs);

    let mut untruths = Vec::new();
    for path in tracked("*.md")? {
        untruths.extend(documents::untruths(
            paths::root(),
            &path,
            &read(&path)?,
            &commands,
        ));
    }
    if !untruths.is_empty() {
        bail!(
            "the documents name what does not exist:\n  {}",
            untruths.join("\n  ")
        );
    }
    Ok(())
}

/// The verbs that clap's help lists under "Commands:".
fn verbs_in_help(help: &str) -> Vec<String> {
    help.lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| Some(line.split_whitespace().next()?.to_owned()))
        // clap's own, which has no help of itself.
        .filter(|verb| verb != "help")
        .collect()
}

/// Licences, bans and sources of the dependencies. Its installation takes minutes, so it is not forced on anybody.
fn dependencies() -> Result<()> {
    let ours = paths::tools().join("bin/cargo-deny");
    let deny = if ours.is_file() {
        ours
    } else if process::on_path("cargo-deny") {
        "cargo-deny".into()
    } else {
        eprintln!(
            " ! cargo-deny is not installed: licences and sources of dependencies are not checked (`cargo install cargo-deny --locked --root target/tools`)"
        );
        return Ok(());
    };
    step::run(
        "cargo deny",
        "See .cargo/deny.toml.",
        Command::new(deny).current_dir(paths::root()).args([
            "--offline",
            "--locked",
            "--log-level",
            "error",
            "--config",
            ".cargo/deny.toml",
            "check",
            "bans",
            "licenses",
            "sources",
        ]),
    )
}

/// Files that git knows or would add, relative to the root.
fn tracked(pattern: &str) -> Result<Vec<PathBuf>> {
    let mut git = Command::new("git");
    git.current_dir(paths::root()).args([
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "--",
        pattern,
    ]);
    let listed = process::output(&mut git)?;
    // What is deleted and not yet committed is still listed.
    Ok(listed
        .lines()
        .map(PathBuf::from)
        .filter(|path| paths::root().join(path).exists())
        .collect())
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(paths::root().join(path))
        .with_context(|| format!("reading {}", path.display()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn verbs_are_read_from_claps_help() {
        let help = "About\n\nUsage: sidecar <COMMAND>\n\nCommands:\n  run    Runs\n         more about it\n  check  Checks\n  help   Helps\n\nOptions:\n  -h, --help\n";
        assert_eq!(verbs_in_help(help), ["run", "check"]);
        assert!(verbs_in_help("").is_empty());
    }
}
