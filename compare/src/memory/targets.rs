//! What this project has promised itself of sending memory, row by row, and whether the run shows it.

use super::results::{Measure, Results};
use crate::targets::{self, Bound, Ratio};

/// The contender beats the other one on CPU per GB.
const fn beats(size: u64, above: &'static str, below: &'static str) -> Ratio<Measure> {
    Ratio {
        measure: Measure::SenderCpu,
        size,
        above,
        below,
        bound: Bound::Below(1.0),
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// The sizes that a full run has.
pub(super) const SIZES: [u64; 7] = [
    4 * KIB,
    16 * KIB,
    64 * KIB,
    256 * KIB,
    MIB,
    2 * MIB,
    16 * MIB,
];

const RATIOS: &[Ratio<Measure>] = &[
    beats(64 * KIB, "vmsplice", "write"),
    beats(256 * KIB, "vmsplice", "write"),
    beats(MIB, "vmsplice", "write"),
    beats(2 * MIB, "vmsplice", "write"),
    beats(16 * MIB, "vmsplice", "write"),
    beats(2 * MIB, "region", "write"),
    beats(16 * MIB, "region", "write"),
    beats(2 * MIB, "region", "copy"),
    beats(16 * MIB, "region", "copy"),
];

/// The section of the report.
pub(super) fn section(results: &Results) -> String {
    let row = |ratio: &Ratio<Measure>| {
        let figure = |sample: &_| ratio.measure.of(sample);
        let measured = results.ratio(ratio.size, ratio.above, ratio.below, figure);
        ratio.row(ratio.measure.name(), measured)
    };
    let rows: Vec<Vec<String>> = RATIOS.iter().map(row).collect();
    targets::section(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::contenders;

    #[test]
    fn targets_name_contenders_and_sizes_that_exist() {
        for ratio in RATIOS {
            assert!(contenders::by_name(ratio.above).is_ok());
            assert!(contenders::by_name(ratio.below).is_ok());
            assert!(SIZES.contains(&ratio.size));
        }
    }
}
