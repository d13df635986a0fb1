//! Medians of repeated measurements.

use serde::Serialize;

/// The median, the minimum and the maximum of some values.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The minimum.
    pub min: f64,
    /// The maximum.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of `values`, or `None` if there are no values.
    pub fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = values.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }

    /// Divides the first value of each pair by the second, and returns the spread of these ratios.
    /// A pair has two values from the same round, so anything that affects both alike, such as the
    /// state of the machine in that round, cancels out. In a ratio of two medians it would not
    /// cancel out, because the medians may come from different rounds.
    ///
    /// Skips pairs with a zero: there is no meaningful ratio if a CPU time was less than a clock
    /// tick and counted as 0.
    pub fn of_ratios(pairs: impl IntoIterator<Item = (f64, f64)>) -> Option<Self> {
        Self::of(
            pairs
                .into_iter()
                .filter(|&(above, below)| above > 0.0 && below > 0.0)
                .map(|(above, below)| above / below),
        )
    }

    /// Returns the difference between the maximum and the minimum, as a fraction of the median.
    #[must_use]
    pub fn width(&self) -> f64 {
        match self.max > self.min {
            true => (self.max - self.min) / self.median,
            false => 0.0,
        }
    }

    /// Formats the spread as `median (min–max)`, using `format` for each of the three values.
    pub fn text(&self, format: impl Fn(f64) -> String) -> String {
        let Self { median, min, max } = *self;
        format!("{} ({}–{})", format(median), format(min), format(max))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_count_is_the_mean_of_the_two_middle_values() {
        assert_eq!(Spread::of([]), None);
        let of = |values: &[f64]| {
            let spread = Spread::of(values.iter().copied());
            spread.map(|it| (it.median, it.min, it.max))
        };
        assert_eq!(of(&[9.0, 1.0, 2.0]), Some((2.0, 1.0, 9.0)));
        assert_eq!(of(&[4.0, 1.0, 2.0, 9.0]), Some((3.0, 1.0, 9.0)));
    }

    #[test]
    fn the_median_is_taken_over_the_ratios_of_the_rounds() {
        // The ratios within the rounds are 2, 3 and 0.5, with the median 2. The ratio of the two
        // medians would be 2 ÷ 2 = 1.
        let ratios = Spread::of_ratios([(2.0, 1.0), (9.0, 3.0), (1.0, 2.0)]);
        let ratios = ratios.map(|it| (it.median, it.min, it.max));
        assert_eq!(ratios, Some((2.0, 0.5, 3.0)));
        assert_eq!(Spread::of_ratios([(1.0, 0.0), (0.0, 1.0)]), None);
    }

    #[test]
    fn the_width_is_relative() {
        let width = |values: &[f64]| Spread::of(values.iter().copied()).map(|it| it.width());
        assert_eq!(width(&[1.0, 2.0, 3.0]), Some(1.0));
        assert_eq!(width(&[0.0, 0.0]), Some(0.0));
    }
}
