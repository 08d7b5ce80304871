//! The README's section about performance, made from a run.

use std::{fmt::Write, fs, path::Path};

use anyhow::{Context, Result, ensure};

use super::{
    claims,
    figures::{Figure, Figures},
    run::Run,
    targets::{self, Target},
    terminal::{number, signed},
};

pub const BEGIN: &str = "<!-- begin: cargo xtask bench --readme -->";
pub const END: &str = "<!-- end: cargo xtask bench --readme -->";

/// The rows that are shown.
const SHOWN: [&str; 10] = [
    "tcp-1k-closed1",
    "tcp-1k-open16",
    "tcp-1k-max32",
    "tcp-1k-newconn",
    "http-1k-open16",
    "http-1k-max32",
    "http-mtls-1k-open16",
    "http-mtls-1k-max32",
    "tcp-mtls-1k-newconn",
    "tcp-stream-64k",
];

/// Replaces what stands between the two markers.
pub fn update(path: &Path, run: &Run) -> Result<()> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    let new = replaced(&text, &section(run))
        .with_context(|| format!("{} cannot take the section", path.display()))?;
    fs::write(path, new).with_context(|| format!("writing {}", path.display()))
}

fn replaced(text: &str, section: &str) -> Result<String> {
    ensure!(
        text.matches(BEGIN).count() == 1 && text.matches(END).count() == 1,
        "it needs the line {BEGIN} and the line {END}, once each"
    );
    let (before, rest) = text.split_once(BEGIN).context("no beginning")?;
    let (_, after) = rest
        .split_once(END)
        .context("the end stands before the beginning")?;
    Ok(format!("{before}{BEGIN}\n{section}{END}{after}"))
}

/// As Markdown.
pub fn section(run: &Run) -> String {
    let figures = Figures::of(run);
    let mut text = format!("\n{}\n\n", claims::conditions(run));
    text += "| row | mode | p50 added, µs | p99 added, µs | per second | of direct | CPU of both proxies, s per 10,000 |\n";
    text += "|---|---|---|---|---|---|---|\n";
    let measured = figures.rows();
    for row in SHOWN.into_iter().filter(|row| measured.contains(row)) {
        for mode in figures.modes() {
            line(&mut text, &figures, row, mode);
        }
    }
    text.push('\n');
    for claim in claims::of(run) {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "- {claim}");
    }
    text += "\n| what | target | measured | |\n|---|---|---|---|\n";
    for target in targets::table(run) {
        target_line(&mut text, &target);
    }
    text.push('\n');
    text
}

fn line(text: &mut String, figures: &Figures<'_>, row: &str, mode: &str) {
    if figures.samples(row, mode).next().is_none() {
        return;
    }
    let is_direct = mode == "direct";
    let stream = row.contains("stream");
    let shown = |value: String| if is_direct { String::new() } else { value };
    let rate = if stream {
        Figure::MegabytesPerSecond
    } else {
        Figure::Rate
    };
    let unit = if stream { " MB" } else { "" };
    let _ = writeln!(
        text,
        "| {row} | {mode} | {} | {} | {}{unit} | {} | {} |",
        match is_direct {
            true => format!(
                "{} in all",
                number(figures.middle(row, mode, Figure::P50), 0)
            ),
            false => signed(figures.added(row, mode, Figure::P50)),
        },
        match is_direct {
            true => format!(
                "{} in all",
                number(figures.middle(row, mode, Figure::P99), 0)
            ),
            false => signed(figures.added(row, mode, Figure::P99)),
        },
        number(figures.middle(row, mode, rate), 0),
        shown(number(figures.ratio(row, mode, "direct", rate), 2)),
        shown(number(figures.middle(row, mode, Figure::CpuProxies), 2)),
    );
}

fn target_line(text: &mut String, target: &Target) {
    let _ = writeln!(
        text,
        "| {} | {} | {} | {} |",
        target.what,
        target.bound_text(),
        target.measured_text(),
        target.verdict()
    );
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::example;

    #[test]
    fn the_readme_has_the_place_for_the_section() {
        let readme = Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("README.md");
        let text = fs::read_to_string(readme).unwrap();
        replaced(&text, "").unwrap();
    }

    #[test]
    fn only_what_is_between_the_markers_changes() {
        let text = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let section = section(&example::run());
        let new = replaced(&text, &section).unwrap();
        assert!(new.starts_with("a\n") && new.ends_with("\nb\n") && !new.contains("old"));
        assert_eq!(replaced(&new, &section).unwrap(), new);
        assert!(new.contains("| tcp-1k-closed1 | redirect | +40 |"), "{new}");
        assert!(replaced("no markers", "").is_err());
    }
}
