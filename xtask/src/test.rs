//! `cargo xtask test`: everything that CI runs, and at its end the proof that nothing was left behind.

use crate::{
    build, check, demo, image,
    leftovers::{self, Before},
    paths, process, setup, signals, step,
    summary::Counts,
    vm,
};
use anyhow::{Context as _, Result, bail};
use std::{
    io::{BufRead as _, BufReader, IsTerminal as _},
    path::Path,
    process::Command,
    time::Instant,
};

/// Which tests.
#[derive(clap::Args)]
pub struct Args {
    /// Only tests whose name contains this; the checks are left out
    filter: Option<String>,
    /// Only what needs no root
    #[arg(long, conflicts_with = "kernel")]
    plain: bool,
    /// Only the tests that need root: real programs in the kernel, real namespaces, real pods
    #[arg(long)]
    kernel: bool,
}

/// Sets up, builds, checks and tests.
///
/// # Errors
/// If anything of that fails, no test ran, or something was left behind.
pub fn verb(arguments: &Args) -> Result<()> {
    if !arguments.plain && !process::is_root() {
        bail!(
            "the kernel tests load programs and make namespaces, which needs root. Run this as root, or `cargo xtask test --plain`"
        );
    }
    let started = Instant::now();
    setup::ensure(setup::Needs::Everything)?;
    let sidecar = build::both_halves(build::TEST_PROFILE)?;
    let archive = if arguments.plain {
        None
    } else {
        Some(image::of(
            &sidecar,
            build::TEST_PROFILE,
            &image::default_tag(),
        )?)
    };
    let mut failures = Vec::new();
    if arguments.filter.is_none() && !arguments.kernel {
        note(
            &mut failures,
            step::announced("checks", || check::all(&sidecar)),
        );
    }
    let before = Before::look()?;
    let mut session = Session {
        run: format!("{}", std::process::id()),
        sidecar: &sidecar,
        archive: archive.as_deref(),
        filter: arguments.filter.as_deref(),
        counts: Counts::default(),
    };
    for group in groups(arguments) {
        note(
            &mut failures,
            step::announced(group.title, || session.run(&group)),
        );
        if signals::interrupted().is_some() {
            bail!("{}", group.title);
        }
    }
    if arguments.filter.is_none() && !arguments.plain {
        let shown = step::announced("the demo", || demo::perform(&sidecar));
        session.counts.add(shown.is_ok());
        note(&mut failures, shown);
        let counts = &mut session.counts;
        note(
            &mut failures,
            step::announced("other kernels, in virtual machines", || {
                vm::in_ci(&sidecar, counts)
            }),
        );
    }
    note(
        &mut failures,
        step::announced("looking for what was left behind", || {
            nothing_left(&before, &session.run)
        }),
    );
    let counts = session.counts;
    if counts.ran() == 0 && failures.is_empty() {
        failures.push("no test ran".to_owned());
    }

    eprintln!("── all of it: {}", step::seconds(started.elapsed()));
    println!("{} passed, {} failed", counts.passed, counts.failed);
    if !failures.is_empty() {
        bail!("{}", failures.join("\nerror: "));
    }
    Ok(())
}

fn note(failures: &mut Vec<String>, result: Result<()>) {
    if let Err(error) = result {
        failures.push(format!("{error:#}"));
    }
}

fn nothing_left(before: &Before, run: &str) -> Result<()> {
    let left = before.left(run)?;
    if !left.is_empty() {
        bail!("the tests left behind:\n  {}", left.join("\n  "));
    }
    Ok(())
}

/// Tests that one run of a runner covers.
struct Group {
    title: &'static str,
    runner: Runner,
    arguments: &'static [&'static str],
}

#[derive(PartialEq, Eq)]
enum Runner {
    /// A process a test, with time limits.
    Nextest,
    /// Examples in documentation, which nextest does not know.
    Doctest,
}

const PLAIN: [Group; 4] = [
    Group {
        title: "examples in the documentation",
        runner: Runner::Doctest,
        arguments: &[
            "--package",
            "sidecar-common",
            "--package",
            "sidecar-userspace",
        ],
    },
    Group {
        title: "unit tests, kernel half",
        runner: Runner::Nextest,
        arguments: &["--package", "sidecar-ebpf", "--lib"],
    },
    Group {
        title: "unit tests, host half",
        runner: Runner::Nextest,
        arguments: &[
            "--package",
            "sidecar-common",
            "--package",
            "sidecar-userspace",
            "--package",
            "xtask",
        ],
    },
    Group {
        title: "tests without root",
        runner: Runner::Nextest,
        arguments: &[
            "--cargo-profile",
            build::TEST_PROFILE,
            "--package",
            "sidecar-tests",
            "--lib",
            "--bins",
            "--test",
            "plain",
        ],
    },
];

const KERNEL: [Group; 2] = [
    Group {
        title: "tests with root: real programs in the kernel",
        runner: Runner::Nextest,
        arguments: &const { with_root("kernel") },
    },
    Group {
        title: "tests with root: real pods, from the image and the manifests",
        runner: Runner::Nextest,
        arguments: &const { with_root("pods") },
    },
];

/// One of the targets that need root, and nothing else.
const fn with_root(target: &'static str) -> [&'static str; 6] {
    [
        "--cargo-profile",
        build::TEST_PROFILE,
        "--package",
        "sidecar-tests",
        "--test",
        target,
    ]
}

fn groups(arguments: &Args) -> Vec<Group> {
    let plain = PLAIN.into_iter().filter(|_| !arguments.kernel);
    let kernel = KERNEL.into_iter().filter(|_| !arguments.plain);
    plain
        .chain(kernel)
        .filter(|group| group.runner == Runner::Nextest || arguments.filter.is_none())
        .collect()
}

/// One run of the tests, and what has come of it so far.
struct Session<'a> {
    /// The value of [`leftovers::RUN_VARIABLE`] for every process of this run.
    run: String,
    sidecar: &'a Path,
    /// The image that pods are made from.
    archive: Option<&'a Path>,
    filter: Option<&'a str>,
    counts: Counts,
}

impl Session<'_> {
    fn run(&mut self, group: &Group) -> Result<()> {
        let mut command = self.command(group);
        if self.stream(&mut command)? != Some(0) {
            bail!(
                "{} failed: see above. Again: {}",
                group.title,
                process::shown(&command)
            );
        }
        Ok(())
    }

    fn command(&self, group: &Group) -> Command {
        let mut cargo = process::userspace_cargo();
        match group.runner {
            Runner::Nextest => {
                // A nextest of ours is found by cargo like any other.
                let path = std::env::var_os("PATH").unwrap_or_default();
                let path = std::env::split_paths(&path).chain([paths::tools().join("bin")]);
                cargo.env("PATH", std::env::join_paths(path).unwrap_or_default());
                cargo.args([
                    "nextest",
                    "run",
                    "--locked",
                    "--config-file",
                    "xtask/nextest.toml",
                ]);
                cargo.args([
                    "--color",
                    if std::io::stderr().is_terminal() {
                        "always"
                    } else {
                        "never"
                    },
                ]);
                if self.filter.is_some() {
                    // A group without such a test is no mistake; no test at all is one, see `verb`.
                    cargo.args(["--no-tests", "pass"]);
                }
            }
            Runner::Doctest => {
                cargo.args(["test", "--locked", "--doc"]);
            }
        }
        cargo
            .args(group.arguments)
            .args(self.filter)
            .env(leftovers::RUN_VARIABLE, &self.run)
            .env("SIDECAR_BIN", self.sidecar);
        if let Some(archive) = self.archive {
            cargo.env("SIDECAR_IMAGE_ARCHIVE", archive);
        }
        if setup::venv().is_dir() {
            cargo.env("SIDECAR_PYTHON", setup::venv().join("bin/python3"));
        }
        cargo
    }

    /// Shows what the command says as it comes, and counts the tests.
    fn stream(&mut self, command: &mut Command) -> Result<Option<i32>> {
        let (mut child, output) = process::followed(command)?;
        let mut reader = BufReader::new(output);
        let mut bytes = Vec::new();
        while reader
            .read_until(b'\n', &mut bytes)
            .context("reading what the tests say")?
            > 0
        {
            let line = String::from_utf8_lossy(&bytes);
            self.counts.read(line.trim_end());
            eprint!("{line}");
            bytes.clear();
        }
        Ok(child.wait().context("waiting for the tests")?.code())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]

    use super::*;

    fn titles(plain: bool, kernel: bool, filter: Option<&str>) -> Vec<&'static str> {
        let arguments = Args {
            filter: filter.map(str::to_owned),
            plain,
            kernel,
        };
        groups(&arguments).iter().map(|group| group.title).collect()
    }

    #[test]
    fn each_selection_takes_its_groups() {
        assert_eq!(titles(false, false, None).len(), PLAIN.len() + KERNEL.len());
        assert_eq!(titles(false, true, None), KERNEL.map(|group| group.title));
        assert!(!titles(true, false, None).contains(&KERNEL[0].title));
        assert!(!titles(false, false, Some("relay")).contains(&"examples in the documentation"));
    }
}
