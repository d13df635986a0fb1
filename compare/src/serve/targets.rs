//! The performance targets of this project for serving files.

use super::case::{MIN_DISCARD_BYTES, Receiver, ServeCase};
use super::results::{LoadMeasure, ServeResults};
use crate::load::latency::LatencyMeasure;
use crate::targets::{self, Bound, KIB, MIB, RatioTarget};

/// The sizes that a complete run has to include.
pub(super) const SIZES: [u64; 6] = [KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 16 * MIB];

/// The numbers of files that a complete run has to include.
pub(super) const FILES: [u32; 3] = [1, MANY_FILES, 100_000];

/// The number of files of the targets for more than one file.
const MANY_FILES: u32 = 1000;

/// The lowest ratios of `uncopied`'s requests per second to nginx's, with one file.
const ONE_FILE_TO_NGINX: [(u64, f64); 6] = [
    (KIB, 1.5),
    (16 * KIB, 1.4),
    (64 * KIB, 1.15),
    (256 * KIB, 1.0),
    (MIB, 1.0),
    (16 * MIB, 1.0),
];

/// The same with many files.
const MANY_FILES_TO_NGINX: [(u64, f64); 5] = [
    (KIB, 1.35),
    (16 * KIB, 1.25),
    (64 * KIB, 1.1),
    (256 * KIB, 1.0),
    (MIB, 1.0),
];

/// The lowest ratios of `uncopied`'s requests per second to the plain loop's, with one file and
/// with many.
const TO_PLAIN: [(u64, f64); 4] = [
    (KIB, 1.0),
    (16 * KIB, 0.95),
    (64 * KIB, 0.95),
    (256 * KIB, 0.95),
];

/// The sizes from which on `uncopied` may use no more CPU per GB than nginx, with one file.
const ONE_FILE_CPU: [u64; 2] = [MIB, 16 * MIB];

/// The same with many files.
const MANY_FILES_CPU: [u64; 1] = [MIB];

/// The sizes with which the latencies of `uncopied` may be no longer than nginx's, with one file
/// and with many.
const LATENCY_SIZES: [u64; 3] = [KIB, 16 * KIB, 64 * KIB];

/// The lowest ratio of the requests per second with an access log to those without.
const WITH_ACCESS_LOG: f64 = 0.9;

/// The bound on the resident memory of the contender `uncopied`, in KiB per idle connection.
const IDLE_KIB: Bound = Bound::AtMost(3.0);

type LoadTarget = RatioTarget<LoadMeasure, ServeCase>;
type LatencyTarget = RatioTarget<LatencyMeasure, ServeCase>;

/// Returns the targets for `files` files of which `receiver` receives the bytes.
fn load_targets(files: u32, receiver: Receiver) -> Vec<LoadTarget> {
    let (to_nginx, cpu_sizes): (&[_], &[_]) = match files {
        1 => (&ONE_FILE_TO_NGINX, &ONE_FILE_CPU),
        _ => (&MANY_FILES_TO_NGINX, &MANY_FILES_CPU),
    };
    let target = |measure, size, below, bound| RatioTarget {
        measure,
        case: ServeCase {
            size,
            files,
            receiver,
        },
        above: "uncopied",
        below,
        bound,
    };
    let requests = |&(size, ratio): &(u64, f64), below| {
        target(LoadMeasure::Requests, size, below, Bound::AtLeast(ratio))
    };
    let cpu = |&size| target(LoadMeasure::ServerCpu, size, "nginx", Bound::AtMost(1.0));
    let to_nginx = to_nginx.iter().map(|pair| requests(pair, "nginx"));
    let to_plain = TO_PLAIN.iter().map(|pair| requests(pair, "plain"));
    to_nginx
        .chain(to_plain)
        .chain(cpu_sizes.iter().map(cpu))
        .filter(|target| receiver == Receiver::Copy || target.case.size >= MIN_DISCARD_BYTES)
        .collect()
}

/// Returns all targets for the load of a closed loop.
///
/// The bounds are the same for both receivers. One that copies is closer to real clients, but is
/// more often the limit itself, which makes the ratios closer to 1.
fn all_load_targets() -> Vec<LoadTarget> {
    let mut all = Vec::new();
    for files in [1, MANY_FILES] {
        for receiver in [Receiver::Copy, Receiver::Discard] {
            all.extend(load_targets(files, receiver));
        }
    }
    all.push(RatioTarget {
        measure: LoadMeasure::Requests,
        case: ServeCase::one_file(KIB),
        above: "uncopied-access-log",
        below: "uncopied",
        bound: Bound::AtLeast(WITH_ACCESS_LOG),
    });
    all
}

fn all_latency_targets() -> Vec<LatencyTarget> {
    let mut all = Vec::new();
    for files in [1, MANY_FILES] {
        for size in LATENCY_SIZES {
            for measure in [LatencyMeasure::P50, LatencyMeasure::P90] {
                all.push(RatioTarget {
                    measure,
                    case: ServeCase {
                        files,
                        ..ServeCase::one_file(size)
                    },
                    above: "uncopied",
                    below: "nginx",
                    bound: Bound::AtMost(1.0),
                });
            }
        }
    }
    all
}

/// Builds the report's section about the targets.
pub(super) fn section(results: &ServeResults) -> String {
    let loads = all_load_targets();
    let latencies = all_latency_targets();
    let loads = loads.iter().map(|target| target.row(&results.loads));
    let latencies = latencies
        .iter()
        .map(|target| target.row(&results.latencies));
    let mut rows: Vec<Vec<String>> = loads.chain(latencies).collect();
    rows.push(IDLE_KIB.row(
        "KiB resident per idle connection, uncopied".to_owned(),
        results.idle_kib("uncopied"),
    ));
    targets::section(&rows)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::serve::{case, contenders};

    /// A target that a complete run does not measure would never be missed.
    #[test]
    fn a_complete_run_measures_all_targets() {
        let cases = case::all(&SIZES, &FILES, &[Receiver::Copy, Receiver::Discard]);
        let check = |case: ServeCase, above: &str, below: &str| {
            assert!(cases.contains(&case), "{case:?}");
            for name in [above, below] {
                let contender = contenders::by_name(name).unwrap();
                assert!((contender.takes_part)(case), "{name} {case:?}");
            }
        };
        for target in all_load_targets() {
            check(target.case, target.above, target.below);
        }
        for target in all_latency_targets() {
            check(target.case, target.above, target.below);
            assert!(target.case.has_latency());
        }
    }

    #[test]
    fn targets_with_one_file_and_many_are_different() {
        let bound = |files| {
            let targets = load_targets(files, Receiver::Copy);
            let first = targets.into_iter().next().unwrap();
            (first.case.files, first.bound)
        };
        assert!(matches!(bound(1), (1, Bound::AtLeast(1.5))));
        assert!(matches!(bound(1000), (1000, Bound::AtLeast(1.35))));
    }
}
