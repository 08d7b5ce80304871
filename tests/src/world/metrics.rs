//! Counters as a scraper sees them.

use std::fmt;

/// Samples of one scrape, in Prometheus' text format.
#[derive(Debug, Clone)]
pub struct Metrics {
    samples: Vec<(String, f64)>,
}

impl Metrics {
    pub fn parse(text: &str) -> Self {
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self {
            samples: text
                .lines()
                .filter(|line| !line.starts_with('#'))
                .filter_map(sample)
                .collect(),
        }
    }

    /// The sum of all samples of `name` that have all of `labels`, each written `key="value"`.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let is_of = |sample: &str| {
            sample == name
                || sample
                    .strip_prefix(name)
                    .is_some_and(|rest| rest.starts_with('{'))
        };
        let matching = self.samples.iter().filter(|(sample, _)| {
            is_of(sample) && labels.iter().all(|label| sample.contains(label))
        });
        matching.map(|(_, value)| value).sum()
    }

    /// How often the kernel half decided so.
    pub fn kernel_events(&self, event: &str) -> u64 {
        self.sum(
            "sidecar_kernel_events_total",
            &[&format!("event=\"{event}\"")],
        ) as u64
    }

    /// Bytes by path: `redirect` or `tcp`.
    pub fn kernel_bytes(&self, path: &str) -> u64 {
        self.sum("sidecar_kernel_bytes_total", &[&format!("path=\"{path}\"")]) as u64
    }
}

/// The kernel half's counters, for failures.
impl fmt::Display for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kernel = self
            .samples
            .iter()
            .filter(|(name, value)| name.starts_with("sidecar_kernel") && *value != 0.0);
        kernel
            .into_iter()
            .try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_summed_by_name_and_labels() {
        let text = "# TYPE a counter\na{event=\"x\",b=\"1\"} 2\na{event=\"x\",b=\"2\"} 3\na{event=\"y\"} 5\nab 7\n";
        let metrics = Metrics::parse(text);
        assert_eq!(metrics.sum("a", &["event=\"x\""]), 5.0);
        assert_eq!(metrics.sum("a", &[]), 10.0);
        assert_eq!(metrics.sum("ab", &[]), 7.0);
    }
}
