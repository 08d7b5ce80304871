//! What is measured, and when: a warm-up, then the measured time, at both ends of which the files named are read.

use std::{
    collections::BTreeMap,
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::Result;
use clap::Args;
use hdrhistogram::Histogram;
use sidecar_tests::{
    load::{Distribution, LoadReport, MEASURING, Sampled},
    output::say,
};

/// How long to measure, for every kind of load.
#[derive(Args, Clone)]
pub struct Timing {
    /// The measured time
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Load before it, which is not measured
    #[arg(long, default_value_t = 0.5)]
    warm_up: f64,
    /// Read this file at both ends of the measured time
    #[arg(long = "file")]
    files: Vec<PathBuf>,
}

/// Where the run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    WarmUp { until: Instant },
    Measured { from: Instant, until: Instant },
    Over { from: Instant, to: Instant },
}

pub struct Recorder {
    timing: Timing,
    phase: Phase,
    latency: Histogram<u64>,
    connect: Histogram<u64>,
    report: LoadReport,
}

impl Recorder {
    pub fn new(timing: &Timing) -> Result<Self> {
        let warm_up = Duration::try_from_secs_f64(timing.warm_up)?;
        Ok(Self {
            timing: timing.clone(),
            phase: Phase::WarmUp {
                until: Instant::now() + warm_up,
            },
            latency: histogram()?,
            connect: histogram()?,
            report: LoadReport::default(),
        })
    }

    /// Goes from one phase to the next when it is time; false once the measured time is over.
    pub fn goes_on(&mut self, now: Instant) -> Result<bool> {
        match self.phase {
            Phase::WarmUp { until } if now >= until => {
                self.read(|sampled, text| sampled.before = text);
                say(MEASURING)?;
                let from = Instant::now();
                let until = from + Duration::try_from_secs_f64(self.timing.seconds)?;
                self.phase = Phase::Measured { from, until };
                Ok(true)
            }
            Phase::Measured { from, until } if now >= until => {
                self.phase = Phase::Over { from, to: now };
                self.read(|sampled, text| sampled.after = text);
                Ok(false)
            }
            Phase::Over { .. } => Ok(false),
            _ => Ok(true),
        }
    }

    /// A request that was due (or sent) at `due` was answered at `now`, with a body of `bytes`.
    pub fn answered(&mut self, due: Instant, now: Instant, bytes: u64) {
        if self.counts(due) {
            self.report.requests += 1;
            self.report.bytes += bytes;
            self.latency.saturating_record(nanoseconds(due, now));
        }
    }

    /// A connection was begun at `from` and stood at `now`.
    pub fn connected(&mut self, from: Instant, now: Instant) {
        if self.counts(from) {
            self.connect.saturating_record(nanoseconds(from, now));
        }
    }

    /// A request that was due at `due` failed, or was never answered.
    pub fn failed(&mut self, due: Instant, why: impl FnOnce() -> String) {
        if self.counts(due) {
            self.report.errors += 1;
        }
        self.report.first_error.get_or_insert_with(why);
    }

    pub fn first_error(&self) -> &str {
        self.report.first_error.as_deref().unwrap_or_default()
    }

    /// Of a stream: as many bytes were written.
    pub fn wrote(&mut self, bytes: usize) {
        if matches!(self.phase, Phase::Measured { .. }) {
            self.report.requests += 1;
            self.report.bytes += bytes as u64;
        }
    }

    pub fn report(mut self) -> LoadReport {
        if let Phase::Over { from, to } = self.phase {
            self.report.seconds = (to - from).as_secs_f64();
        }
        self.report.latency = Distribution::of(&self.latency);
        self.report.connect = Distribution::of(&self.connect);
        self.report
    }

    /// Whether something that began at `time` belongs to what is measured.
    fn counts(&self, time: Instant) -> bool {
        match self.phase {
            Phase::WarmUp { .. } => false,
            Phase::Measured { from, .. } => time >= from,
            Phase::Over { from, to } => time >= from && time <= to,
        }
    }

    /// A file that is gone (a thread that ended) reads as empty.
    fn read(&mut self, put: impl Fn(&mut Sampled, String)) {
        let files = &mut self.report.files;
        for path in &self.timing.files {
            let text = fs::read_to_string(path).unwrap_or_default();
            put(sampled(files, path.display().to_string()), text);
        }
    }
}

/// From a microsecond to a minute, to three digits; what is outside counts as the end.
fn histogram() -> Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?)
}

fn sampled(files: &mut BTreeMap<String, Sampled>, path: String) -> &mut Sampled {
    files.entry(path).or_default()
}

fn nanoseconds(from: Instant, to: Instant) -> u64 {
    let elapsed = to.saturating_duration_since(from).as_nanos();
    u64::try_from(elapsed).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn recorder(warm_up: f64) -> Recorder {
        Recorder::new(&Timing {
            seconds: 10.0,
            warm_up,
            files: vec!["/proc/self/stat".into(), "/nonexistent".into()],
        })
        .unwrap()
    }

    #[test]
    fn only_what_was_due_in_the_measured_time_counts() {
        let mut recorder = recorder(5.0);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(recorder.goes_on(start).unwrap());
        recorder.answered(start, at(1), 1);
        assert!(recorder.goes_on(at(6)).unwrap());
        // Due in the warm-up, answered later; and two that count.
        recorder.answered(start, at(7), 1);
        recorder.answered(at(7), at(8), 1);
        recorder.failed(at(8), || "reset".to_owned());
        assert!(!recorder.goes_on(at(20)).unwrap());
        recorder.answered(at(19), at(21), 1);
        recorder.answered(at(21), at(22), 1);
        let report = recorder.report();
        assert_eq!((report.requests, report.errors), (2, 1));
        assert_eq!(report.latency.unwrap().count, 2);
        assert_eq!(report.first_error.unwrap(), "reset");
        assert!(!report.files["/proc/self/stat"].after.is_empty());
        assert!(report.files["/nonexistent"].after.is_empty());
    }
}
