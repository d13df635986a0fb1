//! Axes: where a value lies in a plot, and which values have labels.

/// If the largest value is more than this many times the smallest, the axis is logarithmic.
const LOG_MIN_RATIO: f64 = 4.0;

/// Whiskers may make the range of an axis this many times longer than the medians need it. A longer
/// whisker leaves the plot.
const WHISKER_MAX_RATIO: f64 = 1.5;

/// How many labels an axis of values has at most.
const MAX_TICKS: usize = 7;

/// An axis for values that are greater than 0.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Axis {
    low: f64,
    high: f64,
    pub(super) is_log: bool,
    /// The coordinates of `low` and `high`.
    from: f64,
    to: f64,
}

impl Axis {
    /// Returns an axis of values that shows all medians, and as much of the extremes as fits.
    pub(super) fn of_values(spreads: &[[f64; 3]], from: f64, to: f64) -> Self {
        let fold = |pick: fn(&[f64; 3]) -> f64, choose: fn(f64, f64) -> f64, start: f64| {
            spreads.iter().map(pick).fold(start, choose)
        };
        let median_low = fold(|spread| spread[1], f64::min, f64::INFINITY);
        let median_high = fold(|spread| spread[1], f64::max, 0.0);
        let low = fold(|spread| spread[0], f64::min, f64::INFINITY);
        let high = fold(|spread| spread[2], f64::max, 0.0);
        if median_high <= 0.0 {
            return Self::linear(1.0, from, to);
        }
        let low = low.max(median_low / WHISKER_MAX_RATIO);
        let high = high.min(median_high * WHISKER_MAX_RATIO);
        if median_high / median_low > LOG_MIN_RATIO {
            Self {
                low: low * 0.9,
                high: high * 1.1,
                is_log: true,
                from,
                to,
            }
        } else {
            Self::linear(high * 1.04, from, to)
        }
    }

    fn linear(high: f64, from: f64, to: f64) -> Self {
        Self {
            low: 0.0,
            high,
            is_log: false,
            from,
            to,
        }
    }

    /// Returns the axis of sizes, which is logarithmic.
    pub(super) fn of_sizes(sizes: &[u64], from: f64, to: f64) -> Self {
        let low = sizes.iter().copied().min().unwrap_or(1).max(1) as f64;
        let high = sizes.iter().copied().max().unwrap_or(1).max(1) as f64;
        // A single size is in the middle.
        let margin = if low < high { 1.0 } else { 2.0 };
        Self {
            low: low / margin,
            high: high * margin,
            is_log: true,
            from,
            to,
        }
    }

    /// The coordinate of a value, which may lie outside of the plot.
    pub(super) fn at(&self, value: f64) -> f64 {
        let part = if self.is_log {
            (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        };
        self.from + part * (self.to - self.from)
    }

    /// The coordinate of a value, moved to the end of the axis if it lies outside.
    pub(super) fn clamped(&self, value: f64) -> f64 {
        self.at(value.clamp(self.low, self.high))
    }

    /// Whether a value is on the axis.
    pub(super) fn contains(&self, value: f64) -> bool {
        (self.low..=self.high).contains(&value)
    }

    /// The values that have a label.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if self.is_log {
            let fine = self.log_ticks(&[1.0, 2.0, 5.0]);
            if fine.len() <= MAX_TICKS {
                return fine;
            }
            return self.log_ticks(&[1.0]);
        }
        let raw = self.high / 5.0;
        let magnitude = 10_f64.powi(raw.log10().floor() as i32);
        let steps = [1.0, 2.0, 2.5, 5.0, 10.0].map(|step| step * magnitude);
        let step = steps.into_iter().find(|step| *step >= raw);
        let step = step.unwrap_or(raw);
        let count = (self.high / step + 1e-9).floor() as u32;
        (0..=count).map(|index| f64::from(index) * step).collect()
    }

    fn log_ticks(&self, factors: &[f64]) -> Vec<f64> {
        let decades = self.low.log10().floor() as i32..=self.high.log10().ceil() as i32;
        decades
            .flat_map(|decade| {
                factors
                    .iter()
                    .map(move |factor| factor * 10_f64.powi(decade))
            })
            .filter(|value| self.contains(*value))
            .collect()
    }
}

/// Returns which of the sizes have a label, so that labels are at least `min_distance` apart.
pub(super) fn labelled_sizes(axis: &Axis, sizes: &[u64], min_distance: f64) -> Vec<u64> {
    let step = (1..sizes.len().max(1)).find(|step| {
        let labelled: Vec<f64> = sizes
            .iter()
            .step_by(*step)
            .map(|size| axis.at(*size as f64))
            .collect();
        labelled
            .windows(2)
            .all(|pair| pair[1] - pair[0] >= min_distance)
    });
    let step = step.unwrap_or(sizes.len().max(1));
    sizes.iter().copied().step_by(step).collect()
}

/// A coordinate, rounded to a tenth of a pixel.
pub(super) fn px(value: f64) -> String {
    let rounded = (value * 10.0).round() / 10.0;
    // Rust prints neither an exponent nor trailing zeroes here. The addition turns -0 into 0.
    format!("{}", rounded + 0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_of_one_magnitude_start_at_zero() {
        let axis = Axis::of_values(&[[2.0, 3.0, 3.5], [6.0, 7.0, 8.0]], 100.0, 0.0);
        assert!(!axis.is_log);
        assert_eq!(axis.at(0.0), 100.0);
        assert_eq!(axis.ticks(), [0.0, 2.0, 4.0, 6.0, 8.0]);
    }

    #[test]
    fn values_of_several_magnitudes_are_logarithmic() {
        let axis = Axis::of_values(&[[0.1, 0.1, 0.1], [9.0, 10.0, 11.0]], 100.0, 0.0);
        assert!(axis.is_log);
        assert_eq!(axis.ticks(), [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]);
        let axis = Axis::of_values(&[[0.001, 0.001, 0.001], [9.0, 10.0, 11.0]], 100.0, 0.0);
        assert_eq!(axis.ticks(), [0.001, 0.01, 0.1, 1.0, 10.0]);
    }

    #[test]
    fn an_extreme_value_does_not_squeeze_the_medians() {
        let axis = Axis::of_values(&[[1.0, 2.0, 900.0], [2.0, 3.0, 4.0]], 100.0, 0.0);
        assert!(axis.at(3.0) < 40.0, "{axis:?}");
        assert_eq!(axis.clamped(900.0), 0.0);
    }

    #[test]
    fn no_values_and_a_single_size_have_axes() {
        let axis = Axis::of_values(&[], 100.0, 0.0);
        assert!(axis.ticks().len() > 2);
        let axis = Axis::of_sizes(&[4096], 0.0, 10.0);
        assert!((axis.at(4096.0) - 5.0).abs() < 1e-6);
        let axis = Axis::of_sizes(&[], 0.0, 10.0);
        assert!(axis.at(1.0).is_finite());
    }

    #[test]
    fn labels_of_sizes_keep_their_distance() {
        let sizes: Vec<u64> = (10..=26).map(|shift| 1 << shift).collect();
        let axis = Axis::of_sizes(&sizes, 0.0, 240.0);
        let labelled = labelled_sizes(&axis, &sizes, 50.0);
        assert_eq!(labelled, [1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 26]);
        assert_eq!(labelled_sizes(&axis, &[], 50.0), [0_u64; 0]);
        assert_eq!(labelled_sizes(&axis, &[5], 50.0), [5]);
    }
}
