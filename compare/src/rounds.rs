//! The measurements of all rounds, and the figures computed from them. In each round, every
//! contender is measured once in every case: at every size, or in every scenario.

use crate::table::{Spread, size_text};

/// What all contenders of a comparison are measured at. In most comparisons, this is the size of
/// the file or of the buffer that is sent, in bytes.
pub(crate) trait Case: Copy + PartialEq {
    /// The heading of the case's column in the raw data.
    const COLUMN: &'static str;

    /// The name of the case in the tables.
    fn text(self) -> String;

    /// The name of the case in a sentence, with a preposition.
    fn phrase(self) -> String {
        format!("at {}", self.text())
    }

    /// The name of the case in the raw data.
    fn key(self) -> String;
}

impl Case for u64 {
    const COLUMN: &'static str = "size_bytes";

    fn text(self) -> String {
        size_text(self)
    }

    fn key(self) -> String {
        self.to_string()
    }
}

/// One measurement of one contender.
pub(crate) struct Measurement<S, C = u64> {
    /// The round, counted from 1.
    pub(crate) round: usize,
    /// The case that was measured.
    pub(crate) case: C,
    /// The contender's name.
    pub(crate) contender: &'static str,
    /// The measured values.
    pub(crate) sample: S,
}

/// A kind of figure that is computed from the measured values, for example the throughput.
pub(crate) trait Measure: Copy {
    /// The measured values that the figure is computed from.
    type Sample;

    /// The heading of the figure's column.
    fn name(self) -> &'static str;

    /// The figure's key in the raw data, which includes its unit.
    fn key(self) -> &'static str;

    /// Computes the figure. The result is not finite if the computation divides by zero, because
    /// nothing was received or because the contender's CPU time was less than a clock tick and
    /// counted as 0.
    fn value(self, sample: &Self::Sample) -> f64;

    /// Formats the cell of a table for the figure's values over all rounds.
    fn cell(self, spread: Spread) -> String;
}

/// All measurements of one kind.
pub(crate) struct Rounds<S, C = u64>(Vec<Measurement<S, C>>);

impl<S, C> Default for Rounds<S, C> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S, C: Case> Rounds<S, C> {
    /// Adds a measurement.
    pub(crate) fn push(&mut self, measurement: Measurement<S, C>) {
        self.0.push(measurement);
    }

    /// Whether there are no measurements.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// All measurements in the order in which they were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Measurement<S, C>> {
        self.0.iter()
    }

    /// Returns the samples of one contender in one case, each with its round.
    pub(crate) fn samples(&self, case: C, contender: &str) -> impl Iterator<Item = (usize, &S)> {
        self.0
            .iter()
            .filter(move |row| row.case == case && row.contender == contender)
            .map(|row| (row.round, &row.sample))
    }

    /// Returns the spread of a figure over the rounds, without values that are not finite. Returns
    /// `None` if no value is left.
    pub(crate) fn spread<M: Measure<Sample = S>>(
        &self,
        measure: M,
        case: C,
        contender: &str,
    ) -> Option<Spread> {
        let samples = self.samples(case, contender);
        Spread::of(
            samples
                .map(|(_, sample)| measure.value(sample))
                .filter(|value| value.is_finite()),
        )
    }

    /// Returns the median of a figure over the rounds, or 0 if the figure has no finite value.
    pub(crate) fn median<M: Measure<Sample = S>>(
        &self,
        measure: M,
        case: C,
        contender: &str,
    ) -> f64 {
        self.spread(measure, case, contender)
            .map_or(0.0, |spread| spread.median)
    }

    /// Divides the figure of contender `above` by the figure of contender `below` in each round,
    /// and returns the spread of these ratios. Skips a round if either contender has no finite
    /// value in it.
    pub(crate) fn ratio<M: Measure<Sample = S>>(
        &self,
        measure: M,
        case: C,
        above: &str,
        below: &str,
    ) -> Option<Spread> {
        let pairs = self.samples(case, above).filter_map(|(round, sample)| {
            let other = self
                .samples(case, below)
                .find(|&(other_round, _)| other_round == round)?
                .1;
            let pair = (measure.value(sample), measure.value(other));
            (pair.0.is_finite() && pair.1.is_finite()).then_some(pair)
        });
        Spread::of_ratios(pairs)
    }
}

/// The other side of the connection (the receiver or the load generator) is considered the
/// bottleneck if it uses at least this share of its CPU while the contender uses less than
/// [`CONTENDER_IDLE_SHARE`] of its own CPU.
const OTHER_SIDE_BUSY_SHARE: f64 = 0.95;

/// A contender that uses less than this share of its CPU spends the rest of the time waiting, so it
/// is not the bottleneck itself. See [`OTHER_SIDE_BUSY_SHARE`].
const CONTENDER_IDLE_SHARE: f64 = 0.90;

/// A measurement is considered disturbed if more than this share of a CPU was used by anything but
/// the two sides of the connection.
const DISTURBED_SHARE: f64 = 0.10;

/// The CPU time that each party used during a measurement, as a fraction of one CPU.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CpuShares {
    /// The contender's process.
    pub(crate) contender: f64,
    /// This program, which is the other side of the connection.
    pub(crate) other_side: f64,
    /// Everything else: other programs and kernel threads.
    pub(crate) elsewhere: f64,
}

impl CpuShares {
    /// Returns a remark about what distorts the figures in a row of the report, or an empty string.
    /// `other_side` names this program's role in the measurement, for example `the receiver`.
    pub(crate) fn remark(&self, other_side: &str) -> String {
        let mut remarks = Vec::new();
        if self.other_side >= OTHER_SIDE_BUSY_SHARE && self.contender < CONTENDER_IDLE_SHARE {
            remarks.push(format!(
                "{other_side} was the limit: ratios are too close to 1"
            ));
        }
        if self.elsewhere > DISTURBED_SHARE {
            remarks.push(format!(
                "other programs used {:.0} % of a CPU",
                self.elsewhere * 100.0
            ));
        }
        remarks.join("; ")
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// A figure that is the sample times a factor.
    #[derive(Clone, Copy)]
    struct Times(f64);

    impl Measure for Times {
        type Sample = f64;

        fn name(self) -> &'static str {
            "value"
        }

        fn key(self) -> &'static str {
            "value"
        }

        fn value(self, sample: &f64) -> f64 {
            self.0 * sample
        }

        fn cell(self, spread: Spread) -> String {
            spread.text(|value| value.to_string())
        }
    }

    fn rounds(rows: &[(usize, &'static str, f64)]) -> Rounds<f64> {
        let row = |&(round, contender, sample)| Measurement {
            round,
            case: 7,
            contender,
            sample,
        };
        Rounds(rows.iter().map(row).collect())
    }

    #[test]
    fn ratios_need_both_contenders_in_the_same_round() {
        let rounds = rounds(&[(1, "a", 3.0), (1, "b", 1.0), (2, "a", 9.0), (3, "b", 1.0)]);
        let ratio = rounds.ratio(Times(1.0), 7, "a", "b").unwrap();
        assert_eq!((ratio.min, ratio.max), (3.0, 3.0));
        assert!(rounds.ratio(Times(1.0), 8, "a", "b").is_none());
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let rounds = rounds(&[(1, "a", f64::INFINITY), (2, "a", 5.0)]);
        let spread = rounds.spread(Times(1.0), 7, "a").unwrap();
        assert_eq!((spread.min, spread.max), (5.0, 5.0));
        assert!(rounds.spread(Times(f64::NAN), 7, "a").is_none());
    }

    #[test]
    fn a_busy_other_side_and_a_busy_machine_get_a_remark() {
        let shares = |contender| CpuShares {
            contender,
            other_side: 0.96,
            elsewhere: 1.04 - contender,
        };
        let limited = shares(0.85).remark("the receiver");
        assert!(limited.contains("the receiver was the limit"), "{limited}");
        assert!(limited.contains("19 % of a CPU"), "{limited}");
        assert_eq!(shares(0.975).remark("the receiver"), "");
    }
}
