//! The performance targets of this project for serving files.

use super::case::ServeCase;
use super::results::{LoadMeasure, ServeResults};
use crate::targets::{self, Bound, KIB, MIB, RatioTarget};

const fn requests(size: u64, at_least: f64) -> RatioTarget<LoadMeasure, ServeCase> {
    RatioTarget {
        measure: LoadMeasure::Requests,
        case: ServeCase::one_file(size),
        above: "uncopied",
        below: "nginx",
        bound: Bound::AtLeast(at_least),
    }
}

const fn cpu(
    size: u64,
    above: &'static str,
    below: &'static str,
    bound: Bound,
) -> RatioTarget<LoadMeasure, ServeCase> {
    RatioTarget {
        measure: LoadMeasure::ServerCpu,
        case: ServeCase::one_file(size),
        above,
        below,
        bound,
    }
}

/// The sizes that a complete run has to include.
pub(super) const SIZES: [u64; 6] = [KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB];

/// The numbers of files that a complete run has to include.
pub(super) const FILES: [u32; 3] = [1, 1000, 100_000];

const TARGETS: &[RatioTarget<LoadMeasure, ServeCase>] = &[
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

/// The bound on the resident memory of the contender `uncopied`, in KiB per idle connection.
const IDLE_KIB: Bound = Bound::AtMost(10.0);

/// Builds the report's section about the targets.
pub(super) fn section(results: &ServeResults) -> String {
    let mut rows: Vec<Vec<String>> = TARGETS
        .iter()
        .map(|target| target.row(&results.loads))
        .collect();
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
    fn targets_name_contenders_and_sizes_that_exist() {
        for target in TARGETS {
            assert!(contenders::by_name(target.above).is_ok());
            assert!(contenders::by_name(target.below).is_ok());
            assert!(SIZES.contains(&target.case.size));
        }
    }
}
