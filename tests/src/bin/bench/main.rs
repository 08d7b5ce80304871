//! `bench`: what a sidecar hop costs, and what the kernel half saves. `cargo xtask bench` builds what it needs and starts it.
//!
//! # Layout
//!
//! - [`plan`], [`row`], [`mode`]: what is measured
//! - [`measure`]: the run; [`stage`] sets one mode up, [`sample`] takes one measurement in it
//! - [`peers`]: other proxies
//! - [`nginx`], [`ports`], [`settings`], [`identity`], [`iptables`], [`spinners`]: what a stage consists of
//! - [`machine`], [`statistics`], [`figures`]: from readings to figures
//! - [`run`]: a run's result, as it is kept; [`terminal`], [`progress`]: as it is shown

use std::{fs, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, ensure};
use clap::Parser;

mod figures;
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
mod row;
mod run;
mod sample;
mod settings;
mod spinners;
mod stage;
mod statistics;
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
    sidecar: PathBuf,
    /// Threads of the sidecar that serve connections
    #[arg(long)]
    workers: Option<u32>,
    /// Leave the CPUs to themselves: each wake-up then costs what the machine's idle states cost
    #[arg(long)]
    let_sleep: bool,
    /// Write everything that was measured
    #[arg(long)]
    json: Option<PathBuf>,
    /// List the rows of a full run
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    let result = interrupt::watch().and_then(|()| run(&Arguments::parse()));
    match result {
        Ok(()) => ExitCode::SUCCESS,
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
    let order = arguments.order()?;
    let programs = Programs::find(&arguments.sidecar, arguments.envoy.as_deref())?;
    let mut run = measure::begin(&order, &programs)?;
    let measured = measure(&order, &programs, &mut run);
    // What was measured before something failed is worth as much.
    report(arguments, &run).and(measured)
}

fn report(arguments: &Arguments, run: &Run) -> Result<()> {
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(run)?;
        fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    print!("{}", terminal::table(&Figures::of(run)));
    Ok(())
}

impl Arguments {
    fn order(&self) -> Result<Order> {
        let (rounds, seconds, warm_up) = match self.quick {
            true => (3, 0.7, 0.25),
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
        Ok(Order {
            rows: plan::select(&rows)?,
            modes,
            rounds,
            timing: Timing { seconds, warm_up },
            workers: self.workers,
            keep_awake: !self.let_sleep,
        })
    }
}
