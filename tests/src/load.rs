//! What the load generator (src/bin/load) tells about a run, for the benchmark (src/bin/bench) to read.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// The line that the generator prints when its warm-up is over.
pub const MEASURING: &str = "measuring";

/// Quantiles of a distribution that are kept: enough for a plot to the last thousandth and beyond.
pub const QUANTILES: [f64; 17] = [
    0.0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999,
    0.99999, 1.0,
];

/// One run of the load generator, over its measured time: the warm-up is not in it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct LoadReport {
    pub seconds: f64,
    /// Requests that were answered in full; of a stream, the writes.
    pub requests: u64,
    /// Requests that failed, or were not answered by the end.
    pub errors: u64,
    /// What went wrong first, also in the warm-up.
    pub first_error: Option<String>,
    /// Bytes of bodies; of a stream, the bytes written.
    pub bytes: u64,
    /// From the time at which a request was due, or sent where there is no schedule, to its answer's last byte.
    pub latency: Option<Distribution>,
    /// From `connect` to an established connection, where every request has one.
    pub connect: Option<Distribution>,
    /// The files that the generator was asked to read at both ends of the measured time.
    pub files: BTreeMap<String, Sampled>,
}

/// A file's text at both ends of the measured time.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Sampled {
    pub before: String,
    pub after: String,
}

/// Times in microseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    pub count: u64,
    pub mean: f64,
    /// Pairs of quantile and value, for [`QUANTILES`].
    pub quantiles: Vec<(f64, f64)>,
}

impl Distribution {
    /// Of a histogram of nanoseconds; `None` if it is empty.
    pub fn of(nanoseconds: &Histogram<u64>) -> Option<Self> {
        if nanoseconds.is_empty() {
            return None;
        }
        let value = |quantile| nanoseconds.value_at_quantile(quantile) as f64 / 1000.0;
        Some(Self {
            count: nanoseconds.len(),
            mean: nanoseconds.mean() / 1000.0,
            quantiles: QUANTILES
                .into_iter()
                .map(|quantile| (quantile, value(quantile)))
                .collect(),
        })
    }

    /// The value at one of [`QUANTILES`].
    pub fn at(&self, quantile: f64) -> Option<f64> {
        let found = self.quantiles.iter().find(|(at, _)| *at == quantile);
        found.map(|(_, value)| *value)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_distribution_is_in_microseconds_and_an_empty_one_is_none() {
        let mut histogram = Histogram::<u64>::new(3).unwrap();
        assert_eq!(Distribution::of(&histogram), None);
        for value in 1..=1000 {
            histogram.record(value * 1000).unwrap();
        }
        let distribution = Distribution::of(&histogram).unwrap();
        assert_eq!(distribution.count, 1000);
        let median = distribution.at(0.5).unwrap();
        assert!((median - 500.0).abs() < 2.0, "{median}");
        assert!(distribution.at(0.42).is_none());
    }
}
