//! The performance targets of this project for relaying.

use super::case::{Direction, RelayCase};
use super::results::{RelayMeasure, RelayResults};
use crate::targets::{Bound, KIB, RatioTarget};

/// The numbers of connections with bulk traffic that a complete run has to include.
pub(super) const BULK_CONNECTIONS: [u16; 2] = [1, 8];

/// The sizes of messages that a complete run has to include.
pub(super) const MESSAGE_BYTES: [u64; 2] = [1, KIB];

/// The numbers of connections with messages that a complete run has to include.
pub(super) const MESSAGE_CONNECTIONS: [u16; 2] = [1, MANY_CONNECTIONS];

/// The number of connections of the targets for messages.
const MANY_CONNECTIONS: u16 = 64;

/// The relays that copy bulk traffic.
const COPYING: [&str; 2] = ["haproxy", "tokio"];

/// The relays that messages are compared with.
const FOR_MESSAGES: [&str; 2] = ["haproxy", "nginx"];

/// The relays that connections are compared with. `uncopied` has to be as fast as the fastest of
/// them, so as each of them.
const FOR_CONNECTIONS: [&str; 4] = ["haproxy", "haproxy-splice", "nginx", "tokio"];

type Target = RatioTarget<RelayMeasure, RelayCase>;

fn all() -> Vec<Target> {
    let target = |measure, case, below, bound| RatioTarget {
        measure,
        case,
        above: "uncopied",
        below,
        bound,
    };
    let mut all = Vec::new();
    for connections in BULK_CONNECTIONS {
        for direction in [Direction::ToServer, Direction::ToClient] {
            let case = RelayCase::Bulk {
                connections,
                direction,
            };
            for peer in COPYING {
                let faster = Bound::AtLeast(1.35);
                all.push(target(RelayMeasure::Throughput, case, peer, faster));
                all.push(target(
                    RelayMeasure::CpuPerGb,
                    case,
                    peer,
                    Bound::AtMost(0.5),
                ));
            }
            let level = Bound::AtMost(1.05);
            all.push(target(
                RelayMeasure::CpuPerGb,
                case,
                "haproxy-splice",
                level,
            ));
        }
    }
    for bytes in MESSAGE_BYTES {
        let case = RelayCase::RoundTrips {
            bytes,
            connections: MANY_CONNECTIONS,
        };
        let faster = |peer| target(RelayMeasure::RoundTrips, case, peer, Bound::AtLeast(1.08));
        all.extend(FOR_MESSAGES.map(faster));
    }
    all.extend(FOR_CONNECTIONS.map(|peer| {
        target(
            RelayMeasure::Connections,
            RelayCase::Connections,
            peer,
            Bound::AtLeast(1.0),
        )
    }));
    all
}

/// Builds the rows of all targets.
pub(super) fn rows(results: &RelayResults) -> Vec<Vec<String>> {
    all().iter().map(|target| target.row(results)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::relay::{case, contenders};

    /// A target that a complete run does not measure would never be missed.
    #[test]
    fn a_complete_run_measures_all_targets() {
        let cases = case::all(
            &BULK_CONNECTIONS,
            &MESSAGE_BYTES,
            &MESSAGE_CONNECTIONS,
            None,
        );
        for target in all() {
            assert!(cases.contains(&target.case));
            assert!(target.case.measures().contains(&target.measure));
            for name in [target.above, target.below] {
                assert!(contenders::by_name(name).is_ok(), "{name}");
            }
        }
    }
}
