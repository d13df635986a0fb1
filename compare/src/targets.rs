//! What this project has promised itself: bounds on measured values, and whether a run meets them.

use crate::table::{self, Spread};

/// A bound on a measured value.
pub(crate) enum Bound {
    /// Not less than this.
    AtLeast(f64),
    /// Not more than this.
    AtMost(f64),
    /// Less than this.
    Below(f64),
}

/// A ratio of two contenders at one size, and its bound.
pub(crate) struct Ratio<M> {
    /// The figure.
    pub(crate) measure: M,
    /// In bytes.
    pub(crate) size: u64,
    /// The contender above the line.
    pub(crate) above: &'static str,
    /// The contender below the line.
    pub(crate) below: &'static str,
    /// What the ratio must be.
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
        if met { "pass" } else { "**short**" }
    }

    /// The row of a target that is no ratio.
    pub(crate) fn row(&self, target: String, measured: Option<Spread>) -> Vec<String> {
        let text = |spread: Spread| spread.text(table::two_digits);
        let value = measured.map_or_else(table::dash, text);
        vec![target, self.text(), value, self.verdict(measured).into()]
    }
}

impl<M> Ratio<M> {
    /// The row of this target; `measure` is the name of the figure.
    pub(crate) fn row(&self, measure: &str, measured: Option<Spread>) -> Vec<String> {
        let target = format!(
            "{measure} at {}, {} ÷ {}",
            table::size_text(self.size),
            self.above,
            self.below
        );
        self.bound.row(target, measured)
    }
}

/// The section of the report.
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
        assert_eq!(Bound::AtLeast(1.5).verdict(spread(1.49)), "**short**");
        assert_eq!(Bound::AtMost(1.05).verdict(spread(1.05)), "pass");
        assert_eq!(Bound::AtMost(1.05).verdict(spread(1.06)), "**short**");
        assert_eq!(Bound::Below(1.0).verdict(spread(0.99)), "pass");
        assert_eq!(Bound::Below(1.0).verdict(spread(1.0)), "**short**");
        assert_eq!(Bound::AtMost(1.05).verdict(None), "not measured");
    }

    #[test]
    fn a_row_names_what_was_divided_by_what() {
        let ratio = Ratio {
            measure: (),
            size: 64 << 10,
            above: "a",
            below: "b",
            bound: Bound::AtMost(1.0),
        };
        let row = ratio.row("CPU", None);
        assert_eq!(row, ["CPU at 64 KiB, a ÷ b", "≤ 1.00", "–", "not measured"]);
    }
}
