//! The performance targets of this project for sending memory.

use super::results::{MemoryMeasure, MemoryResults};
use crate::targets::{self, Bound, KIB, MIB, RatioTarget};

/// Returns the target that the contender `above` needs less CPU time per GB than the contender
/// `below`.
const fn less_cpu(
    size: u64,
    above: &'static str,
    below: &'static str,
) -> RatioTarget<MemoryMeasure> {
    RatioTarget {
        measure: MemoryMeasure::SenderCpu,
        case: size,
        above,
        below,
        bound: Bound::Below(1.0),
    }
}

/// The sizes that a complete run has to include.
pub(super) const SIZES: [u64; 7] = [
    4 * KIB,
    16 * KIB,
    64 * KIB,
    256 * KIB,
    MIB,
    2 * MIB,
    16 * MIB,
];

/// The targets for sending over one connection.
const TARGETS: &[RatioTarget<MemoryMeasure>] = &[
    less_cpu(64 * KIB, "vmsplice", "write"),
    less_cpu(256 * KIB, "vmsplice", "write"),
    less_cpu(MIB, "vmsplice", "write"),
    less_cpu(2 * MIB, "vmsplice", "write"),
    less_cpu(16 * MIB, "vmsplice", "write"),
    less_cpu(2 * MIB, "region", "write"),
    less_cpu(16 * MIB, "region", "write"),
    less_cpu(2 * MIB, "region", "copy"),
    less_cpu(16 * MIB, "region", "copy"),
];

/// The targets for sending the same memory over several connections.
const FAN_OUT_TARGETS: &[RatioTarget<MemoryMeasure>] = &[
    less_cpu(64 * KIB, "tokio-vmsplice", "write-all"),
    less_cpu(256 * KIB, "tokio-vmsplice", "write-all"),
    less_cpu(MIB, "tokio-vmsplice", "write-all"),
    less_cpu(2 * MIB, "tokio-vmsplice", "write-all"),
    less_cpu(16 * MIB, "tokio-vmsplice", "write-all"),
];

/// Builds the report's section about the targets for this number of connections.
pub(super) fn section(results: &MemoryResults, connections: u16) -> String {
    let targets = match connections {
        1 => TARGETS,
        _ => FAN_OUT_TARGETS,
    };
    let rows: Vec<Vec<String>> = targets.iter().map(|target| target.row(results)).collect();
    targets::section(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::contenders;

    #[test]
    fn targets_name_contenders_and_sizes_that_exist() {
        for target in TARGETS.iter().chain(FAN_OUT_TARGETS) {
            assert!(contenders::by_name(target.above).is_ok());
            assert!(contenders::by_name(target.below).is_ok());
            assert!(SIZES.contains(&target.case));
        }
    }
}
