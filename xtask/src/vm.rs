//! `cargo xtask vm`: what the sidecar makes of other kernels, each in a virtual machine of its own.
//!
//! A machine is QEMU without KVM, one of Debian's packaged kernels, and an initramfs with our binaries in it. The program
//! `guest` (tests/src/bin/guest) goes through its steps there and tells of each; the machine is gone afterwards.

mod initramfs;
mod kernel;
mod machine;
mod packages;
mod table;
mod variant;

use crate::{build, paths, process, setup, signals, step, summary::Counts};
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

use kernel::Kernel;
use table::Row;
use variant::Variant;

/// Which kernels.
#[derive(clap::Args)]
pub struct Args {
    /// 5.10, 6.1, 6.12, 6.12-bpo, newest, or a directory into which a package of a kernel was unpacked; all of Debian's if none is named.
    /// With `:lockdown` behind it the kernel lets no program read its memory, with `:no-btf` it does not tell its types
    #[arg(value_name = "KERNEL")]
    kernels: Vec<String>,
    /// Write what was found, with all details, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Ask the archives for newer packages of kernels that were downloaded before
    #[arg(long)]
    refresh: bool,
}

/// Those that CI runs: the oldest that most users of Debian have, and the newest, as it is and locked down.
const IN_CI: [&str; 3] = ["6.1", "newest", "newest:lockdown"];

/// Runs the kernels that were asked for and prints a table of what came of it.
///
/// # Errors
/// If one cannot be had or did not do what it should; after all of them have been tried.
pub fn verb(arguments: &Args) -> Result<()> {
    setup::ensure(setup::Needs::Packages)?;
    let sidecar = build::both_halves(build::TEST_PROFILE)?;
    let names = match arguments.kernels.is_empty() {
        true => kernel::names().map(str::to_owned).collect(),
        false => arguments.kernels.clone(),
    };
    let rows = run(&sidecar, &names, arguments.refresh)?;
    println!("{}", table::text(&rows));
    if let Some(path) = &arguments.json {
        std::fs::write(path, table::json(&rows)?)
            .with_context(|| format!("writing {}", path.display()))?;
    }
    judge(&rows)
}

/// The kernels that CI runs; each counts as a test.
///
/// # Errors
/// As of [`verb`].
pub fn in_ci(sidecar: &Path, counts: &mut Counts) -> Result<()> {
    let names = IN_CI.map(str::to_owned);
    let rows = run(sidecar, &names, false)?;
    eprintln!("{}", table::text(&rows));
    rows.iter().for_each(|row| counts.add(row.passed()));
    judge(&rows)
}

fn run(sidecar: &Path, names: &[String], refresh: bool) -> Result<Vec<Row>> {
    if !cfg!(target_arch = "x86_64") {
        bail!("the packaged kernels are those for x86-64: run this on such a machine");
    }
    let programs = programs(sidecar)?;
    let mut rows = Vec::new();
    for name in names {
        let (kernel, variant) = Variant::split(name);
        let row = match Kernel::get(kernel, refresh) {
            Ok(kernel) => {
                let initramfs = initramfs::build(&kernel, &programs)?;
                let row = machine::run(name, &kernel, variant, &initramfs)?;
                if row.broken.is_some() && signals::interrupted().is_none() {
                    // Steps that fail are never tried again. A machine that breaks down may be the emulation's fault.
                    eprintln!("   {name}: the machine broke down and is started once more");
                    machine::run(name, &kernel, variant, &initramfs)?.second()
                } else {
                    row
                }
            }
            Err(error) => Row::without_kernel(name, &error),
        };
        rows.push(row);
        if signals::interrupted().is_some() {
            bail!("the kernels after {name} were not tried");
        }
    }
    Ok(rows)
}

fn judge(rows: &[Row]) -> Result<()> {
    let failures: Vec<_> = rows.iter().filter_map(Row::failure).collect();
    if !failures.is_empty() {
        bail!("{}", failures.join("\nerror: "));
    }
    Ok(())
}

/// What runs in the machines.
struct Programs {
    sidecar: PathBuf,
    traffic: PathBuf,
    guest: PathBuf,
}

fn programs(sidecar: &Path) -> Result<Programs> {
    let mut cargo = process::userspace_cargo();
    cargo.args(["build", "--locked", "--package", "sidecar-tests"]);
    cargo.args(["--profile", build::TEST_PROFILE]);
    cargo.args(["--bin", "traffic", "--bin", "guest"]);
    step::run(
        "building what runs in the machines",
        "Mend what the compiler says above.",
        &mut cargo,
    )?;
    let built = paths::target().join(build::TEST_PROFILE);
    Ok(Programs {
        sidecar: sidecar.to_owned(),
        traffic: built.join("traffic"),
        guest: built.join("guest"),
    })
}

/// Where kernels and logs are kept.
fn directory() -> PathBuf {
    paths::target().join("vm")
}
