//! The performance targets of this project for receiving.

use super::results::{ReceiveMeasure, ReceiveResults};
use super::scenario::Scenario;
use crate::rounds::{Case, Measure};
use crate::table::Spread;
use crate::targets::{self, Bound, RatioTarget};

/// The contender whose receiver maps what it can.
const MAP_RECEIVE: &str = "map_receive";

/// The targets for the CPU time of the receiver.
const TARGETS: &[RatioTarget<ReceiveMeasure, Scenario>] = &[
    RatioTarget {
        measure: ReceiveMeasure::ReceiverCpu,
        case: Scenario::PagePayloads,
        above: MAP_RECEIVE,
        below: "recv",
        bound: Bound::AtMost(0.45),
    },
    RatioTarget {
        measure: ReceiveMeasure::ReceiverCpu,
        case: Scenario::OrdinaryPayloads,
        above: "plan",
        below: "recv",
        bound: Bound::AtMost(1.03),
    },
];

/// The part of the bytes that has to be mapped if payloads are whole pages, in percent.
const MAPPED_PERCENT: Bound = Bound::AtLeast(99.0);

/// Builds the report's section about the targets.
pub(super) fn section(results: &ReceiveResults) -> String {
    let mut rows: Vec<Vec<String>> = TARGETS.iter().map(|target| target.row(results)).collect();
    let (measure, scenario) = (ReceiveMeasure::MappedShare, Scenario::PagePayloads);
    let target = format!("% {} {}, {MAP_RECEIVE}", measure.name(), scenario.phrase());
    let share = results.spread(measure, scenario, MAP_RECEIVE);
    let percent = share.map(|Spread { median, min, max }| Spread {
        median: median * 100.0,
        min: min * 100.0,
        max: max * 100.0,
    });
    rows.push(MAPPED_PERCENT.row(target, percent));
    targets::section(&rows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::receive::contenders;

    #[test]
    fn targets_name_contenders_that_exist() {
        for target in TARGETS {
            assert!(contenders::by_name(target.above).is_ok());
            assert!(contenders::by_name(target.below).is_ok());
        }
        let section = section(&ReceiveResults::default());
        assert!(
            section.contains("% mapped with page payloads, map_receive"),
            "{section}"
        );
    }
}
