//! `bench`: what a sidecar hop costs, and what the kernel half saves. `cargo xtask bench` builds what it needs and starts it.
//!
//! # Layout
//!
//! - [`plan`], [`row`], [`mode`]: what is measured
//! - [`mod@measure`]: the run; [`stage`] sets one mode up, [`sample`] takes one measurement in it, [`system_calls`] another
//! - [`peers`]: other proxies
//! - [`nginx`], [`ports`], [`settings`], [`identity`], [`iptables`], [`spinners`]: what a stage consists of
//! - [`machine`], [`statistics`], [`figures`]: from readings to figures
//! - [`mod@run`]: a run's result, as it is kept; [`terminal`], [`progress`], [`html`], [`readme`]: as it is shown
//! - [`targets`], [`claims`], [`baseline`]: what it means

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, ensure};
use clap::Parser;

mod baseline;
mod claims;
#[cfg(test)]
mod example;
mod figures;
mod html;
mod identity;
mod interrupt;
mod iptables;
mod machine;
mod measure;
mod mode;
mod nginx;
mod peers;
mod plan;
mod ports;
mod programs;
mod progress;
mod readme;
mod row;
mod run;
mod sample;
mod settings;
mod spinners;
mod stage;
mod statistics;
mod system_calls;
mod targets;
mod terminal;

use figures::Figures;
use measure::{Order, measure};
use mode::Mode;
use programs::Programs;
use run::Run;
use sample::Timing;

/// Measures what a sidecar hop costs: two workloads, nginx behind one, a proxy beside each.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// The rows of the table of targets only, in less than three minutes
    #[arg(long, conflicts_with = "rows")]
    quick: bool,
    /// Which modes: direct, iptables, steer, redirect
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    modes: Vec<Mode>,
    /// Another proxy besides: `envoy`, or a script that starts one (see tests/src/bin/bench/peers/script.rs)
    #[arg(long, value_parser = mode::peer)]
    peer: Vec<Mode>,
    /// Where Envoy is; `cargo xtask bench --peer envoy` installs it and knows
    #[arg(long)]
    envoy: Option<PathBuf>,
    /// Which rows, such as tcp-1k-closed1, http-mtls-1k-open16 or tcp-stream-*; absent: all
    #[arg(long, value_delimiter = ',', num_args = 1..)]
    rows: Vec<String>,
    /// How often each row is measured in each mode
    #[arg(long)]
    rounds: Option<usize>,
    /// How long each row is measured in each round
    #[arg(long)]
    seconds: Option<f64>,
    /// The binary under test
    #[arg(long)]
    sidecar: Option<PathBuf>,
    /// Threads of the sidecar that serve connections
    #[arg(long)]
    workers: Option<u32>,
    /// Leave the CPUs to themselves: each wake-up then costs what the machine's idle states cost
    #[arg(long)]
    let_sleep: bool,
    /// Write everything that was measured
    #[arg(long)]
    json: Option<PathBuf>,
    /// Write a report with plots: one file that needs no other
    #[arg(long)]
    html: Option<PathBuf>,
    /// Compare with what --json wrote before; ends with 1 if something became worse beyond the noise
    #[arg(long)]
    baseline: Option<PathBuf>,
    /// Put the section about performance into this file, between its two markers
    #[arg(long)]
    readme: Option<PathBuf>,
    /// Measure nothing: report what --json wrote before
    #[arg(long, conflicts_with_all = ["quick", "modes", "rows", "rounds", "seconds", "peer", "json"])]
    from: Option<PathBuf>,
    /// List the rows of a full run
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let result = interrupt::watch().and_then(|()| run(&Arguments::parse()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if interrupt::number().is_some() => {
            // What a terminal's Ctrl-C ended besides is no failure of its own.
            eprintln!("interrupted ({error:#}); cleaned up");
            ExitCode::from(interrupt::number().map_or(1, |number| 128 + number))
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    if arguments.list {
        println!("{}", plan::FULL.join("\n"));
        return Ok(());
    }
    // Found now, and not when everything is measured.
    let before = match &arguments.baseline {
        Some(path) => Some(baseline::read(path)?),
        None => None,
    };
    if let Some(path) = &arguments.from {
        return report(arguments, &baseline::read(path)?, before.as_ref());
    }
    let sidecar = arguments.sidecar.as_deref();
    let sidecar = sidecar.context("which binary is measured has to be said with --sidecar")?;
    let order = arguments.order()?;
    let programs = Programs::find(sidecar, arguments.envoy.as_deref())?;
    let mut run = measure::begin(&order, &programs)?;
    let measured = measure(&order, &programs, &mut run);
    if run.samples.is_empty() {
        return measured;
    }
    // What was measured before something failed is worth as much.
    report(
        arguments,
        &run,
        before.as_ref().filter(|_| measured.is_ok()),
    )
    .and(measured)
}

fn report(arguments: &Arguments, run: &Run, before: Option<&Run>) -> Result<()> {
    if let Some(path) = &arguments.json {
        write(path, &serde_json::to_string_pretty(run)?)?;
    }
    if let Some(path) = &arguments.html {
        write(path, &html::page(run))?;
    }
    if let Some(path) = &arguments.readme {
        readme::update(path, run)?;
    }
    println!("{}", terminal::table(&Figures::of(run)));
    println!("{}", terminal::targets(&targets::table(run)));
    println!("{}", claims::conditions(run));
    if let Some(before) = before {
        let changes = baseline::compare(before, run);
        println!("\n{}", baseline::report(&changes));
        let worse = changes
            .iter()
            .filter(|change| change.is_regression())
            .count();
        ensure!(
            worse == 0,
            "{worse} figures are worse than in the baseline, beyond the noise"
        );
    }
    Ok(())
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

impl Arguments {
    fn order(&self) -> Result<Order> {
        let (rounds, seconds, warm_up) = match self.quick {
            true => (3, 0.6, 0.2),
            false => (5, 2.0, 0.5),
        };
        let seconds = self.seconds.unwrap_or(seconds);
        ensure!((0.1..=60.0).contains(&seconds), "--seconds is 0.1 to 60");
        let rounds = self.rounds.unwrap_or(rounds);
        ensure!((1..=100).contains(&rounds), "--rounds is 1 to 100");
        let rows = match (self.rows.is_empty(), self.quick) {
            (false, _) => self.rows.clone(),
            (true, true) => plan::QUICK.map(str::to_owned).into(),
            (true, false) => plan::FULL.map(str::to_owned).into(),
        };
        let mut modes: Vec<Mode> = match self.modes.is_empty() {
            true => mode::OWN.into(),
            false => self.modes.clone(),
        };
        for peer in &self.peer {
            ensure!(
                *peer != Mode::Envoy || self.envoy.is_some(),
                "where Envoy is has to be said with --envoy"
            );
            modes.push(peer.clone());
        }
        modes.dedup();
        let rows = plan::select(&rows)?;
        Ok(Order {
            // Setting a mode up takes longer than a quick row.
            group: if self.quick { rows.len() } else { plan::GROUP },
            rows,
            modes,
            rounds,
            timing: Timing { seconds, warm_up },
            workers: self.workers,
            keep_awake: !self.let_sleep,
            count_system_calls: !self.quick && system_calls::are_countable(),
        })
    }
}
