//! The run: every row in every mode, round after round.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sidecar_tests::world::World;

use super::{
    identity::Identities,
    interrupt,
    machine::Machine,
    mode::Mode,
    plan,
    programs::Programs,
    progress::Progress,
    row::Row,
    run::{Conditions, FORMAT, Memory, Run},
    sample::{self, Timing},
    spinners::Spinners,
    stage::{Common, Pair, Stage},
    system_calls,
};

/// What to measure.
pub struct Order {
    pub rows: Vec<Row>,
    pub modes: Vec<Mode>,
    pub rounds: usize,
    /// Rows that are measured in one mode before the next one has its turn.
    pub group: usize,
    pub timing: Timing,
    pub workers: Option<u32>,
    pub keep_awake: bool,
    pub count_system_calls: bool,
}

/// A proxy that was ready so long ago has started.
const SETTLED: std::time::Duration = std::time::Duration::from_secs(2);

/// A run in which nothing is measured yet.
pub fn begin(order: &Order, programs: &Programs) -> Result<Run> {
    Ok(Run {
        format: FORMAT,
        taken: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("a clock before 1970")?
            .as_secs(),
        version: programs.sidecar_version()?,
        machine: Machine::look()?,
        conditions: Conditions {
            rounds: order.rounds,
            seconds: order.timing.seconds,
            warm_up_seconds: order.timing.warm_up,
            workers: order.workers,
            kept_awake: order.keep_awake,
            counted_system_calls: order.count_system_calls,
            nginx: programs.nginx_version()?,
            peers: programs.envoy_version()?.into_iter().collect(),
        },
        samples: Vec::new(),
        memory: Vec::new(),
    })
}

/// Sets up a world, measures into `run`, and takes the world apart. After an error, what was measured before is in `run`.
pub fn measure(order: &Order, programs: &Programs, run: &mut Run) -> Result<()> {
    let world = World::alone()?;
    let _awake = match order.keep_awake {
        true => Some(Spinners::start(&world, &programs.load, run.machine.cpus)?),
        false => None,
    };
    let common = Common {
        world: &world,
        programs,
        identities: Identities::new(world.directory())?,
        workers: order.workers,
        bodies: plan::bodies(&order.rows),
    };
    let mut pairs = Vec::new();
    for mode in &order.modes {
        pairs.push(Pair::new(&world, mode)?);
    }
    let mut progress = Progress::new(order.rows.len() * order.modes.len() * order.rounds);
    for rows in order.rows.chunks(order.group) {
        for round in 1..=order.rounds {
            for pair in &mut pairs {
                pass(pair, &common, rows, order, round, run, &mut progress)?;
            }
        }
    }
    progress.done();
    Ok(())
}

/// Some rows in one mode.
fn pass(
    pair: &mut Pair<'_>,
    common: &Common<'_>,
    rows: &[Row],
    order: &Order,
    round: usize,
    run: &mut Run,
    progress: &mut Progress,
) -> Result<()> {
    interrupt::check()?;
    let stage = Stage::start(pair, common)?;
    // Idle is what it is when the start is over.
    std::thread::sleep(SETTLED);
    run.memory.extend(footprint(&stage, None)?);
    for row in rows {
        interrupt::check()?;
        progress.begins(row, &stage.pair.mode, round);
        let mut sample = sample::take(&stage, common.programs, row, order.timing)?;
        sample.round = round;
        if order.count_system_calls && round == 1 {
            sample.system_calls = system_calls::per_request(&stage, common.programs, row)?;
        }
        progress.ends(&sample);
        run.samples.push(sample);
        run.memory.extend(footprint(&stage, Some(row))?);
    }
    stage.end()
}

fn footprint(stage: &Stage<'_, '_>, after: Option<&Row>) -> Result<Vec<Memory>> {
    stage
        .proxies
        .iter()
        .map(|proxy| {
            Ok(Memory {
                mode: stage.pair.mode.to_string(),
                side: proxy.side.to_owned(),
                after: after.map(Row::to_string),
                pss_kib: proxy.pss_kib()?,
            })
        })
        .collect()
}
