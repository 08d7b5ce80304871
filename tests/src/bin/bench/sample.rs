//! One measurement: runs the load generator once, and reads what it cost.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result};
use sidecar_tests::{load::LoadReport, world::Running};

use super::{
    machine::{context_switches, cpu_seconds, others},
    mode::Mode,
    ports,
    programs::Programs,
    row::{Load, Row, Shape, Wire},
    run::Sample,
    stage::Stage,
};

/// Others may take so much of all CPUs before a sample counts as noisy.
const NOISE_LIMIT: f64 = 0.03;
/// A noisy sample is repeated so often at most; the quietest one counts.
const REPEATS: u32 = 2;
/// Connections that streams of HTTP/2 and gRPC share.
const SHARED_CONNECTIONS: usize = 4;
/// What the load generator may need beyond the time that it was given.
const MARGIN: Duration = Duration::from_secs(30);

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    pub seconds: f64,
    pub warm_up: f64,
}

/// Takes a sample, and again if others disturbed it.
pub fn take(
    stage: &Stage<'_, '_>,
    programs: &Programs,
    row: &Row,
    timing: Timing,
) -> Result<Sample> {
    let mut best: Option<Sample> = None;
    for repeated in 0..=REPEATS {
        let mut sample = once(stage, programs, row, timing)
            .with_context(|| format!("measuring {row} in the mode {}", stage.pair.mode))?;
        sample.repeated = repeated;
        let noisy = sample.noisy;
        if best.as_ref().is_none_or(|best| sample.others < best.others) {
            best = Some(sample);
        }
        if !noisy {
            break;
        }
    }
    best.context("no sample")
}

fn once(stage: &Stage<'_, '_>, programs: &Programs, row: &Row, timing: Timing) -> Result<Sample> {
    let files = Files::of(stage)?;
    let all: Vec<&PathBuf> = files.all().collect();
    let before = redirect_bytes(stage)?;
    let report = finish(start(stage, programs, row, timing, &all)?, timing)?;
    let after = redirect_bytes(stage)?;
    let mut sample = files.costs(&report)?;
    sample.redirected = before
        .zip(after)
        .and_then(|(before, after)| after.share_since(before));
    sample.row = row.to_string();
    sample.mode = stage.pair.mode.to_string();
    sample.seconds = report.seconds;
    sample.requests = report.requests;
    sample.errors = report.errors;
    sample.first_error = report.first_error;
    sample.bytes = report.bytes;
    sample.latency = report.latency;
    sample.connect = report.connect;
    Ok(sample)
}

/// Bytes that the kernel half saw, of both sidecars.
#[derive(Clone, Copy)]
struct RedirectBytes {
    redirected: u64,
    by_tcp: u64,
}

impl RedirectBytes {
    fn share_since(self, before: Self) -> Option<f64> {
        let redirected = self.redirected.saturating_sub(before.redirected) as f64;
        let by_tcp = self.by_tcp.saturating_sub(before.by_tcp) as f64;
        (redirected + by_tcp > 0.0).then(|| redirected / (redirected + by_tcp))
    }
}

/// None in other modes.
fn redirect_bytes(stage: &Stage<'_, '_>) -> Result<Option<RedirectBytes>> {
    if stage.pair.mode != Mode::Redirect {
        return Ok(None);
    }
    let (client, server) = (
        stage.pair.client.workload.metrics()?,
        stage.pair.server.workload.metrics()?,
    );
    let sum = |path| client.kernel_bytes(path) + server.kernel_bytes(path);
    Ok(Some(RedirectBytes {
        redirected: sum("redirect"),
        by_tcp: sum("tcp"),
    }))
}

/// Starts the load generator, which reads `files` at both ends of the measured time.
pub fn start(
    stage: &Stage<'_, '_>,
    programs: &Programs,
    row: &Row,
    timing: Timing,
    files: &[&PathBuf],
) -> Result<Running> {
    let client = &stage.pair.client;
    let mut arguments = arguments(row, &client_target(stage, row));
    arguments.extend(["--seconds".into(), timing.seconds.to_string()]);
    arguments.extend(["--warm-up".into(), timing.warm_up.to_string()]);
    for file in files {
        arguments.extend(["--file".into(), file.display().to_string()]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let cgroup = client.app_cgroup();
    client
        .workload
        .start_in(&cgroup, "load", &programs.load, &arguments)
}

/// Waits for the load generator's end, and gives its report.
pub fn finish(load: Running, timing: Timing) -> Result<LoadReport> {
    let limit = Duration::from_secs_f64(timing.seconds + timing.warm_up) + MARGIN;
    load.finish(limit)?.success()?.account()
}

fn client_target(stage: &Stage<'_, '_>, row: &Row) -> String {
    stage.pair.server.workload.v4(ports::of(row)).to_string()
}

/// How the load generator is called for a row.
fn arguments(row: &Row, to: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut add = |more: &[&str]| words.extend(more.iter().map(|&word| word.to_owned()));
    let (body, shape) = match row.load {
        Load::Stream { write } => {
            add(&["stream", "--to", to, "--write", &write.0.to_string()]);
            return words;
        }
        Load::Requests { body, shape } => (body, shape),
    };
    let (count, rate) = match shape {
        Shape::Closed(count) | Shape::Max(count) | Shape::NewConnection(count) => (count, None),
        Shape::Open { connections, rate } => (connections, Some(rate)),
    };
    match row.wire {
        Wire::Tcp | Wire::Http => {
            add(&["requests", "--to", to, "--path", &format!("/{body}")]);
            add(&["--connections", &count.to_string()]);
        }
        Wire::H2 | Wire::Grpc => {
            add(&["multiplexed", "--to", to, "--streams", &count.to_string()]);
            add(&["--connections", &count.min(SHARED_CONNECTIONS).to_string()]);
            if row.wire == Wire::Grpc {
                add(&["--path", "/bench.Echo/Call", "--grpc", &body.0.to_string()]);
            } else {
                add(&["--path", &format!("/{body}")]);
            }
        }
    }
    if let Some(rate) = rate {
        add(&["--rate", &rate.to_string()]);
    }
    if matches!(shape, Shape::NewConnection(_)) {
        add(&["--new-connections"]);
    }
    words
}

/// The files of the kernel that tell the costs.
struct Files {
    stat: PathBuf,
    /// Of everything in this benchmark, the spinners included.
    world: PathBuf,
    proxies: Vec<PathBuf>,
    applications: Vec<PathBuf>,
    threads: Vec<PathBuf>,
}

impl Files {
    fn of(stage: &Stage<'_, '_>) -> Result<Self> {
        let pair = &*stage.pair;
        let mut threads = Vec::new();
        for proxy in &stage.proxies {
            threads.extend(proxy.thread_files()?);
        }
        Ok(Self {
            stat: "/proc/stat".into(),
            world: pair.client.world_cgroup().join("cpu.stat"),
            proxies: stage
                .proxies
                .iter()
                .map(|proxy| proxy.cgroup.join("cpu.stat"))
                .collect(),
            applications: [&pair.client, &pair.server]
                .map(|side| side.app_cgroup().join("cpu.stat"))
                .into(),
            threads,
        })
    }

    fn all(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.stat, &self.world]
            .into_iter()
            .chain(&self.proxies)
            .chain(&self.applications)
            .chain(&self.threads)
    }

    /// A sample with what these files tell.
    fn costs(&self, report: &LoadReport) -> Result<Sample> {
        let text = |path: &PathBuf| {
            let found = report.files.get(&path.display().to_string());
            found.with_context(|| format!("{} was not read", path.display()))
        };
        let cpu = |path: &PathBuf| -> Result<f64> {
            let sampled = text(path)?;
            let seconds = |text: &str| {
                cpu_seconds(text).with_context(|| format!("no usage in {}", path.display()))
            };
            Ok(seconds(&sampled.after)? - seconds(&sampled.before)?)
        };
        // Not `sum`, which makes -0 of nothing.
        let sum = |paths: &[PathBuf]| {
            paths
                .iter()
                .try_fold(0.0, |sum, path| Ok::<_, anyhow::Error>(sum + cpu(path)?))
        };
        let mut switches = 0;
        for path in &self.threads {
            let sampled = text(path)?;
            switches +=
                context_switches(&sampled.after).saturating_sub(context_switches(&sampled.before));
        }
        let stat = text(&self.stat)?;
        let others = others(&stat.before, &stat.after, cpu(&self.world)?).context("/proc/stat")?;
        let proxies = sum(&self.proxies)?;
        Ok(Sample {
            cpu_proxies: proxies,
            cpu_path: proxies + sum(&self.applications)?,
            context_switches: switches,
            others,
            noisy: others > NOISE_LIMIT,
            ..Sample::default()
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn rows_become_arguments_of_the_load_generator() {
        let words = |name: &str| arguments(&name.parse().unwrap(), "x:1").join(" ");
        assert_eq!(
            words("http-1k-open16"),
            "requests --to x:1 --path /1k --connections 16 --rate 1000"
        );
        assert_eq!(
            words("tcp-1k-newconn"),
            "requests --to x:1 --path /1k --connections 16 --new-connections"
        );
        assert_eq!(
            words("grpc-64b-max32"),
            "multiplexed --to x:1 --streams 32 --connections 4 --path /bench.Echo/Call --grpc 64"
        );
        assert_eq!(words("tcp-stream-64b"), "stream --to x:1 --write 64");
    }
}
