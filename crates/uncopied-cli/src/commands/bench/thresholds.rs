//! Which thresholds the plans of this machine should use, and whether the present ones are right.

use std::collections::BTreeMap;

use uncopied::Tuning;
use uncopied_measure::size::size_text;

use super::catalog::Case;
use super::results::{Cell, Threshold};
use crate::flags::{BenchDirection, BenchMechanism};

use BenchDirection::{FileToTcp, MemoryToTcp, TcpToFile, TcpToMemory, TcpToTcp};
use BenchMechanism::{
    MapReceive, MmapWrite, MsgZerocopy, RegionVmsplice, Sendfile, Splice, Vmsplice,
};

/// Where the default uses a mechanism, it must cost this much more than the other one before
/// another threshold is recommended; elsewhere, it must cost this much less.
const MARGIN: f64 = 0.03;

/// The choice of the library is right if it takes at most this many times the CPU time of the best
/// mechanism.
const CHOICE_LIMIT: f64 = 1.1;

/// If the kernel has copied more than this part of what a zero-copy send has sent, the send was not
/// measured.
const MAX_KERNEL_COPIED: f64 = 0.5;

/// The thresholds: the key, the direction, and the mechanism that `copy` is compared with.
const KEYS: [(&str, BenchDirection, BenchMechanism); 8] = [
    ("sendfile_min_bytes", FileToTcp, Sendfile),
    ("mmap_write_min_bytes", FileToTcp, MmapWrite),
    ("vmsplice_min_bytes", MemoryToTcp, Vmsplice),
    ("region_min_bytes", MemoryToTcp, RegionVmsplice),
    ("notified_min_bytes", MemoryToTcp, MsgZerocopy),
    ("map_receive_min_bytes", TcpToMemory, MapReceive),
    ("relay_splice_min_bytes", TcpToTcp, Splice),
    ("receive_file_splice_min_bytes", TcpToFile, Splice),
];

/// Returns the thresholds that follow from the results.
pub(super) fn thresholds(cells: &[Cell]) -> Vec<Threshold> {
    KEYS.iter()
        .map(|&(key, direction, mechanism)| {
            let default = Tuning::default().get(key).unwrap_or(0);
            let (from_bytes, measured, why) = threshold(cells, direction, mechanism, default);
            Threshold {
                key,
                mechanism: mechanism.name().to_owned(),
                than: BenchMechanism::Copy.name().to_owned(),
                direction: direction.name(),
                from_bytes,
                default_bytes: default,
                measured,
                why,
            }
        })
        .collect()
}

/// Returns the whole tuning: what was measured, and the defaults otherwise.
pub(super) fn tuning(thresholds: &[Threshold]) -> Tuning {
    thresholds
        .iter()
        .fold(Tuning::default(), |tuning, threshold| {
            let bytes = threshold.from_bytes.unwrap_or(Tuning::NEVER);
            tuning.with(threshold.key, bytes).unwrap_or(tuning)
        })
}

/// Returns the tuning by key, with `None` for never.
pub(super) fn by_key(tuning: &Tuning) -> BTreeMap<&'static str, Option<u64>> {
    let value = |key| tuning.get(key).filter(|&bytes| bytes != Tuning::NEVER);
    Tuning::KEYS
        .into_iter()
        .map(|key| (key, value(key)))
        .collect()
}

/// Returns the threshold of a mechanism, whether it was measured, and a sentence.
fn threshold(
    cells: &[Cell],
    direction: BenchDirection,
    mechanism: BenchMechanism,
    default: u64,
) -> (Option<u64>, bool, String) {
    let keep = |why: String| (Some(default), false, why);
    let of = |mechanism| rows(cells, direction, mechanism);
    let copies: Vec<&Cell> = of(BenchMechanism::Copy).collect();
    let mine: Vec<&Cell> = of(mechanism).collect();
    if let Some(why) = mine.iter().find_map(|cell| cell.refused.as_ref())
        && mine.iter().all(|cell| cell.refused.is_some())
    {
        return keep(format!("Not measured, because it was refused: {why}."));
    }
    let copied = |cell: &&&Cell| cell.kernel_copied_share.unwrap_or(0.0) > MAX_KERNEL_COPIED;
    if mechanism == MsgZerocopy && mine.iter().any(|cell| copied(&cell)) {
        return keep(
            "Not measured, because the kernel copies what is sent in this way to the same machine."
                .into(),
        );
    }
    // At each size: whether the mechanism pays, given what the default says. Figures that cannot be
    // trusted say nothing.
    let steady = |cell: &&Cell| !cell.is_wide;
    let copies: Vec<(u64, f64)> = costs(direction, copies.into_iter().filter(steady)).collect();
    let largest = mine.iter().map(|cell| cell.size).max().unwrap_or(0);
    let pays: Vec<(u64, bool)> = costs(direction, mine.into_iter().filter(steady))
        .filter_map(|(size, cost)| {
            let copy = copies.iter().find(|(other, _)| *other == size)?.1;
            let factor = match size >= default {
                true => 1.0 + MARGIN,
                false => 1.0 - MARGIN,
            };
            Some((size, cost <= copy * factor))
        })
        .collect();
    if pays.is_empty() {
        return keep(
            "Not measured: both mechanisms must be, at the same sizes, without a wide spread."
                .into(),
        );
    }
    let side = if direction.is_sent() {
        "sender"
    } else {
        "receiver"
    };
    match pays.iter().rposition(|(_, pays)| !pays) {
        None => {
            let from = default.min(pays[0].0);
            let why = format!("It takes no more CPU time of the {side} than copy at any size.");
            (Some(from), true, why)
        }
        Some(last) if last + 1 == pays.len() && pays[last].0 < default.max(largest) => {
            keep(format!(
                "Not measured at the largest sizes; it takes more CPU time of the {side} than copy \
                 at {}.",
                size_text(pays[last].0)
            ))
        }
        Some(last) if last + 1 == pays.len() => {
            let size = size_text(pays[last].0);
            let why = format!("It takes more CPU time of the {side} than copy, even at {size}.");
            (None, true, why)
        }
        Some(last) => {
            let (above, below) = (pays[last + 1].0, pays[last].0);
            // Nothing is known about what lies between the two sizes.
            let from = if (below + 1..=above).contains(&default) {
                default
            } else {
                above
            };
            let why = format!(
                "It takes less CPU time of the {side} than copy from {} on, and more at {}.",
                size_text(above),
                size_text(below)
            );
            (Some(from), true, why)
        }
    }
}

/// Returns the rows of a mechanism, from the smallest size to the largest.
fn rows(
    cells: &[Cell],
    direction: BenchDirection,
    mechanism: BenchMechanism,
) -> impl Iterator<Item = &Cell> {
    let mut rows: Vec<&Cell> = cells
        .iter()
        .filter(|cell| cell.direction == direction.name() && cell.mechanism == mechanism.name())
        .collect();
    rows.sort_by_key(|cell| cell.size);
    rows.into_iter()
}

/// Returns the sizes of rows, with the CPU time that decides.
fn costs<'a>(
    direction: BenchDirection,
    rows: impl Iterator<Item = &'a Cell>,
) -> impl Iterator<Item = (u64, f64)> {
    rows.filter_map(move |cell| Some((cell.size, cost(direction, cell)?)))
}

/// Returns the CPU time of the side that uses the mechanism, for 10⁹ bytes.
pub(super) fn cost(direction: BenchDirection, cell: &Cell) -> Option<f64> {
    let spread = match direction.is_sent() {
        true => cell.sender_cpu_s_per_gb,
        false => cell.receiver_cpu_s_per_gb,
    };
    spread.map(|spread| spread.median)
}

/// A place at which the library should have chosen another mechanism.
#[derive(Debug, PartialEq)]
pub(super) struct WrongChoice {
    pub(super) case: Case,
    pub(super) chosen: String,
    pub(super) best: String,
    /// How many times the CPU time of the best one it takes.
    pub(super) factor: f64,
}

/// Returns the cases in which the library's own choice takes more CPU time than the best mechanism
/// by more than a tenth, and the number of cases that were looked at.
pub(super) fn wrong_choices(cells: &[Cell], cases: &[Case]) -> (Vec<WrongChoice>, usize) {
    let mut wrong = Vec::new();
    let mut looked_at = 0;
    for case in cases
        .iter()
        .filter(|case| case.mechanism == BenchMechanism::Auto)
    {
        let same = |cell: &&Cell| cell.direction == case.direction.name() && cell.size == case.size;
        let source = case.mechanism.source(case.direction);
        let auto = cells
            .iter()
            .filter(same)
            .find(|cell| cell.mechanism == "auto");
        let best = cells
            .iter()
            .filter(same)
            // A region is another kind of memory, and not a choice.
            .filter(|cell| cell.mechanism != "auto" && cell.source == source)
            .filter_map(|cell| Some((cell, cost(case.direction, cell)?)))
            .min_by(|a, b| a.1.total_cmp(&b.1));
        let (Some(auto), Some((best, least))) = (auto, best) else {
            continue;
        };
        let Some(taken) = cost(case.direction, auto) else {
            continue;
        };
        looked_at += 1;
        // If the library has chosen the best mechanism, any difference is one of measuring.
        let has_chosen_best = auto.chosen == [best.mechanism.as_str()];
        if taken > least * CHOICE_LIMIT && !has_chosen_best {
            wrong.push(WrongChoice {
                case: *case,
                chosen: auto.chosen.join(", "),
                best: best.mechanism.clone(),
                factor: taken / least,
            });
        }
    }
    (wrong, looked_at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::results::Spread;
    use crate::commands::bench::summary::Measured;

    /// Returns rows of a mechanism with these costs at 4, 16, 64 and 256 KiB.
    fn rows_of(mechanism: BenchMechanism, costs: [f64; 4]) -> Vec<Cell> {
        let sizes = [4 << 10, 16 << 10, 64 << 10, 256 << 10];
        let row = |(size, cost)| {
            let case = Case {
                direction: MemoryToTcp,
                mechanism,
                size,
            };
            Cell {
                sender_cpu_s_per_gb: Spread::of([cost]),
                ..Measured::nothing_of(case).cell()
            }
        };
        sizes.into_iter().zip(costs).map(row).collect()
    }

    fn vmsplice(costs: [f64; 4]) -> (Option<u64>, bool) {
        let cells = [
            rows_of(BenchMechanism::Copy, [1.0; 4]),
            rows_of(Vmsplice, costs),
        ];
        let found = thresholds(&cells.concat());
        let found = found.iter().find(|it| it.key == "vmsplice_min_bytes");
        found.map_or((None, false), |it| (it.from_bytes, it.measured))
    }

    #[test]
    fn a_threshold_is_where_a_mechanism_begins_to_pay() {
        // The default is 64 KiB.
        assert_eq!(vmsplice([2.0, 1.1, 0.9, 0.8]), (Some(64 << 10), true));
        assert_eq!(vmsplice([2.0, 0.9, 0.9, 0.8]), (Some(16 << 10), true));
        assert_eq!(vmsplice([0.5, 0.5, 0.5, 0.5]), (Some(4 << 10), true));
        assert_eq!(vmsplice([2.0, 1.5, 1.2, 0.8]), (Some(256 << 10), true));
        assert_eq!(vmsplice([0.5, 0.5, 0.5, 1.2]), (None, true));
        // Within the margin, the default stays.
        assert_eq!(vmsplice([0.99, 0.98, 1.02, 1.01]), (Some(64 << 10), true));
    }

    #[test]
    fn what_was_not_measured_keeps_its_default() {
        let found = thresholds(&rows_of(BenchMechanism::Copy, [1.0; 4]));
        assert!(
            found
                .iter()
                .all(|it| !it.measured && it.from_bytes == Some(it.default_bytes))
        );
        assert_eq!(tuning(&found), Tuning::default());
        assert_eq!(found.len(), Tuning::KEYS.len());

        let mut copied = rows_of(MsgZerocopy, [0.1; 4]);
        for cell in &mut copied {
            cell.kernel_copied_share = Some(1.0);
        }
        let cells = [rows_of(BenchMechanism::Copy, [1.0; 4]), copied].concat();
        let found = thresholds(&cells);
        let found = found.iter().find(|it| it.key == "notified_min_bytes");
        assert!(found.is_some_and(|it| !it.measured && it.why.contains("the kernel copies")));
    }

    #[test]
    fn sizes_below_the_default_do_not_show_that_a_mechanism_never_pays() {
        // The default of regions is 2 MiB.
        let cells = [
            rows_of(BenchMechanism::Copy, [1.0; 4]),
            rows_of(RegionVmsplice, [2.0; 4]),
        ];
        let found = thresholds(&cells.concat());
        let found = found.iter().find(|it| it.key == "region_min_bytes");
        assert!(found.is_some_and(|it| !it.measured && it.from_bytes == Some(2 << 20)));
    }

    #[test]
    fn figures_that_cannot_be_trusted_decide_nothing() {
        let copies = rows_of(BenchMechanism::Copy, [1.0; 4]);
        let mut mine = rows_of(Vmsplice, [2.0, 1.1, 0.9, 5.0]);
        mine[3].is_wide = true;
        let from = |mine: &[Cell]| {
            let found = thresholds(&[&copies[..], mine].concat());
            let found = found.into_iter().find(|it| it.key == "vmsplice_min_bytes");
            found.map(|it| (it.from_bytes, it.measured))
        };
        assert_eq!(from(&mine), Some((Some(64 << 10), true)));
        // What is only known below the largest size does not show that it never pays.
        mine[2].is_wide = true;
        assert_eq!(from(&mine), Some((Some(64 << 10), false)));
        for cell in &mut mine {
            cell.is_wide = true;
        }
        assert_eq!(from(&mine), Some((Some(64 << 10), false)));
    }

    #[test]
    fn never_becomes_the_tuning() {
        let cells = [
            rows_of(BenchMechanism::Copy, [1.0; 4]),
            rows_of(Vmsplice, [2.0; 4]),
        ];
        let tuning = tuning(&thresholds(&cells.concat()));
        assert_eq!(tuning.vmsplice_min_bytes, Tuning::NEVER);
        assert_eq!(by_key(&tuning).get("vmsplice_min_bytes"), Some(&None));
    }

    #[test]
    fn a_choice_that_costs_too_much_is_named() {
        let auto = rows_of(BenchMechanism::Auto, [1.0, 1.09, 1.2, 1.0]);
        let cells = [
            rows_of(BenchMechanism::Copy, [1.0; 4]),
            rows_of(RegionVmsplice, [0.1; 4]),
            auto,
        ];
        let sizes = [4 << 10, 16 << 10, 64 << 10, 256 << 10];
        let cases = Case::all(&[MemoryToTcp], &[], &sizes);
        let (wrong, looked_at) = wrong_choices(&cells.concat(), &cases);
        let named: Vec<_> = wrong
            .iter()
            .map(|it| (it.case.size, it.best.as_str()))
            .collect();
        assert_eq!((named, looked_at), (vec![(64 << 10, "copy")], 4));

        // The same mechanism, measured twice.
        let mut cells = cells.concat();
        for cell in &mut cells {
            cell.chosen = vec!["copy".into()];
        }
        assert_eq!(wrong_choices(&cells, &cases), (vec![], 4));
    }
}
