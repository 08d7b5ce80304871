//! `schema`, `completions`, `man`: generated from the definitions of settings and arguments.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use anyhow::Result;
use clap::CommandFactory;
use clap_complete::Shell;

use super::Usage;
use crate::{cli::Cli, config};

pub fn schema() -> Result<ExitCode> {
    print(config::schema::json().as_bytes())
}

pub fn completions(shell: Shell) -> Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sidecar", &mut script);
    print(&script)
}

pub fn man(verb: Option<&str>) -> Result<ExitCode> {
    print(&page(verb)?)
}

/// The manual page of `sidecar`, or of one of its verbs, as roff.
fn page(verb: Option<&str>) -> Result<Vec<u8>> {
    let mut sidecar = Cli::command();
    // Hands down what holds for all verbs.
    sidecar.build();
    let command = match verb {
        None => sidecar,
        Some(verb) => {
            let found = sidecar.find_subcommand(verb).filter(|c| !c.is_hide_set());
            let found = found.ok_or_else(|| Usage(format!("there is no command {verb}")))?;
            found.clone()
        }
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command).render(&mut page)?;
    Ok(page)
}

/// A reader that has seen enough (`| head`) is no failure.
fn print(bytes: &[u8]) -> Result<ExitCode> {
    match io::stdout().write_all(bytes) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(e.into()),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn verbs() -> Vec<String> {
        let sidecar = Cli::command();
        let shown = sidecar.get_subcommands().filter(|c| !c.is_hide_set());
        shown.map(|command| command.get_name().to_owned()).collect()
    }

    #[test]
    fn completions_know_every_verb() {
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "sidecar", &mut script);
            let script = String::from_utf8(script).unwrap();
            for verb in verbs() {
                assert!(script.contains(&verb), "{shell}: {verb}");
            }
            assert!(script.contains("cgroup"), "{shell}: no options");
        }
    }

    #[test]
    fn each_verb_has_a_manual_page() {
        let all = String::from_utf8(page(None).unwrap()).unwrap();
        for verb in verbs() {
            assert!(all.contains(&format!("sidecar\\-{verb}")), "{verb}: {all}");
            let page = String::from_utf8(page(Some(&verb)).unwrap()).unwrap();
            assert!(
                page.contains(".SH SYNOPSIS") && page.contains(&verb),
                "{page}"
            );
        }
        let run = String::from_utf8(page(Some("run")).unwrap()).unwrap();
        assert!(
            run.contains("\\-\\-cgroup") && run.contains("\\-\\-log"),
            "{run}"
        );
        assert!(page(Some("rnu")).is_err() && page(Some("enter")).is_err());
    }
}
