//! The performance targets of this project for downloads.

use super::case::GetCase;
use super::results::{GetMeasure, GetResults};
use crate::targets::{self, Bound, MIB, RatioTarget};

/// The size of a large file that a complete run has to include.
pub(super) const LARGE_FILE_BYTES: u64 = 1024 * MIB;

/// The number of small files in a complete run.
pub(super) const SMALL_FILES: u32 = 10_000;

/// The number of small files that are fetched at the same time in a complete run.
pub(super) const PARALLEL: u16 = 8;

const fn target(
    measure: GetMeasure,
    case: GetCase,
    below: &'static str,
    bound: Bound,
) -> RatioTarget<GetMeasure, GetCase> {
    RatioTarget {
        measure,
        case,
        above: "uncopied",
        below,
        bound,
    }
}

const FILE: GetCase = GetCase::File(LARGE_FILE_BYTES);
const NULL: GetCase = GetCase::Null(LARGE_FILE_BYTES);
const MANY: GetCase = GetCase::Many(SMALL_FILES);

const TARGETS: &[RatioTarget<GetMeasure, GetCase>] = &[
    target(GetMeasure::ClientCpu, FILE, "loop", Bound::AtMost(1.05)),
    target(GetMeasure::ClientCpu, FILE, "curl", Bound::AtMost(0.7)),
    target(GetMeasure::ClientCpu, NULL, "curl", Bound::AtMost(0.5)),
    target(GetMeasure::FileRate, MANY, "curl", Bound::AtLeast(1.0)),
];

/// Builds the report's section about the targets.
pub(super) fn section(results: &GetResults) -> String {
    let rows: Vec<Vec<String>> = TARGETS.iter().map(|target| target.row(results)).collect();
    targets::section(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::get::contenders;

    #[test]
    fn targets_name_contenders_that_take_part() {
        for target in TARGETS {
            for name in [target.above, target.below] {
                let taking_part =
                    contenders::by_name(name).map(|one| (one.takes_part)(target.case));
                assert_eq!(taking_part, Ok(true), "{name}");
            }
        }
    }
}
