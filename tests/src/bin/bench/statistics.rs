//! Medians and their spread.

use serde::{Deserialize, Serialize};

/// The middle of several values, and the lowest and highest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Median {
    pub middle: f64,
    pub low: f64,
    pub high: f64,
    pub count: usize,
}

impl Median {
    /// None of no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values
            .into_iter()
            .filter(|value| value.is_finite())
            .collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = (*values.first()?, *values.last()?);
        let half = values.len() / 2;
        let middle = match values.len() % 2 {
            0 => (values[half - 1] + values[half]) / 2.0,
            _ => values[half],
        };
        Some(Self {
            middle,
            low,
            high,
            count: values.len(),
        })
    }

    /// Half of the distance between the extremes, relative to the middle.
    pub fn spread(self) -> f64 {
        if self.middle == 0.0 {
            return 0.0;
        }
        (self.high - self.low) / 2.0 / self.middle.abs()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_median_of_few_values() {
        assert_eq!(Median::of([]), None);
        let median = Median::of([3.0, 1.0, 2.0]).unwrap();
        assert_eq!((median.middle, median.low, median.high), (2.0, 1.0, 3.0));
        assert_eq!(median.spread(), 0.5);
        assert_eq!(Median::of([1.0, 2.0, f64::NAN]).unwrap().middle, 1.5);
    }
}
