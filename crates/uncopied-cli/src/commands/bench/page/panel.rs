//! Panels: the cells of one direction, as the lines of its plots.

use super::super::results::{Cell, Results, Spread, Threshold};
use super::look::Look;
use super::words::{self, AUTO};

/// A mechanism whose cost is at most this many times the lowest one of the same size counts as
/// equally cheap: rounds differ by about as much.
const TIE_MAX_RATIO: f64 = 1.05;

/// What a plot shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Metric {
    Throughput,
    SenderCpu,
    ReceiverCpu,
}

impl Metric {
    pub(super) const ALL: [Self; 3] = [Self::Throughput, Self::SenderCpu, Self::ReceiverCpu];

    pub(super) fn title(self) -> &'static str {
        match self {
            Self::Throughput => "Throughput",
            Self::SenderCpu => "CPU of the sender",
            Self::ReceiverCpu => "CPU of the receiver",
        }
    }

    pub(super) fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "GB/s",
            Self::SenderCpu | Self::ReceiverCpu => "s/GB",
        }
    }

    /// Which values are better.
    pub(super) fn aim(self) -> &'static str {
        match self {
            Self::Throughput => "higher is better",
            Self::SenderCpu | Self::ReceiverCpu => "lower is better",
        }
    }

    /// The figure of a cell, if it was measured and can be drawn.
    pub(super) fn of(self, cell: &Cell) -> Option<Spread> {
        if cell.refused.is_some() {
            return None;
        }
        let spread = match self {
            Self::Throughput => cell.gb_per_second,
            Self::SenderCpu => cell.sender_cpu_s_per_gb,
            Self::ReceiverCpu => cell.receiver_cpu_s_per_gb,
        };
        let is_drawable = |spread: &Spread| {
            let Spread { median, min, max } = *spread;
            median > 0.0 && min >= 0.0 && max >= min && max.is_finite()
        };
        spread.filter(is_drawable)
    }
}

/// The cells of one mechanism, in the order of their sizes, of which at least one was measured.
#[derive(Debug)]
pub(super) struct Series<'a> {
    pub(super) name: &'a str,
    pub(super) look: Look,
    pub(super) cells: Vec<&'a Cell>,
}

/// A mechanism that could not be measured.
#[derive(Debug)]
pub(super) struct Refusal<'a> {
    pub(super) mechanism: &'a str,
    pub(super) reason: &'a str,
    /// `None` if it was refused at every size.
    pub(super) sizes: Option<Vec<u64>>,
}

/// What is cheapest at one size, and what the plan chooses.
#[derive(Clone, Debug)]
pub(super) struct Verdict<'a> {
    pub(super) size: u64,
    /// The cheapest mechanism. If several are equally cheap, the one of the next smaller size.
    pub(super) best: &'a str,
    /// The mechanisms with which the plan moved the bytes. Empty if that was not measured.
    pub(super) chosen: &'a [String],
    /// How much more the plan's choice costs than the cheapest mechanism, unless that is what it
    /// has chosen: 0.1 for 10 % more.
    pub(super) excess: Option<f64>,
}

/// The cells that are compared with each other: those of one direction, or, if its mechanisms were
/// measured with several sources or sinks, those of one source and sink.
#[derive(Debug)]
pub(super) struct Panel<'a> {
    pub(super) title: String,
    /// What the cells measure, in a sentence.
    pub(super) about: String,
    /// Which figure decides what is cheapest.
    pub(super) cost: Metric,
    pub(super) sizes: Vec<u64>,
    /// The mechanisms that were measured, without what the plan chooses.
    pub(super) series: Vec<Series<'a>>,
    pub(super) auto: Option<Series<'a>>,
    pub(super) refusals: Vec<Refusal<'a>>,
    pub(super) thresholds: Vec<&'a Threshold>,
    pub(super) cells: Vec<&'a Cell>,
}

/// Returns the panels of a run, in the order in which it measured their directions.
pub(super) fn panels(results: &Results) -> Vec<Panel<'_>> {
    let directions = distinct(results.cells.iter().map(|cell| cell.direction));
    directions
        .into_iter()
        .flat_map(|direction| panels_of(results, direction))
        .collect()
}

fn panels_of<'a>(results: &'a Results, direction: &'static str) -> Vec<Panel<'a>> {
    let cells: Vec<&Cell> = results
        .cells
        .iter()
        .filter(|cell| cell.direction == direction)
        .collect();
    let places = distinct(cells.iter().map(|cell| (&cell.mechanism, cell.size)));
    let groups: Vec<Vec<&Cell>> = if places.len() == cells.len() {
        vec![cells]
    } else {
        let ends = |cell: &&'a Cell| (&cell.source, &cell.sink);
        let in_group = |group| {
            cells
                .iter()
                .copied()
                .filter(move |cell| ends(cell) == group)
        };
        distinct(cells.iter().map(ends))
            .into_iter()
            .map(|group| in_group(group).collect())
            .collect()
    };
    let thresholds: Vec<&Threshold> = results
        .thresholds
        .iter()
        .filter(|threshold| threshold.direction == direction)
        .collect();
    let is_alone = groups.len() == 1;
    let panel = |cells: Vec<&'a Cell>| {
        let mut panel = Panel::new(direction, cells, &thresholds);
        if let (false, [first, ..]) = (is_alone, &panel.cells[..]) {
            panel.title = format!("{}: {} → {}", panel.title, first.source, first.sink);
        }
        panel
    };
    groups.into_iter().map(panel).collect()
}

impl<'a> Panel<'a> {
    fn new(direction: &str, cells: Vec<&'a Cell>, thresholds: &[&'a Threshold]) -> Self {
        let mut sizes = distinct(cells.iter().map(|cell| cell.size));
        sizes.sort_unstable();
        let of = |mechanism: &str| {
            let is_of = |cell: &&Cell| cell.mechanism == mechanism;
            let mut cells: Vec<&Cell> = cells.iter().copied().filter(is_of).collect();
            cells.sort_by_key(|cell| cell.size);
            cells
        };
        let mechanisms = distinct(cells.iter().map(|cell| cell.mechanism.as_str()));
        let mut drawn: Vec<(&str, Vec<&Cell>)> = mechanisms
            .into_iter()
            .map(|mechanism| (mechanism, of(mechanism)))
            .filter(|(_, cells)| cells.iter().any(|cell| cell.refused.is_none()))
            .collect();
        let auto = drawn.iter().position(|(name, _)| *name == AUTO);
        let auto = auto.map(|index| drawn.remove(index));
        let names: Vec<&str> = drawn.iter().map(|(name, _)| *name).collect();
        let series = drawn
            .into_iter()
            .zip(Look::assign(&names))
            .map(|((name, cells), look)| Series { name, look, cells })
            .collect();
        Self {
            title: words::direction_title(direction).to_owned(),
            about: words::direction_about(direction).to_owned(),
            cost: cost_of(direction, &cells),
            refusals: refusals(&cells, &sizes),
            sizes,
            series,
            auto: auto.map(|(name, cells)| Series {
                name,
                look: Look::AUTO,
                cells,
            }),
            thresholds: thresholds.to_vec(),
            cells,
        }
    }

    /// All lines of the plots. What the plan chooses comes first, so that it lies below the others.
    pub(super) fn lines(&self) -> impl Iterator<Item = &Series<'a>> {
        self.auto.iter().chain(&self.series)
    }

    /// What is cheapest at each size at which anything was measured that the plan can choose.
    pub(super) fn verdicts(&self) -> Vec<Verdict<'_>> {
        let mut verdicts: Vec<Verdict<'_>> = Vec::new();
        for &size in &self.sizes {
            let before = verdicts.last().map(|verdict| verdict.best);
            verdicts.extend(self.verdict(size, before));
        }
        verdicts
    }

    fn verdict<'s>(&'s self, size: u64, before: Option<&'s str>) -> Option<Verdict<'s>> {
        let costs: Vec<(&str, f64)> = self
            .series
            .iter()
            .filter(|series| self.other_source(series).is_none())
            .filter_map(|series| Some((series.name, series.median(self.cost, size)?)))
            .collect();
        let lowest = costs.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1))?;
        let still_best = costs
            .iter()
            .find(|(name, cost)| Some(*name) == before && *cost <= lowest.1 * TIE_MAX_RATIO);
        let auto = self.auto.as_ref();
        let chosen = auto.and_then(|auto| auto.cell(size));
        let excess = auto.and_then(|auto| Some(auto.median(self.cost, size)? / lowest.1 - 1.0));
        // A difference between two rows of the same mechanism is one of measuring.
        let is_lowest = chosen.is_some_and(|cell| cell.chosen == [lowest.0]);
        let excess = excess.map(|excess| if is_lowest { 0.0 } else { excess });
        Some(Verdict {
            size,
            best: still_best.map_or(lowest.0, |(name, _)| name),
            chosen: chosen.map_or(&[], |cell| &cell.chosen),
            excess,
        })
    }

    /// The source of a mechanism that takes the bytes from another kind of source than the plan's
    /// choice does, so that the plan cannot choose it.
    pub(super) fn other_source(&self, series: &Series<'a>) -> Option<&'a str> {
        let source = |series: &Series<'a>| series.cells.first().map(|cell| cell.source.as_str());
        let own = source(series)?;
        let of_plan = source(self.auto.as_ref()?)?;
        (own != of_plan).then_some(own)
    }

    /// The look of a mechanism.
    pub(super) fn look(&self, mechanism: &str) -> Option<Look> {
        let series = self.series.iter().find(|series| series.name == mechanism);
        series.map(|series| series.look)
    }
}

impl<'a> Series<'a> {
    pub(super) fn cell(&self, size: u64) -> Option<&'a Cell> {
        self.cells.iter().copied().find(|cell| cell.size == size)
    }

    pub(super) fn median(&self, metric: Metric, size: u64) -> Option<f64> {
        Some(metric.of(self.cell(size)?)?.median)
    }
}

/// What decides which mechanism is cheapest: the CPU time of the side that uses it, or the
/// throughput if that was not measured.
fn cost_of(direction: &str, cells: &[&Cell]) -> Metric {
    let receives = direction.starts_with("tcp_to_");
    let (own, other) = match receives {
        true => (Metric::ReceiverCpu, Metric::SenderCpu),
        false => (Metric::SenderCpu, Metric::ReceiverCpu),
    };
    let is_known = |metric: &Metric| cells.iter().any(|cell| metric.of(cell).is_some());
    [own, other].into_iter().find(is_known).unwrap_or(own)
}

fn refusals<'a>(cells: &[&'a Cell], sizes: &[u64]) -> Vec<Refusal<'a>> {
    let refused = |cell: &'a Cell| Some((cell.mechanism.as_str(), cell.refused.as_deref()?));
    let all = cells.iter().copied();
    distinct(all.clone().filter_map(refused))
        .into_iter()
        .map(|(mechanism, reason)| {
            let of_this = |cell: &&'a Cell| refused(cell) == Some((mechanism, reason));
            let mut at: Vec<u64> = all.clone().filter(of_this).map(|cell| cell.size).collect();
            at.sort_unstable();
            Refusal {
                mechanism,
                reason,
                sizes: (at != sizes).then_some(at),
            }
        })
        .collect()
}

/// The values without repetitions, in the order in which they first occur.
fn distinct<T: PartialEq>(values: impl IntoIterator<Item = T>) -> Vec<T> {
    let mut found = Vec::new();
    for value in values {
        if !found.contains(&value) {
            found.push(value);
        }
    }
    found
}
