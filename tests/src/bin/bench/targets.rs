//! The table of targets: what the data plane is meant to reach, what this run measured, and whether that is enough.

use super::{
    figures::{Figure, Figures},
    run::{Memory, Run},
    statistics::Median,
};

/// One line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    pub what: &'static str,
    /// The row that it is read from.
    pub row: &'static str,
    pub bound: Bound,
    /// None: the run has not measured it.
    pub measured: Option<f64>,
    pub unit: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Target {
    /// None where nothing was measured.
    pub fn is_met(&self) -> Option<bool> {
        let measured = self.measured?;
        Some(match self.bound {
            Bound::AtMost(bound) => measured <= bound,
            Bound::AtLeast(bound) => measured >= bound,
        })
    }

    pub fn verdict(&self) -> &'static str {
        match self.is_met() {
            Some(true) => "ok",
            Some(false) => "short",
            None => "not measured",
        }
    }

    pub fn bound_text(&self) -> String {
        match self.bound {
            Bound::AtMost(bound) => format!("≤ {bound}{}", self.unit),
            Bound::AtLeast(bound) => format!("≥ {bound}{}", self.unit),
        }
    }

    pub fn measured_text(&self) -> String {
        let unit = self.unit;
        self.measured
            .map_or_else(|| "–".to_owned(), |measured| format!("{measured:.2}{unit}"))
    }
}

/// Falling back to TCP must cost nothing: within what two runs of the same differ by.
const AS_GOOD_AS: f64 = 0.97;
const NO_MORE_THAN: f64 = 1.05;

/// All of them, in the order in which they are shown.
pub fn table(run: &Run) -> Vec<Target> {
    let figures = Figures::of(run);
    let added = |row, figure, other| {
        let (ours, others) = (
            figures.added(row, "redirect", figure)?,
            figures.added(row, other, figure)?,
        );
        (others > 0.0).then_some(ours / others)
    };
    let ratio = |row, figure, other| figures.ratio(row, "redirect", other, figure);
    let rate = |row, other| ratio(row, Figure::Rate, other);
    let stream = |row, other| ratio(row, Figure::MegabytesPerSecond, other);
    let opt_out = |figure| figures.ratio("tcp-optout-1k-closed1", "redirect", "steer", figure);
    let target = |what, row, bound, unit, measured| Target {
        what,
        row,
        bound,
        measured,
        unit,
    };
    use Bound::{AtLeast, AtMost};
    use Figure::{CpuProxies, P50, P99};
    vec![
        target(
            "TCP, p50 added, one connection, against iptables mode",
            "tcp-1k-closed1",
            AtMost(0.5),
            "",
            added("tcp-1k-closed1", P50, "iptables"),
        ),
        target(
            "TCP, p50 added at 1,000/s, against iptables mode",
            "tcp-1k-open16",
            AtMost(0.5),
            "",
            added("tcp-1k-open16", P50, "iptables"),
        ),
        target(
            "TCP, maximum requests/s, of direct",
            "tcp-1k-max32",
            AtLeast(0.65),
            "",
            rate("tcp-1k-max32", "direct"),
        ),
        target(
            "TCP, maximum requests/s, against iptables mode",
            "tcp-1k-max32",
            AtLeast(2.0),
            " ×",
            rate("tcp-1k-max32", "iptables"),
        ),
        target(
            "TCP, maximum requests/s, against Envoy",
            "tcp-1k-max32",
            AtLeast(3.4),
            " ×",
            rate("tcp-1k-max32", "envoy"),
        ),
        target(
            "TCP, one connection per request, against iptables mode",
            "tcp-1k-newconn",
            AtLeast(1.3),
            " ×",
            rate("tcp-1k-newconn", "iptables"),
        ),
        target(
            "HTTP/1.1, p50 added at 1,000/s, against iptables mode",
            "http-1k-open16",
            AtMost(0.7),
            "",
            added("http-1k-open16", P50, "iptables"),
        ),
        target(
            "HTTP/1.1 with mTLS, p50 added at 1,000/s, against Envoy",
            "http-mtls-1k-open16",
            AtMost(0.3),
            "",
            added("http-mtls-1k-open16", P50, "envoy"),
        ),
        target(
            "HTTP/1.1 with mTLS, p99 added at 1,000/s, against Envoy",
            "http-mtls-1k-open16",
            AtMost(0.4),
            "",
            added("http-mtls-1k-open16", P99, "envoy"),
        ),
        target(
            "HTTP/1.1 with mTLS, maximum requests/s, against Envoy",
            "http-mtls-1k-max32",
            AtLeast(3.5),
            " ×",
            rate("http-mtls-1k-max32", "envoy"),
        ),
        target(
            "HTTP/1.1 with mTLS, CPU of both proxies per request, against Envoy",
            "http-mtls-1k-max32",
            AtMost(0.3),
            "",
            ratio("http-mtls-1k-max32", CpuProxies, "envoy"),
        ),
        target(
            "TCP with mTLS, connections/s, against Envoy",
            "tcp-mtls-1k-newconn",
            AtLeast(4.0),
            " ×",
            rate("tcp-mtls-1k-newconn", "envoy"),
        ),
        target(
            "Stream of 64 KiB writes, against iptables mode",
            "tcp-stream-64k",
            AtLeast(AS_GOOD_AS),
            " ×",
            stream("tcp-stream-64k", "iptables"),
        ),
        target(
            "Stream of 64 B writes, against iptables mode",
            "tcp-stream-64b",
            AtLeast(AS_GOOD_AS),
            " ×",
            stream("tcp-stream-64b", "iptables"),
        ),
        target(
            "PSS of one proxy, idle",
            "",
            AtMost(8.0),
            " MiB",
            pss_mib(run, "redirect", |memory| memory.after.is_none()),
        ),
        target(
            "PSS of one proxy, after load",
            "http-mtls-1k-max32",
            AtMost(12.0),
            " MiB",
            pss_mib(run, "redirect", |memory| {
                memory.after.as_deref() == Some("http-mtls-1k-max32")
            }),
        ),
        target(
            "Latency of a port that opts out of redirect, against no redirect",
            "tcp-optout-1k-closed1",
            AtMost(NO_MORE_THAN),
            " ×",
            opt_out(P50),
        ),
    ]
}

/// The median over the proxies of a mode.
pub fn pss_mib(run: &Run, mode: &str, when: impl Fn(&Memory) -> bool) -> Option<f64> {
    let chosen = run
        .memory
        .iter()
        .filter(|memory| memory.mode == mode && when(memory));
    let median = Median::of(chosen.map(|memory| memory.pss_kib as f64 / 1024.0))?;
    Some(median.middle)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::example;

    #[test]
    fn targets_are_read_from_the_medians() {
        let run = example::run();
        let table = table(&run);
        let of = |what: &str| {
            table
                .iter()
                .find(|target| target.what.starts_with(what))
                .unwrap()
        };
        // 40 µs added against 100.
        let added = of("TCP, p50 added, one connection");
        assert_eq!((added.measured, added.verdict()), (Some(0.4), "ok"));
        let most = of("TCP, maximum requests/s, of direct");
        assert_eq!((most.measured, most.verdict()), (Some(0.6), "short"));
        assert_eq!(
            of("TCP, maximum requests/s, against Envoy").verdict(),
            "not measured"
        );
        assert_eq!(of("PSS of one proxy, idle").measured_text(), "7.00 MiB");
    }

    #[test]
    fn every_row_of_the_table_is_in_a_full_run() {
        for target in table(&example::run()) {
            assert!(
                target.row.is_empty() || crate::plan::FULL.contains(&target.row),
                "{}",
                target.row
            );
        }
    }
}
