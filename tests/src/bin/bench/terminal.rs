//! The report in a terminal.

use std::fmt::Write;

use super::{
    figures::{Figure, Figures},
    row::{Measures, Row},
    targets::Target,
};

/// One line for each row and mode.
pub fn table(figures: &Figures<'_>) -> String {
    let mut text = format!(
        "{:<22} {:<9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>6} {:>7} {:>7} {:>6} {:>6} {:>7} {:>5}\n",
        "row",
        "mode",
        "p50 µs",
        "p90",
        "p99",
        "p99.9",
        "+p50",
        "+p99",
        "/s",
        "of dir",
        "CPU prx",
        "CPU all",
        "ctx sw",
        "calls",
        "redir %",
        "±",
    );
    for row in figures.rows() {
        for mode in figures.modes() {
            if figures.samples(row, mode).next().is_some() {
                line(&mut text, figures, row, mode);
            }
        }
        text.push('\n');
    }
    text
}

/// What the data plane is meant to reach, and whether it does.
pub fn targets(targets: &[Target]) -> String {
    let mut text = String::new();
    for target in targets {
        let _ = writeln!(
            text,
            "{:<13} {:>9} {:>9}  {}",
            target.verdict(),
            target.bound_text(),
            target.measured_text(),
            target.what,
        );
    }
    text
}

fn line(text: &mut String, figures: &Figures<'_>, row: &str, mode: &str) {
    let show = |figure, digits: usize| number(figures.middle(row, mode, figure), digits);
    let added = |figure| match mode {
        "direct" => String::new(),
        _ => signed(figures.added(row, mode, figure)),
    };
    let measures = row
        .parse::<Row>()
        .map_or(Measures::Latency, |row| row.measures());
    let first = match measures {
        Measures::Latency => Figure::P50,
        Measures::Requests => Figure::Rate,
        Measures::Bytes => Figure::MegabytesPerSecond,
    };
    let rate = match measures {
        Measures::Bytes => format!("{} MB", show(Figure::MegabytesPerSecond, 0)),
        _ => show(Figure::Rate, 0),
    };
    let of_direct = match mode {
        "direct" => String::new(),
        _ => number(
            figures.ratio(
                row,
                mode,
                "direct",
                if measures == Measures::Bytes {
                    first
                } else {
                    Figure::Rate
                },
            ),
            2,
        ),
    };
    let spread = figures
        .median(row, mode, first)
        .map(|median| median.spread() * 100.0);
    let noisy = match figures.noisy(row, mode) {
        0 => String::new(),
        count => format!("  {count} noisy"),
    };
    let errors = match figures.errors(row, mode) {
        0 => String::new(),
        count => format!("  {count} ERRORS"),
    };
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "{row:<22} {mode:<9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {rate:>9} {of_direct:>6} {:>7} {:>7} {:>6} {:>6} {:>7} {:>4}%{noisy}{errors}",
        show(Figure::P50, 0),
        show(Figure::P90, 0),
        show(Figure::P99, 0),
        show(Figure::P999, 0),
        added(Figure::P50),
        added(Figure::P99),
        show(Figure::CpuProxies, 3),
        show(Figure::CpuPath, 3),
        show(Figure::ContextSwitches, 2),
        show(Figure::SystemCalls, 1),
        show(Figure::Redirected, 0),
        number(spread, 0),
    );
}

pub fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.digits$}"))
}

pub fn signed(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:+.0}"))
}
