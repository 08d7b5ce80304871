//! Plots of one row each, as SVG.

use std::fmt::Write;

use sidecar_tests::load::QUANTILES;

use super::escaped;
use crate::{
    figures::{Figure, Figures},
    statistics::Median,
    terminal::number,
};

const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 250.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 26.0;
const BOTTOM: f64 = 40.0;
/// Marks of the scale of quantiles.
const MARKS: [(f64, &str); 5] = [
    (0.0, "0"),
    (0.5, "50 %"),
    (0.9, "90 %"),
    (0.99, "99 %"),
    (0.999, "99.9 %"),
];
/// Beyond this, few rounds have enough samples.
const LAST_QUANTILE: f64 = 0.9995;

/// Latency over quantiles, a line for each mode; both scales are logarithmic.
pub fn distribution(figures: &Figures<'_>, row: &str) -> String {
    let lines: Vec<(&str, Vec<(f64, f64)>)> = figures
        .modes()
        .into_iter()
        .map(|mode| (mode, curve(figures, row, mode)))
        .filter(|(_, points)| !points.is_empty())
        .collect();
    let values = lines
        .iter()
        .flat_map(|(_, points)| points.iter().map(|(_, value)| *value));
    let Some((low, high)) = bounds(values) else {
        return String::new();
    };
    let scale = Scale::logarithmic(low, high);
    let mut svg = begin(&format!("{row}: latency, µs"));
    for value in scale.marks() {
        horizontal(&mut svg, scale.y(value), &number(Some(value), 0));
    }
    for (quantile, label) in MARKS {
        let x = x(quantile);
        text(&mut svg, x, HEIGHT - BOTTOM + 14.0, "middle", label);
    }
    for (at, (mode, points)) in lines.iter().enumerate() {
        let points: String = points
            .iter()
            .map(|(quantile, value)| format!("{:.1},{:.1} ", x(*quantile), scale.y(*value)))
            .collect();
        // Writing to a string cannot fail.
        let _ = write!(
            svg,
            "<polyline points=\"{}\" stroke=\"var(--m{})\"/>",
            points.trim_end(),
            colour(figures, mode)
        );
        legend(&mut svg, at, colour(figures, mode), mode);
    }
    svg + "</svg>"
}

/// One bar for each mode, with the extremes of the rounds.
pub fn bars(figures: &Figures<'_>, row: &str, figure: Figure, unit: &str) -> String {
    let bars: Vec<(&str, Median)> = figures
        .modes()
        .into_iter()
        .filter_map(|mode| Some((mode, figures.median(row, mode, figure)?)))
        .collect();
    let high = bars
        .iter()
        .map(|(_, median)| median.high)
        .fold(0.0, f64::max);
    if high <= 0.0 {
        return String::new();
    }
    let scale = Scale {
        low: 0.0,
        high: high * 1.05,
        logarithmic: false,
    };
    let mut svg = begin(&format!("{row}: {unit}"));
    for value in scale.marks() {
        horizontal(&mut svg, scale.y(value), &number(Some(value), 0));
    }
    let room = (WIDTH - LEFT - RIGHT) / bars.len() as f64;
    for (at, (mode, median)) in bars.iter().enumerate() {
        let left = LEFT + room * (at as f64 + 0.2);
        let (top, bottom) = (scale.y(median.middle), scale.y(0.0));
        let middle = left + room * 0.3;
        let _ = write!(
            svg,
            "<rect x=\"{left:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"var(--m{})\"/>\
             <line x1=\"{middle:.1}\" x2=\"{middle:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"currentColor\"/>",
            room * 0.6,
            bottom - top,
            colour(figures, mode),
            scale.y(median.low),
            scale.y(median.high),
        );
        text(&mut svg, middle, HEIGHT - BOTTOM + 14.0, "middle", mode);
        text(
            &mut svg,
            middle,
            HEIGHT - BOTTOM + 28.0,
            "middle",
            &number(Some(median.middle), 0),
        );
    }
    svg + "</svg>"
}

/// For each quantile, the median over the rounds.
fn curve(figures: &Figures<'_>, row: &str, mode: &str) -> Vec<(f64, f64)> {
    let quantiles = QUANTILES
        .into_iter()
        .filter(|quantile| *quantile <= LAST_QUANTILE);
    quantiles
        .filter_map(|quantile| {
            let values = figures
                .samples(row, mode)
                .filter_map(|sample| sample.latency.as_ref()?.at(quantile));
            Some((quantile, Median::of(values)?.middle))
        })
        .collect()
}

/// The same colour for a mode in every plot.
fn colour(figures: &Figures<'_>, mode: &str) -> usize {
    let at = figures.modes().iter().position(|other| *other == mode);
    at.unwrap_or_default() % 6
}

fn bounds(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let values = values.filter(|value| *value > 0.0);
    values.fold(None, |bounds, value| {
        let (low, high) = bounds.unwrap_or((value, value));
        Some((f64::min(low, value), f64::max(high, value)))
    })
}

/// Quantiles by how many nines they have.
fn x(quantile: f64) -> f64 {
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    LEFT + (WIDTH - LEFT - RIGHT) * nines(quantile) / nines(LAST_QUANTILE)
}

struct Scale {
    low: f64,
    high: f64,
    logarithmic: bool,
}

impl Scale {
    fn logarithmic(low: f64, high: f64) -> Self {
        Self {
            low: low * 0.9,
            high: high.max(low * 2.0) * 1.1,
            logarithmic: true,
        }
    }

    fn y(&self, value: f64) -> f64 {
        let place = |value: f64| {
            if self.logarithmic {
                value.max(self.low).log10()
            } else {
                value
            }
        };
        let share = (place(value) - place(self.low)) / (place(self.high) - place(self.low));
        HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share
    }

    /// Round values: 1, 2 and 5 times a power of ten.
    fn marks(&self) -> Vec<f64> {
        if self.logarithmic {
            let powers =
                (0..8).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(power)));
            return powers
                .filter(|value| (self.low..=self.high).contains(value))
                .collect();
        }
        let rough = self.high / 4.0;
        let power = 10_f64.powf(rough.log10().floor());
        let digit = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|digit| digit * power >= rough);
        let step = digit.unwrap_or(10.0) * power;
        (0..=8)
            .map(|at| f64::from(at) * step)
            .take_while(|value| *value <= self.high)
            .collect()
    }
}

fn begin(title: &str) -> String {
    let title = escaped(title);
    format!(
        "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{title}\">\
         <text x=\"{LEFT}\" y=\"14\" font-weight=\"600\">{title}</text>"
    )
}

fn horizontal(svg: &mut String, y: f64, label: &str) {
    let right = WIDTH - RIGHT;
    let _ = write!(
        svg,
        "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{right}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>"
    );
    text(svg, LEFT - 5.0, y + 4.0, "end", label);
}

fn legend(svg: &mut String, at: usize, colour: usize, mode: &str) {
    let x = LEFT + 74.0 * at as f64;
    let y = HEIGHT - 8.0;
    let _ = write!(
        svg,
        "<rect x=\"{x}\" y=\"{:.1}\" width=\"10\" height=\"4\" fill=\"var(--m{colour})\"/>",
        y - 6.0
    );
    text(svg, x + 14.0, y, "start", mode);
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str) {
    let _ = write!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(text)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_hold_their_values_and_marks_are_round() {
        let scale = Scale::logarithmic(54.0, 870.0);
        assert_eq!(scale.marks(), [50.0, 100.0, 200.0, 500.0]);
        assert!(scale.y(870.0) > TOP && scale.y(54.0) < HEIGHT - BOTTOM);
        assert!(scale.y(100.0) > scale.y(200.0));
        let scale = Scale {
            low: 0.0,
            high: 51_000.0,
            logarithmic: false,
        };
        assert_eq!(scale.marks(), [0.0, 20_000.0, 40_000.0]);
        assert!(x(0.0) < x(0.5) && x(0.5) < x(0.9) && x(LAST_QUANTILE) <= WIDTH - RIGHT);
    }
}
