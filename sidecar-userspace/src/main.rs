//! `sidecar`: parses the command line and runs one verb.

use std::process::ExitCode;

use clap::Parser;
use sidecar_userspace::{
    cli::{Cli, Command},
    command,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = command::init_log(&cli.log).and_then(|()| match cli.command {
        Command::Run(args) => command::run::run(args).map_err(command::floor::explain),
        Command::Proxy(args) => command::proxy::run(args),
        Command::Agent(args) => command::agent::run(args).map_err(command::floor::explain),
        Command::Inject(args) => command::inject::run(*args),
        Command::Ca(args) => command::ca::run(args),
        Command::Check(args) => command::check::run(args),
        Command::Explain(args) => command::explain::run(args),
        Command::Inspect(args) => command::inspect::run(args),
        Command::Ready(args) => command::ready::run(args),
        Command::Detach(args) => command::detach::run(args),
        Command::Schema => command::generate::schema(),
        Command::Completions { shell } => command::generate::completions(shell),
        Command::Man { command } => command::generate::man(command.as_deref()),
        Command::Enter(args) => command::enter::run(args),
    });
    result.unwrap_or_else(command::report)
}
