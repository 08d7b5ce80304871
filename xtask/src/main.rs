//! `cargo xtask`: the one door to everything that is done with this repository. One verb, one file.

mod apt;
mod bench;
mod build;
mod check;
mod demo;
mod documents;
mod go;
mod image;
mod leftovers;
mod linker;
mod paths;
mod process;
mod run;
mod setup;
mod signals;
mod step;
mod summary;
mod test;
mod toolchain;
mod unsafe_rooms;
mod vm;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Sets up, builds, runs, checks and tests the sidecar. Each verb first does what it needs of those before it.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what is missing: a toolchain that can build BPF, bpf-linker, and what the tests and the demo use
    Setup,
    /// Build the `sidecar` binary with the BPF object inside
    Build(build::Args),
    /// Build, then write a container image of it into one archive; needs no container engine
    Image(image::Args),
    /// Build, then run `sidecar` with the arguments after `--`
    Run(run::Args),
    /// Two programs that know nothing of a proxy talk through two sidecars; shows what came of it, and cleans up
    Demo,
    /// Measure what a sidecar hop costs, and what the kernel half saves
    Bench(bench::Args),
    /// Formatting, lints of both halves, documentation, unsafe code in its rooms, commands named in the documents
    Check,
    /// Boot other kernels in virtual machines and see what the sidecar makes of each
    Vm(vm::Args),
    /// Everything that CI runs
    Test(test::Args),
}

fn main() -> ExitCode {
    let verb = Cli::parse().verb;
    let outcome = signals::watch().and_then(|()| match verb {
        Verb::Setup => setup::ensure(setup::Needs::Everything),
        Verb::Build(arguments) => build::verb(&arguments),
        Verb::Image(arguments) => image::verb(&arguments),
        Verb::Run(arguments) => run::verb(&arguments),
        Verb::Demo => demo::verb(),
        Verb::Bench(arguments) => bench::verb(&arguments),
        Verb::Check => check::verb(),
        Verb::Vm(arguments) => vm::verb(&arguments),
        Verb::Test(arguments) => test::verb(&arguments),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // A shell's convention: 128 and the signal's number.
        Err(error) if signals::interrupted().is_some() => {
            let number = signals::interrupted().unwrap_or_default();
            eprintln!("interrupted: {error:#}");
            ExitCode::from(128_u8.saturating_add(u8::try_from(number).unwrap_or_default()))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The verbs, for the check that the documents name no other.
fn verbs() -> Vec<String> {
    use clap::CommandFactory as _;
    Cli::command()
        .get_subcommands()
        .map(|verb| verb.get_name().to_owned())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
        assert!(verbs().contains(&"test".to_owned()));
    }
}
