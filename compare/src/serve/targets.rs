//! What this project has promised itself, row by row, and whether the run shows it.

use super::results::{Measure, Results};
use crate::table::{self, Spread};

/// A bound on a measured value.
enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

/// A ratio of two contenders at one size, and its bound.
struct Ratio {
    measure: Measure,
    size: u64,
    above: &'static str,
    below: &'static str,
    bound: Bound,
}

const fn requests(size: u64, at_least: f64) -> Ratio {
    Ratio {
        measure: Measure::Requests,
        size,
        above: "uncopied",
        below: "nginx",
        bound: Bound::AtLeast(at_least),
    }
}

const fn cpu(size: u64, above: &'static str, below: &'static str, bound: Bound) -> Ratio {
    Ratio {
        measure: Measure::ServerCpu,
        size,
        above,
        below,
        bound,
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The sizes that a full run has.
pub(crate) const SIZES: [u64; 6] = [KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB];

const RATIOS: &[Ratio] = &[
    requests(KIB, 1.5),
    requests(16 * KIB, 1.2),
    requests(64 * KIB, 1.2),
    requests(256 * KIB, 1.0),
    requests(MIB, 1.0),
    requests(16 * MIB, 1.0),
    cpu(MIB, "uncopied", "nginx", Bound::AtMost(1.0)),
    cpu(16 * MIB, "uncopied", "nginx", Bound::AtMost(1.0)),
    cpu(MIB, "uncopied", "plain", Bound::AtMost(1.05)),
    cpu(16 * MIB, "uncopied", "plain", Bound::AtMost(1.05)),
    cpu(MIB, "axum", "uncopied", Bound::AtLeast(2.0)),
];

/// Of the contender `uncopied`, at most.
const IDLE_KIB: f64 = 10.0;

impl Bound {
    fn text(&self) -> String {
        match self {
            Self::AtLeast(value) => format!("≥ {value:.2}"),
            Self::AtMost(value) => format!("≤ {value:.2}"),
        }
    }

    fn verdict(&self, measured: Option<Spread>) -> &'static str {
        let Some(Spread { median, .. }) = measured else {
            return "not measured";
        };
        let met = match *self {
            Self::AtLeast(value) => median >= value,
            Self::AtMost(value) => median <= value,
        };
        if met { "pass" } else { "**short**" }
    }
}

/// The table of targets.
pub(crate) fn table(results: &Results) -> String {
    let header = ["target", "bound", "median (min–max)", "verdict"].map(str::to_owned);
    let mut rows: Vec<Vec<String>> = RATIOS
        .iter()
        .map(|ratio| {
            let measured = results.ratio(ratio.measure, ratio.size, ratio.above, ratio.below);
            row(
                format!(
                    "{} at {}, {} ÷ {}",
                    ratio.measure.name(),
                    table::size_text(ratio.size),
                    ratio.above,
                    ratio.below
                ),
                &ratio.bound,
                measured,
            )
        })
        .collect();
    rows.push(row(
        "KiB resident per idle connection, uncopied".to_owned(),
        &Bound::AtMost(IDLE_KIB),
        results.idle_kib("uncopied"),
    ));
    table::markdown(&header, &rows)
}

fn row(target: String, bound: &Bound, measured: Option<Spread>) -> Vec<String> {
    let value = measured.map_or_else(|| "–".to_owned(), |spread| spread.text(two_digits));
    vec![target, bound.text(), value, bound.verdict(measured).into()]
}

fn two_digits(value: f64) -> String {
    format!("{value:.2}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::contenders;

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
        assert_eq!(Bound::AtMost(1.05).verdict(None), "not measured");
    }

    #[test]
    fn targets_name_contenders_that_exist() {
        for ratio in RATIOS {
            assert!(contenders::by_name(ratio.above).is_ok());
            assert!(contenders::by_name(ratio.below).is_ok());
        }
    }
}
