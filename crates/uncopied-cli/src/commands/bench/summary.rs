//! From the figures of all rounds to the rows of the results, with remarks on what distorts them.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use uncopied_measure::size::size_text;

use super::catalog::Case;
use super::results::{CallTimes, Cell, Limits, Spread};
use super::sender::{Figures, Sample};

/// A spread of more than this part of the median is too wide: the values could be those of two
/// different states of the machine.
const MAX_WIDTH: f64 = 0.25;

/// From this number of rounds on, the smallest and the largest value say nothing about the spread.
const MANY_ROUNDS: usize = 5;

/// A mechanism that has moved a smaller part of the bytes was not chosen for them: a relay looks at
/// the first message before it splices, and the last bytes of a transfer may not fill a page.
const MIN_CHOSEN_SHARE: f64 = 0.01;

/// A side is considered the bottleneck if it uses at least this share of its CPU, while the side
/// that is measured uses less than [`IDLE_SHARE`].
const BUSY_SHARE: f64 = 0.95;
const IDLE_SHARE: f64 = 0.90;

/// A measurement is considered disturbed if more than this share of a CPU was used by anything but
/// the two sides.
const DISTURBED_SHARE: f64 = 0.10;

/// What was measured of one case.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) case: Case,
    /// Why it was refused.
    refused: Option<String>,
    rounds: Vec<Figures>,
}

impl Measured {
    pub(super) fn nothing_of(case: Case) -> Self {
        Self {
            case,
            refused: None,
            rounds: Vec::new(),
        }
    }

    /// Adds the result of a round.
    pub(super) fn add(&mut self, sample: Sample) {
        match sample {
            Sample::Refused(why) => self.refused = Some(why),
            Sample::Measured(figures) => self.rounds.push(*figures),
        }
    }

    /// Whether a further round would be refused as well.
    pub(super) fn is_refused(&self) -> bool {
        self.refused.is_some()
    }

    /// Returns the row of the results.
    pub(super) fn cell(&self) -> Cell {
        let Case {
            direction,
            mechanism,
            size,
        } = self.case;
        let mut cell = Cell {
            refused: self.refused.clone(),
            ..Cell::without_figures(
                direction.name(),
                mechanism.source(direction),
                direction.sink(),
                mechanism.name(),
                size,
            )
        };
        if self.refused.is_none() {
            self.fill(&mut cell);
        }
        cell
    }

    fn fill(&self, cell: &mut Cell) {
        cell.gb_per_second = self.spread(|round| round.gb_per_second);
        cell.sender_cpu_s_per_gb = self.spread(|round| round.sender_cpu_s_per_gb);
        cell.receiver_cpu_s_per_gb = self.spread(|round| round.receiver_cpu_s_per_gb);
        let is_decisive_wide = match self.case.direction.is_sent() {
            true => self.is_wide(|round| round.sender_cpu_s_per_gb),
            false => self.is_wide(|round| round.receiver_cpu_s_per_gb),
        };
        cell.is_wide = is_decisive_wide || self.is_wide(|round| round.gb_per_second);
        self.fill_shares(cell);
        cell.calls_per_mb = spread_of(self.rounds.iter().filter_map(|round| round.calls_per_mb))
            .map(|spread| spread.median);
        let times = |index: usize| {
            let of_rounds = self.rounds.iter().filter_map(|round| round.call_us);
            spread_of(of_rounds.map(|times| times[index]))
        };
        if let (Some(p50), Some(p99), Some(max)) = (times(0), times(1), times(2)) {
            cell.call_us = Some(CallTimes {
                p50: p50.median,
                p99: p99.median,
                max: max.max,
            });
        }
        let parts = |index: usize| {
            let of_rounds = self.rounds.iter().filter_map(|round| round.limits);
            let spread = spread_of(of_rounds.map(|limits| limits[index]));
            spread.map(|spread| spread.median)
        };
        if let (Some(busy), Some(receive_window), Some(send_buffer)) =
            (parts(0), parts(1), parts(2))
        {
            cell.limits = Some(Limits {
                busy,
                receive_window,
                send_buffer,
            });
        }
    }

    /// Sets the shares, which are those of all rounds together.
    fn fill_shares(&self, cell: &mut Cell) {
        let sum = |of: fn(&Figures) -> u64| self.rounds.iter().map(of).sum::<u64>();
        let bytes = sum(|round| round.moved.bytes);
        if bytes == 0 {
            return;
        }
        let mapped = sum(|round| round.moved.mapped);
        let zero_copy = sum(|round| round.moved.zero_copy).saturating_sub(mapped);
        let kernel_copied = sum(|round| round.moved.kernel_copied);
        let copied = bytes.saturating_sub(zero_copy + kernel_copied + mapped);
        let share = |part: u64| Some(part as f64 / bytes as f64);
        cell.zero_copy_share = share(zero_copy);
        cell.kernel_copied_share = share(kernel_copied);
        cell.copied_share = share(copied);
        cell.mapped_share = share(mapped);
        let mut moved: BTreeMap<&str, u64> = BTreeMap::new();
        for (name, bytes) in self.rounds.iter().flat_map(|it| &it.moved.by_mechanism) {
            *moved.entry(name).or_default() += bytes;
        }
        let mut moved: Vec<(&str, u64)> = moved.into_iter().collect();
        moved.retain(|&(_, part)| part as f64 >= bytes as f64 * MIN_CHOSEN_SHARE);
        moved.sort_by_key(|&(_, part)| Reverse(part));
        cell.chosen = moved.into_iter().map(|(name, _)| name.to_owned()).collect();
    }

    /// Whether the rounds differ too much. If there are many, the two extreme ones do not count:
    /// they do not move the median either.
    fn is_wide(&self, of: fn(&Figures) -> f64) -> bool {
        let values = self.rounds.iter().map(of);
        let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        let inner = match values.len() {
            count @ MANY_ROUNDS.. => &values[1..count - 1],
            _ => &values[..],
        };
        Spread::of(inner.iter().copied()).is_some_and(|spread| spread.width() > MAX_WIDTH)
    }

    fn spread(&self, of: fn(&Figures) -> f64) -> Option<Spread> {
        spread_of(self.rounds.iter().map(of))
    }

    fn name(&self) -> String {
        let Case {
            direction,
            mechanism,
            size,
        } = self.case;
        format!(
            "{} {} {}",
            direction.name(),
            mechanism.name(),
            size_text(size)
        )
    }
}

/// Returns the spread of the values that are numbers.
fn spread_of(values: impl Iterator<Item = f64>) -> Option<Spread> {
    Spread::of(values.filter(|value| value.is_finite()))
}

/// Returns sentences about what distorts the figures.
pub(super) fn remarks(measured: &[Measured], cells: &[Cell]) -> Vec<String> {
    let mut remarks = Vec::new();
    let wide = cells.iter().filter(|cell| cell.is_wide).count();
    if wide > 0 {
        remarks.push(format!(
            "In {wide} of {} rows, marked with ~, the rounds differ by more than {:.0} % of the \
             median: measure them again, longer, and on a machine that does nothing else.",
            cells.len(),
            MAX_WIDTH * 100.0
        ));
    }
    if measured.iter().all(|it| it.rounds.len() < 2) {
        remarks.push("There was one round, so that nothing is known about the spread.".into());
    }
    let median =
        |it: &Measured, of: fn(&Figures) -> f64| it.spread(of).map_or(0.0, |spread| spread.median);
    let limited: Vec<String> = measured
        .iter()
        .filter(|it| {
            let sender = median(it, |round| round.sender_share);
            let receiver = median(it, |round| round.receiver_share);
            let (own, other) = match it.case.direction.is_sent() {
                true => (sender, receiver),
                false => (receiver, sender),
            };
            other >= BUSY_SHARE && own < IDLE_SHARE
        })
        .map(Measured::name)
        .collect();
    if !limited.is_empty() {
        remarks.push(format!(
            "The side that is not measured was the limit of the throughput, not of the CPU time, \
             in {} rows: {}.",
            limited.len(),
            shortened(&limited)
        ));
    }
    let disturbed: Vec<String> = measured
        .iter()
        .filter(|it| median(it, |round| round.other_share.unwrap_or(0.0)) > DISTURBED_SHARE)
        .map(Measured::name)
        .collect();
    if !disturbed.is_empty() {
        remarks.push(format!(
            "Other programs, or threads of the kernel, used more than {:.0} % of a CPU in {} \
             rows: {}.",
            DISTURBED_SHARE * 100.0,
            disturbed.len(),
            shortened(&disturbed)
        ));
    }
    let is_counted = |cell: &&Cell| cell.refused.is_none() && cell.calls_per_mb.is_some();
    if !cells.iter().any(|cell| is_counted(&cell)) {
        remarks.push(
            "System calls were not counted: that needs tracefs, and root or \
             kernel.perf_event_paranoid = -1."
                .into(),
        );
    }
    remarks
}

/// Lists the first few names.
fn shortened(names: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN {
        text.push_str(&format!(" and {} more", names.len() - SHOWN));
    }
    text
}
