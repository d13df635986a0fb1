//! Measurements, round by round, and what follows from them.

use crate::table::Spread;

/// One measurement of one contender.
pub(crate) struct Row<S> {
    /// Rounds count from 1.
    pub(crate) round: usize,
    /// In bytes.
    pub(crate) size: u64,
    /// Its name.
    pub(crate) contender: &'static str,
    /// What was seen.
    pub(crate) sample: S,
}

/// All measurements of one kind.
pub(crate) struct Rounds<S>(Vec<Row<S>>);

impl<S> Default for Rounds<S> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<S> Rounds<S> {
    /// Adds a measurement.
    pub(crate) fn push(&mut self, row: Row<S>) {
        self.0.push(row);
    }

    /// Whether nothing was measured.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// In the order in which they were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Row<S>> {
        self.0.iter()
    }

    fn samples(&self, size: u64, contender: &str) -> impl Iterator<Item = (usize, &S)> {
        self.0
            .iter()
            .filter(move |row| row.size == size && row.contender == contender)
            .map(|row| (row.round, &row.sample))
    }

    /// The spread of a figure over the rounds; values that are not finite do not count.
    pub(crate) fn spread(
        &self,
        size: u64,
        contender: &str,
        figure: impl Fn(&S) -> f64,
    ) -> Option<Spread> {
        let values = self.samples(size, contender);
        Spread::of(
            values
                .map(|(_, sample)| figure(sample))
                .filter(|value| value.is_finite()),
        )
    }

    /// The spread of the per-round ratios of two contenders; rounds that only one finished do not
    /// count.
    pub(crate) fn ratio(
        &self,
        size: u64,
        above: &str,
        below: &str,
        figure: impl Fn(&S) -> f64,
    ) -> Option<Spread> {
        let pairs = self.samples(size, above).filter_map(|(round, sample)| {
            let other = self
                .samples(size, below)
                .find(|&(other_round, _)| other_round == round)?
                .1;
            let pair = (figure(sample), figure(other));
            (pair.0.is_finite() && pair.1.is_finite()).then_some(pair)
        });
        Spread::of_ratios(pairs)
    }
}

/// The other side is the limit if it is busier than this…
const OTHER_SIDE_BUSY: f64 = 0.95;

/// …while the contender is less busy than this.
const CONTENDER_IDLE: f64 = 0.90;

/// More than this much of a CPU elsewhere, and a measurement was disturbed.
const DISTURBED: f64 = 0.10;

/// What parts of a CPU went where.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shares {
    /// To the contender's process.
    pub(crate) contender: f64,
    /// To this program, which is the other side.
    pub(crate) other_side: f64,
    /// To anything else.
    pub(crate) elsewhere: f64,
}

impl Shares {
    /// What makes a row less than it seems. `other_side` is what this program was to the contender.
    pub(crate) fn remark(&self, other_side: &str) -> String {
        let mut remarks = Vec::new();
        if self.other_side >= OTHER_SIDE_BUSY && self.contender < CONTENDER_IDLE {
            remarks.push(format!("{other_side} was the limit: ratios are compressed"));
        }
        if self.elsewhere > DISTURBED {
            remarks.push(format!(
                "{:.0} % of a CPU went elsewhere",
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

    fn rounds(rows: &[(usize, &'static str, f64)]) -> Rounds<f64> {
        let row = |&(round, contender, sample)| Row {
            round,
            size: 7,
            contender,
            sample,
        };
        Rounds(rows.iter().map(row).collect())
    }

    #[test]
    fn only_rounds_that_both_finished_make_ratios() {
        let rounds = rounds(&[(1, "a", 3.0), (1, "b", 1.0), (2, "a", 9.0), (3, "b", 1.0)]);
        let ratio = rounds.ratio(7, "a", "b", |&value| value).unwrap();
        assert_eq!((ratio.min, ratio.max), (3.0, 3.0));
        assert!(rounds.ratio(8, "a", "b", |&value| value).is_none());
    }

    #[test]
    fn values_that_are_not_finite_have_no_spread() {
        let rounds = rounds(&[(1, "a", f64::INFINITY), (2, "a", 5.0)]);
        let spread = rounds.spread(7, "a", |&value| value).unwrap();
        assert_eq!((spread.min, spread.max), (5.0, 5.0));
        assert!(rounds.spread(7, "a", |&value| value * f64::NAN).is_none());
    }

    #[test]
    fn a_busy_other_side_and_a_busy_machine_are_remarked() {
        let shares = |contender| Shares {
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
