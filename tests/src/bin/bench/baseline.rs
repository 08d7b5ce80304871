//! Two runs compared: what became worse by more than both runs' noise.

use std::{fs, path::Path};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{
    figures::{Figure, Figures},
    row::{Measures, Row},
    run::{FORMAT, Run},
    statistics::Median,
};

/// Less than this is never called a change, however little the rounds differ.
const LEAST: f64 = 0.05;

/// A figure that changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    pub row: String,
    pub mode: String,
    pub figure: &'static str,
    pub before: f64,
    pub now: f64,
    /// Relative; above 0 is worse.
    pub worse: f64,
    /// How much of it may be noise.
    pub noise: f64,
}

impl Change {
    pub fn is_regression(&self) -> bool {
        self.worse > self.noise
    }

    pub fn is_improvement(&self) -> bool {
        -self.worse > self.noise
    }
}

/// Reads what `--json` wrote.
pub fn read(path: &Path) -> Result<Run> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let what = || format!("{} is no result of this benchmark (--json)", path.display());
    let value: Value = serde_json::from_str(&text).with_context(what)?;
    ensure!(
        value["format"] == FORMAT,
        "{} has format {} and this benchmark reads {FORMAT}: measure it again",
        path.display(),
        value["format"]
    );
    serde_json::from_value(value).with_context(what)
}

/// Every row and mode that both runs have, relative to direct where both have it: it is not the machine that is compared.
pub fn compare(before: &Run, now: &Run) -> Vec<Change> {
    let (old, new) = (Figures::of(before), Figures::of(now));
    let mut changes = Vec::new();
    for row in new.rows() {
        let Ok(parsed) = row.parse::<Row>() else {
            continue;
        };
        for mode in new.modes().into_iter().filter(|mode| *mode != "direct") {
            for (name, figure, sign) in compared(&parsed) {
                let (Some(a), Some(b)) = (
                    relative(&old, row, mode, figure),
                    relative(&new, row, mode, figure),
                ) else {
                    continue;
                };
                changes.push(Change {
                    row: row.to_owned(),
                    mode: mode.to_owned(),
                    figure: name,
                    before: a.middle,
                    now: b.middle,
                    worse: sign * (b.middle - a.middle) / a.middle,
                    noise: (a.spread() + b.spread()).max(LEAST),
                });
            }
        }
    }
    changes
}

/// What of a row is compared, and whether more of it is worse.
fn compared(row: &Row) -> Vec<(&'static str, Figure, f64)> {
    let mut figures = match row.measures() {
        Measures::Latency => vec![("p50", Figure::P50, 1.0)],
        Measures::Requests => vec![("requests/s", Figure::Rate, -1.0)],
        Measures::Bytes => vec![("MB/s", Figure::MegabytesPerSecond, -1.0)],
    };
    figures.push(("CPU of the proxies", Figure::CpuProxies, 1.0));
    figures
}

/// The figure of each round relative to direct's median, so that a faster machine is no merit of ours; where direct has none (or was
/// not measured), itself.
fn relative(figures: &Figures<'_>, row: &str, mode: &str, figure: Figure) -> Option<Median> {
    let direct = figures
        .middle(row, "direct", figure)
        .filter(|direct| *direct > 0.0)
        .unwrap_or(1.0);
    let values = figures
        .samples(row, mode)
        .filter_map(|sample| figure.of(sample));
    Median::of(values.map(|value| value / direct)).filter(|median| median.middle > 0.0)
}

/// What there is to say of a comparison, a line each.
pub fn report(changes: &[Change]) -> String {
    let mut lines = Vec::new();
    for change in changes {
        let verdict = if change.is_regression() {
            "WORSE"
        } else if change.is_improvement() {
            "better"
        } else {
            continue;
        };
        lines.push(format!(
            "{verdict:<7} {:<22} {:<9} {:<18} {:>7.3} → {:>7.3} ({:+.0} %, noise {:.0} %)",
            change.row,
            change.mode,
            change.figure,
            change.before,
            change.now,
            (change.now / change.before - 1.0) * 100.0,
            change.noise * 100.0,
        ));
    }
    if lines.is_empty() {
        lines.push(format!(
            "nothing changed beyond the noise, of {} figures",
            changes.len()
        ));
    }
    lines.join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::example;

    #[test]
    fn a_run_is_as_good_as_itself_also_after_it_was_written() {
        let run = example::run();
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), serde_json::to_string(&run).unwrap()).unwrap();
        let changes = compare(&read(file.path()).unwrap(), &run);
        assert_eq!(changes.len(), 8, "{changes:?}");
        assert!(
            changes
                .iter()
                .all(|change| !change.is_regression() && !change.is_improvement())
        );
        fs::write(file.path(), r#"{"format": 999}"#).unwrap();
        assert!(
            read(file.path())
                .unwrap_err()
                .to_string()
                .contains("measure it again")
        );
    }

    #[test]
    fn what_is_slower_beyond_the_noise_is_found_and_only_that() {
        let before = example::run();
        let mut now = before.clone();
        for sample in &mut now.samples {
            if sample.mode == "redirect" && sample.row == "tcp-1k-max32" {
                sample.requests = sample.requests * 8 / 10;
            }
            // A machine that is twice as fast is no improvement of ours.
            for (_, value) in &mut sample.latency.as_mut().unwrap().quantiles {
                *value /= 2.0;
            }
        }
        let changes = compare(&before, &now);
        let worse: Vec<_> = changes
            .iter()
            .filter(|change| change.is_regression())
            .collect();
        assert_eq!(worse.len(), 2, "{worse:?}");
        assert!(
            worse
                .iter()
                .all(|change| change.row == "tcp-1k-max32" && change.mode == "redirect")
        );
        assert!(changes.iter().all(|change| !change.is_improvement()));
        assert!(report(&changes).starts_with("WORSE"));
    }
}
