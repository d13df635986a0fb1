//! What this project has promised itself, row by row, and whether the run shows it.

use super::results::{Measure, Results};
use crate::targets::{self, Bound, Ratio};

const fn requests(size: u64, at_least: f64) -> Ratio<Measure> {
    Ratio {
        measure: Measure::Requests,
        size,
        above: "uncopied",
        below: "nginx",
        bound: Bound::AtLeast(at_least),
    }
}

const fn cpu(size: u64, above: &'static str, below: &'static str, bound: Bound) -> Ratio<Measure> {
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
pub(super) const SIZES: [u64; 6] = [KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB];

const RATIOS: &[Ratio<Measure>] = &[
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

/// Of the contender `uncopied`.
const IDLE_KIB: Bound = Bound::AtMost(10.0);

/// The section of the report.
pub(super) fn section(results: &Results) -> String {
    let row = |ratio: &Ratio<Measure>| {
        let measured = results.ratio(ratio.measure, ratio.size, ratio.above, ratio.below);
        ratio.row(ratio.measure.name(), measured)
    };
    let mut rows: Vec<Vec<String>> = RATIOS.iter().map(row).collect();
    rows.push(IDLE_KIB.row(
        "KiB resident per idle connection, uncopied".to_owned(),
        results.idle_kib("uncopied"),
    ));
    targets::section(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::contenders;

    #[test]
    fn targets_name_contenders_that_exist() {
        for ratio in RATIOS {
            assert!(contenders::by_name(ratio.above).is_ok());
            assert!(contenders::by_name(ratio.below).is_ok());
        }
    }
}
