//! The performance targets of this project. A target is a bound on a measured value, and the report
//! says whether the run meets it.

use crate::rounds::{Case, Measure, Rounds};
use crate::table::{self, Spread};

/// 1 KiB in bytes.
pub(crate) const KIB: u64 = 1 << 10;

/// 1 MiB in bytes.
pub(crate) const MIB: u64 = 1 << 20;

/// A bound on a measured value.
pub(crate) enum Bound {
    /// At least this value.
    AtLeast(f64),
    /// At most this value.
    AtMost(f64),
    /// Less than this value.
    Below(f64),
}

/// A target for the ratio between two contenders' figures in one case.
pub(crate) struct RatioTarget<M, C = u64> {
    /// The kind of figure.
    pub(crate) measure: M,
    /// The case, such as a size in bytes.
    pub(crate) case: C,
    /// The contender whose figure is the numerator.
    pub(crate) above: &'static str,
    /// The contender whose figure is the denominator.
    pub(crate) below: &'static str,
    /// The bound on the ratio.
    pub(crate) bound: Bound,
}

impl Bound {
    fn text(&self) -> String {
        match self {
            Self::AtLeast(value) => format!("≥ {value:.2}"),
            Self::AtMost(value) => format!("≤ {value:.2}"),
            Self::Below(value) => format!("< {value:.2}"),
        }
    }

    fn verdict(&self, measured: Option<Spread>) -> &'static str {
        let Some(Spread { median, .. }) = measured else {
            return "not measured";
        };
        let met = match *self {
            Self::AtLeast(value) => median >= value,
            Self::AtMost(value) => median <= value,
            Self::Below(value) => median < value,
        };
        if met { "pass" } else { "**missed**" }
    }

    /// Builds the row of a target with this bound: the target, the bound, the measured value and
    /// the verdict.
    pub(crate) fn row(&self, target: String, measured: Option<Spread>) -> Vec<String> {
        let text = |spread: Spread| spread.text(table::two_digits);
        let value = measured.map_or_else(table::dash, text);
        vec![target, self.text(), value, self.verdict(measured).into()]
    }
}

impl<M: Measure, C: Case> RatioTarget<M, C> {
    /// Builds the row of this target.
    pub(crate) fn row(&self, results: &Rounds<M::Sample, C>) -> Vec<String> {
        let target = format!(
            "{} {}, {} ÷ {}",
            self.measure.name(),
            self.case.phrase(),
            self.above,
            self.below
        );
        let measured = results.ratio(self.measure, self.case, self.above, self.below);
        self.bound.row(target, measured)
    }
}

/// Builds the report's section about the targets from their rows.
pub(crate) fn section(rows: &[Vec<String>]) -> String {
    let header = table::strings(&["target", "bound", "median (min–max)", "verdict"]);
    format!("## Targets\n\n{}\n", table::markdown(&header, rows))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_decides() {
        let spread = |median| {
            Some(Spread {
                median,
                min: 0.0,
                max: 9.0,
            })
        };
        assert_eq!(Bound::AtLeast(1.5).verdict(spread(1.5)), "pass");
        assert_eq!(Bound::AtLeast(1.5).verdict(spread(1.49)), "**missed**");
        assert_eq!(Bound::AtMost(1.05).verdict(spread(1.05)), "pass");
        assert_eq!(Bound::AtMost(1.05).verdict(spread(1.06)), "**missed**");
        assert_eq!(Bound::Below(1.0).verdict(spread(0.99)), "pass");
        assert_eq!(Bound::Below(1.0).verdict(spread(1.0)), "**missed**");
        assert_eq!(Bound::AtMost(1.05).verdict(None), "not measured");
    }

    #[derive(Clone, Copy)]
    struct Cpu;

    impl Measure for Cpu {
        type Sample = f64;

        fn name(self) -> &'static str {
            "CPU"
        }

        fn key(self) -> &'static str {
            "cpu"
        }

        fn value(self, sample: &f64) -> f64 {
            *sample
        }

        fn cell(self, spread: Spread) -> String {
            spread.text(table::two_digits)
        }
    }

    #[test]
    fn a_row_says_which_contender_is_divided_by_which() {
        let target = RatioTarget {
            measure: Cpu,
            case: 64 << 10,
            above: "a",
            below: "b",
            bound: Bound::AtMost(1.0),
        };
        let row = target.row(&Rounds::default());
        assert_eq!(row, ["CPU at 64 KiB, a ÷ b", "≤ 1.00", "–", "not measured"]);
    }
}
