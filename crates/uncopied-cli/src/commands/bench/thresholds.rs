//! Which thresholds the plans of this machine should use, and whether the present ones are right.

use std::collections::BTreeMap;

use uncopied::Tuning;
use uncopied_measure::size::size_text;

use super::catalog::Case;
use super::results::{Cell, Spread, Threshold};
use crate::flags::{BenchDirection, BenchMechanism};

use BenchDirection::{FileToTcp, MemoryToTcp, TcpToFile, TcpToMemory, TcpToTcp};
use BenchMechanism::{
    MapReceive, MmapWrite, MsgZerocopy, RegionVmsplice, Sendfile, Splice, Vmsplice,
};

/// Mechanisms whose CPU times differ by less than this are equally good.
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
    let mine: Vec<&Cell> = rows(cells, direction, mechanism).collect();
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
    let copies: Vec<&Cell> = rows(cells, direction, BenchMechanism::Copy).collect();
    let excesses: Vec<(u64, f64)> = mine
        .iter()
        .filter_map(|cell| {
            let copy = copies.iter().find(|copy| copy.size == cell.size)?;
            let excess = excess(cpu_time(direction, cell)?, cpu_time(direction, copy)?);
            Some((cell.size, excess))
        })
        .collect();
    let Some(&(largest, _)) = excesses.last() else {
        return keep("Not measured: both mechanisms must be, at the same sizes.".into());
    };
    let side = if direction.is_sent() {
        "sender"
    } else {
        "receiver"
    };
    let why = sentence(side, &excesses);
    // What the choices cost that a threshold makes at the measured sizes.
    let cost_of = |from: u64| -> f64 {
        let chosen = |&(size, excess): &(u64, f64)| match size >= from {
            true => excess.max(0.0),
            false => -excess.min(0.0),
        };
        excesses.iter().map(chosen).sum()
    };
    // Of several equally good ones, the default is taken, otherwise the smallest.
    let sizes = excesses.iter().map(|&(size, _)| size);
    let best = sizes.chain([Tuning::NEVER]).fold(default, |best, from| {
        match cost_of(from) < cost_of(best) {
            true => from,
            false => best,
        }
    });
    match best {
        Tuning::NEVER => (None, true, why),
        from => (Some(from), from != default || default <= largest, why),
    }
}

/// Returns how much more a mechanism costs than another one, as a logarithm, so that twice as much
/// and half as much cancel out. 0 if they differ so little that the next run could show the
/// opposite: by less than a margin, or by less than the rounds do.
fn excess(mine: Spread, other: Spread) -> f64 {
    let is_within = |value: f64, range: Spread| (range.min..=range.max).contains(&value);
    let ratio = mine.median.ln() - other.median.ln();
    let is_clear = !is_within(mine.median, other) && !is_within(other.median, mine);
    match is_clear && ratio.abs() > MARGIN {
        true => ratio,
        false => 0.0,
    }
}

/// Says at which sizes a mechanism takes less CPU time than a copy, and at which it takes more.
fn sentence(side: &str, excesses: &[(u64, f64)]) -> String {
    let sizes = |is_meant: fn(f64) -> bool| {
        let meant = excesses.iter().filter(|(_, excess)| is_meant(*excess));
        let names: Vec<String> = meant.map(|&(size, _)| size_text(size)).collect();
        names.join(", ")
    };
    let (less, more) = (sizes(|excess| excess < 0.0), sizes(|excess| excess > 0.0));
    match (less.is_empty(), more.is_empty()) {
        (true, true) => {
            format!(
                "It takes as much CPU time of the {side} as copy, within what rounds differ by."
            )
        }
        (false, true) => format!("It takes less CPU time of the {side} than copy at {less}."),
        (true, false) => format!("It takes more CPU time of the {side} than copy at {more}."),
        (false, false) => {
            format!("It takes less CPU time of the {side} than copy at {less}, and more at {more}.")
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

/// Returns the CPU time of the side that uses the mechanism, for 10⁹ bytes.
fn cpu_time(direction: BenchDirection, cell: &Cell) -> Option<Spread> {
    match direction.is_sent() {
        true => cell.sender_cpu_s_per_gb,
        false => cell.receiver_cpu_s_per_gb,
    }
}

/// A place at which the library should have chosen another mechanism.
#[derive(Debug, PartialEq)]
pub(super) struct WrongChoice {
    pub(super) case: Case,
    pub(super) chosen: String,
    pub(super) best: String,
    /// How many times the CPU time of the best one it takes.
    pub(super) factor: f64,
    /// Whether the rounds do not differ as much.
    pub(super) is_clear: bool,
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
            .filter_map(|cell| Some((cell, cpu_time(case.direction, cell)?)))
            .min_by(|a, b| a.1.median.total_cmp(&b.1.median));
        let (Some(auto), Some((best, least))) = (auto, best) else {
            continue;
        };
        let Some(taken) = cpu_time(case.direction, auto) else {
            continue;
        };
        looked_at += 1;
        // If the library has chosen the best mechanism, any difference is one of measuring.
        let has_chosen_best = auto.chosen == [best.mechanism.as_str()];
        let factor = taken.median / least.median;
        if factor > CHOICE_LIMIT && !has_chosen_best {
            wrong.push(WrongChoice {
                case: *case,
                chosen: auto.chosen.join(", "),
                best: best.mechanism.clone(),
                factor,
                is_clear: excess(taken, least) > 0.0,
            });
        }
    }
    (wrong, looked_at)
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(vmsplice([1.1, 1.1, 1.1, 1.2]), (None, true));
        // A small loss at one size does not outweigh large gains at others.
        assert_eq!(vmsplice([0.5, 0.5, 0.5, 1.2]), (Some(4 << 10), true));
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
    fn what_differs_less_than_the_rounds_decides_nothing() {
        let spread = |min, median, max| Spread { median, min, max };
        let steady = spread(0.99, 1.0, 1.01);
        for (mine, is_clear) in [
            (spread(1.2, 1.3, 1.4), true),
            (spread(0.6, 0.7, 0.8), true),
            // The ranges may overlap, unless one of them contains the other median.
            (spread(1.005, 1.3, 1.6), true),
            (spread(0.9, 1.3, 1.6), false),
            (spread(1.01, 1.02, 1.03), false),
        ] {
            assert_eq!(excess(mine, steady) != 0.0, is_clear, "{mine:?}");
            assert_eq!(excess(steady, mine), -excess(mine, steady), "{mine:?}");
        }
    }

    #[test]
    fn the_sentence_names_the_sizes() {
        let of = |excesses: &[(u64, f64)]| sentence("sender", excesses);
        let all = of(&[
            (1 << 10, 0.2),
            (4 << 10, 0.0),
            (16 << 10, -0.1),
            (64 << 10, -0.3),
        ]);
        let words =
            "It takes less CPU time of the sender than copy at 16 KiB, 64 KiB, and more at 1 KiB.";
        assert_eq!(all, words);
        assert!(of(&[(1 << 10, 0.2)]).contains("more CPU time of the sender than copy at 1 KiB."));
        assert!(of(&[(1 << 10, -0.2)]).contains("less CPU time of the sender than copy at 1 KiB."));
        assert!(of(&[(1 << 10, 0.0)]).contains("as much"));
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
