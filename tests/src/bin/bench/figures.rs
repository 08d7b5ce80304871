//! What the samples of a run come to: for each row and mode, medians over the rounds.

use super::{
    run::{Run, Sample},
    statistics::Median,
};

/// One figure that a sample has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Figure {
    P50,
    P90,
    P99,
    P999,
    /// Answers a second; of a stream, writes.
    Rate,
    /// Of bodies or of the stream.
    MegabytesPerSecond,
    /// CPU seconds per 10,000 requests.
    CpuProxies,
    CpuPath,
    /// Of both proxies, per request.
    ContextSwitches,
    /// Of both proxies, per request.
    SystemCalls,
    /// Per cent of the bytes that passed by TCP.
    Redirected,
    /// Median time until a connection stands.
    Connect,
}

impl Figure {
    pub fn of(self, sample: &Sample) -> Option<f64> {
        let quantile = |at| sample.latency.as_ref()?.at(at);
        let per_request =
            |total: f64| (sample.requests > 0).then(|| total / sample.requests as f64);
        let per_second = |total: u64| (sample.seconds > 0.0).then(|| total as f64 / sample.seconds);
        match self {
            Self::P50 => quantile(0.5),
            Self::P90 => quantile(0.9),
            Self::P99 => quantile(0.99),
            Self::P999 => quantile(0.999),
            Self::Rate => per_second(sample.requests),
            Self::MegabytesPerSecond => Some(per_second(sample.bytes)? / 1e6),
            Self::CpuProxies => Some(per_request(sample.cpu_proxies)? * 10_000.0),
            Self::CpuPath => Some(per_request(sample.cpu_path)? * 10_000.0),
            Self::ContextSwitches => per_request(sample.context_switches as f64),
            Self::SystemCalls => sample.system_calls,
            Self::Redirected => Some(sample.redirected? * 100.0),
            Self::Connect => sample.connect.as_ref()?.at(0.5),
        }
    }
}

/// The samples of a run, to be asked.
pub struct Figures<'r> {
    run: &'r Run,
}

impl<'r> Figures<'r> {
    pub fn of(run: &'r Run) -> Self {
        Self { run }
    }

    pub fn samples(&self, row: &str, mode: &str) -> impl Iterator<Item = &'r Sample> {
        let samples = self.run.samples.iter();
        samples.filter(move |sample| sample.row == row && sample.mode == mode)
    }

    pub fn median(&self, row: &str, mode: &str, figure: Figure) -> Option<Median> {
        Median::of(
            self.samples(row, mode)
                .filter_map(|sample| figure.of(sample)),
        )
    }

    /// The middle alone.
    pub fn middle(&self, row: &str, mode: &str, figure: Figure) -> Option<f64> {
        Some(self.median(row, mode, figure)?.middle)
    }

    /// What the mode adds to the same figure of `direct`.
    pub fn added(&self, row: &str, mode: &str, figure: Figure) -> Option<f64> {
        Some(self.middle(row, mode, figure)? - self.middle(row, "direct", figure)?)
    }

    /// The figure in `mode` relative to that in `other`.
    pub fn ratio(&self, row: &str, mode: &str, other: &str, figure: Figure) -> Option<f64> {
        let other = self.middle(row, other, figure)?;
        (other > 0.0).then_some(self.middle(row, mode, figure)? / other)
    }

    /// Rows and modes in the order in which they were first measured.
    pub fn rows(&self) -> Vec<&'r str> {
        unique(self.run.samples.iter().map(|sample| sample.row.as_str()))
    }

    pub fn modes(&self) -> Vec<&'r str> {
        unique(self.run.samples.iter().map(|sample| sample.mode.as_str()))
    }

    /// How many of the samples others disturbed.
    pub fn noisy(&self, row: &str, mode: &str) -> usize {
        self.samples(row, mode)
            .filter(|sample| sample.noisy)
            .count()
    }

    pub fn errors(&self, row: &str, mode: &str) -> u64 {
        self.samples(row, mode).map(|sample| sample.errors).sum()
    }
}

fn unique<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut found = Vec::new();
    for name in names {
        if !found.contains(&name) {
            found.push(name);
        }
    }
    found
}
