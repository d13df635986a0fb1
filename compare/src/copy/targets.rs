//! The performance targets of this project for sending files.

use super::results::{CopyMeasure, CopyResults};
use crate::targets::{self, Bound, MIB, RatioTarget};

/// The sizes that a complete run has to include.
pub(super) const SIZES: [u64; 1] = [256 * MIB];

const fn cpu(above: &'static str, below: &'static str, bound: Bound) -> RatioTarget<CopyMeasure> {
    RatioTarget {
        measure: CopyMeasure::SenderCpu,
        case: SIZES[0],
        above,
        below,
        bound,
    }
}

const TARGETS: &[RatioTarget<CopyMeasure>] = &[
    cpu("uncopied-tokio", "tokio-copy", Bound::AtMost(0.25)),
    cpu("uncopied-tokio", "tokio-copy-buf", Bound::Below(1.0)),
    cpu("uncopied", "std-copy", Bound::Below(1.0)),
    cpu("uncopied", "read-write", Bound::Below(1.0)),
    // Both contenders call sendfile, so the library should not need more CPU time than the plain
    // loop. The bound allows 10 % for noise.
    cpu("uncopied", "sendfile", Bound::AtMost(1.1)),
];

/// Builds the report's section about the targets.
pub(super) fn section(results: &CopyResults) -> String {
    let rows: Vec<Vec<String>> = TARGETS.iter().map(|target| target.row(results)).collect();
    targets::section(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::copy::contenders;

    #[test]
    fn targets_name_contenders_that_exist() {
        for target in TARGETS {
            assert!(contenders::by_name(target.above).is_ok());
            assert!(contenders::by_name(target.below).is_ok());
        }
    }
}
