//! What a panel shows, as sentences and as ribbons.

use maud::{Markup, html};

use super::super::results::Threshold;
use super::panel::{Metric, Panel, Refusal, Verdict};
use super::words;

/// The plan's choice is marked if it costs more than this above the cheapest mechanism.
const MAX_EXCESS: f64 = 0.10;

/// Consecutive sizes with the same mechanism.
struct Run<'a> {
    name: String,
    /// The mechanism whose colour the run has.
    mechanism: &'a str,
    /// How much more than the cheapest mechanism it costs, at most, if that is too much.
    excess: Option<f64>,
    first: u64,
    last: u64,
    length: usize,
}

/// The runs of the cheapest mechanism.
fn best_runs<'a>(verdicts: &[Verdict<'a>]) -> Vec<Run<'a>> {
    let run = |verdict: &Verdict<'a>| (verdict.size, verdict.best, verdict.best.to_owned(), None);
    runs(verdicts.iter().map(run))
}

/// The runs of what the plan chooses, at the sizes where that was measured.
fn chosen_runs<'a>(verdicts: &[Verdict<'a>]) -> Vec<Run<'a>> {
    let run = |verdict: &Verdict<'a>| {
        let chosen: &'a [String] = verdict.chosen;
        let excess = verdict.excess.filter(|excess| *excess > MAX_EXCESS);
        let first = chosen.first()?;
        Some((verdict.size, first.as_str(), chosen.join(" + "), excess))
    };
    runs(verdicts.iter().filter_map(run))
}

fn runs<'a>(places: impl Iterator<Item = (u64, &'a str, String, Option<f64>)>) -> Vec<Run<'a>> {
    let mut runs: Vec<Run<'a>> = Vec::new();
    for (size, mechanism, name, excess) in places {
        match runs.last_mut() {
            Some(run) if run.name == name && run.excess.is_some() == excess.is_some() => {
                run.excess = run.excess.zip(excess).map(|(a, b)| a.max(b));
                run.last = size;
                run.length += 1;
            }
            _ => runs.push(Run {
                name,
                mechanism,
                excess,
                first: size,
                last: size,
                length: 1,
            }),
        }
    }
    runs
}

/// Two ribbons, one above the other: the cheapest mechanism by size, and the plan's choice.
pub(super) fn ribbons(panel: &Panel<'_>) -> Markup {
    let verdicts = panel.verdicts();
    let rows = [
        ("cheapest", best_runs(&verdicts)),
        ("plan", chosen_runs(&verdicts)),
    ];
    html! {
        @for (label, runs) in rows.iter().filter(|(_, runs)| !runs.is_empty()) {
            div class="ribbon" {
                span class="ribbon-label" { (label) }
                @for run in runs { (ribbon_run(panel, run)) }
            }
        }
        @if let ([first, ..], Some(last)) = (&verdicts[..], verdicts.last()) {
            div class="ribbon-ends" {
                span { (words::size(first.size)) }
                @if first.size < last.size { span { (words::size(last.size)) } }
            }
        }
    }
}

fn ribbon_run(panel: &Panel<'_>, run: &Run<'_>) -> Markup {
    let look = panel.look(run.mechanism).map(|look| look.class());
    let excess = run
        .excess
        .map(|excess| format!(", +{}", words::excess(excess)));
    let excess = excess.unwrap_or_default();
    let sizes = words::sizes(run.first, run.last);
    html! {
        span class={ "run " (look.unwrap_or_default()) @if run.excess.is_some() { " dear" } }
            style={ "flex-grow:" (run.length) }
            title={ (run.name) ", " (sizes) (excess) } {
            b { (run.name) }
            small { (sizes) (excess) }
        }
    }
}

/// The sentences on what is cheapest where, and on how the plan does.
pub(super) fn sentences(panel: &Panel<'_>) -> Vec<String> {
    let verdicts = panel.verdicts();
    let mut sentences = Vec::new();
    let runs = best_runs(&verdicts);
    let what = match panel.cost {
        Metric::ReceiverCpu => "Least CPU of the receiver",
        Metric::SenderCpu | Metric::Throughput => "Least CPU of the sender",
    };
    if let [only] = &runs[..] {
        sentences.push(format!(
            "{what}: {} at every size that was measured.",
            only.name
        ));
    } else if !runs.is_empty() {
        let count = runs.len();
        let parts = runs.iter().enumerate();
        let parts = parts.map(|(index, run)| part(run, index == 0, index + 1 == count));
        let parts: Vec<String> = parts.collect();
        sentences.push(format!("{what}: {}.", parts.join(", ")));
    }
    sentences.extend(against_copy(panel, &verdicts));
    sentences.extend(plan(&verdicts));
    sentences
}

fn part(run: &Run<'_>, is_first: bool, is_last: bool) -> String {
    let name = &run.name;
    match (is_first, is_last) {
        (true, _) => format!("{name} up to {}", words::size(run.last)),
        (_, true) => format!("{name} from {} on", words::size(run.first)),
        _ if run.first == run.last => format!("{name} at {}", words::size(run.first)),
        _ => format!("{name} from {}", words::sizes(run.first, run.last)),
    }
}

/// Where the cheapest mechanism saves the most, compared with copying.
fn against_copy(panel: &Panel<'_>, verdicts: &[Verdict<'_>]) -> Option<String> {
    let copy = panel.series.iter().find(|series| series.name == "copy")?;
    let saving = |verdict: &Verdict<'_>| {
        let best = panel
            .series
            .iter()
            .find(|series| series.name == verdict.best)?;
        let best = best.median(panel.cost, verdict.size)?;
        let ratio = best / copy.median(panel.cost, verdict.size)?;
        Some((verdict.size, verdict.best.to_owned(), ratio))
    };
    let most = verdicts.iter().filter_map(saving);
    let (size, best, ratio) = most.min_by(|a, b| a.2.total_cmp(&b.2))?;
    (ratio < 1.0).then(|| {
        format!(
            "The gain is greatest at {}: {best} takes {} of the CPU time of copying.",
            words::size(size),
            words::percent(ratio)
        )
    })
}

fn plan(verdicts: &[Verdict<'_>]) -> Option<String> {
    let known: Vec<(u64, f64)> = verdicts
        .iter()
        .filter_map(|verdict| Some((verdict.size, verdict.excess?)))
        .collect();
    let (size, worst) = known.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1))?;
    if worst <= MAX_EXCESS {
        return Some(
            "What the plan chooses (auto) is within 10 % of the cheapest mechanism at every size."
                .to_owned(),
        );
    }
    let near = known.iter().filter(|(_, excess)| *excess <= MAX_EXCESS);
    Some(format!(
        "What the plan chooses (auto) is within 10 % of the cheapest mechanism at {} of {} sizes; \
         the worst is {}, with {} more.",
        near.count(),
        known.len(),
        words::size(size),
        words::excess(worst)
    ))
}

/// What a threshold tells the plan to use.
pub(super) fn threshold(threshold: &Threshold) -> String {
    let Threshold {
        mechanism, than, ..
    } = threshold;
    let default = match threshold.default_bytes {
        0 => "at every size".to_owned(),
        u64::MAX => "never".to_owned(),
        bytes => format!("from {} on", words::size(bytes)),
    };
    match (threshold.measured, threshold.from_bytes) {
        (false, _) => format!("The default stays: {mechanism} {default}."),
        (true, None) => format!("{mechanism} never, always {than} (default: {default})."),
        (true, Some(0)) => format!("{mechanism} at every size (default: {default})."),
        (true, Some(bytes)) => format!(
            "{mechanism} from {} on, {than} below (default: {default}).",
            words::size(bytes)
        ),
    }
}

/// Where a mechanism was refused.
pub(super) fn refused_at(refusal: &Refusal<'_>) -> String {
    match &refusal.sizes {
        None => String::new(),
        Some(sizes) => {
            let sizes: Vec<String> = sizes.iter().map(|size| words::size(*size)).collect();
            format!(" at {}", words::list(&sizes))
        }
    }
}
