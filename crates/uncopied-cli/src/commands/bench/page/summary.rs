//! The top of the page: what was measured where, and what came out.

use maud::{Markup, html};

use super::super::results::{Results, Setting};
use super::findings;
use super::panel::Panel;
use super::words;

/// The heading, the facts of the run, and what it cannot show.
pub(super) fn header(results: &Results) -> Markup {
    let setting = &results.setting;
    html! {
        header {
            p class="eyebrow" { "uncopied bench " (results.version) }
            h1 { "What zero copy is worth on this machine" }
            p class="lead" {
                (results.machine.cpu) ", Linux " (results.machine.kernel) ", over "
                (words::network(setting)) "."
            }
            dl class="facts" {
                @for (name, value) in facts(results) {
                    div { dt { (name) } dd { (value) } }
                }
            }
            p class="command" { code { (setting.command) } }
        }
    }
}

fn facts(results: &Results) -> Vec<(&'static str, String)> {
    let (machine, setting) = (&results.machine, &results.setting);
    vec![
        ("CPUs", machine.cpus.to_string()),
        ("memory", words::memory(machine.memory_bytes)),
        ("page", words::size(machine.page_bytes as u64)),
        ("congestion control", setting.congestion.clone()),
        ("sender, receiver", pinning(setting)),
        (
            "each cell",
            format!("{} × {} s", setting.rounds, setting.seconds_per_cell),
        ),
    ]
}

fn pinning(setting: &Setting) -> String {
    let cpu = |cpu: Option<usize>| cpu.map_or("any CPU".to_owned(), |cpu| format!("CPU {cpu}"));
    let (sender, receiver) = (cpu(setting.sender_cpu), cpu(setting.receiver_cpu));
    match sender == receiver {
        true => sender,
        false => format!("{sender}, {receiver}"),
    }
}

/// The cheapest mechanisms and the plan's choices of all panels.
pub(super) fn overview(panels: &[Panel<'_>]) -> Markup {
    html! {
        section class="card" aria-labelledby="overview" {
            h2 id="overview" { "The cheapest mechanism, by bytes per transfer" }
            @if panels.is_empty() {
                p class="absent" { "This run measured nothing." }
            }
            @for (index, panel) in panels.iter().enumerate() {
                @let ribbons = findings::ribbons(panel);
                div class="overview-row" {
                    a href={ "#panel-" (index) } { (panel.title) }
                    div class="ribbons" {
                        @if ribbons.0.is_empty() {
                            p class="absent" { "No mechanism could be measured." }
                        }
                        (ribbons)
                    }
                }
            }
            @if !panels.is_empty() {
                p class="note" {
                    "The upper ribbon of each pair names the mechanism with the least CPU time per "
                    "GB on the side that uses it: the sender, or, where bytes come from a socket, "
                    "the receiver. The lower one names what the library's plan chose in this run. "
                    "A dashed edge marks choices that cost over 10 % more than the cheapest "
                    "mechanism, with the difference. Costs that differ by up to 5 % count as equal."
                }
            }
        }
    }
}

/// What the run cannot show.
pub(super) fn caveats(setting: &Setting) -> Markup {
    html! {
        @if !setting.cannot_show.is_empty() {
            section class="card caveats" aria-labelledby="caveats" {
                h2 id="caveats" { "What this run cannot show" }
                ul { @for sentence in &setting.cannot_show { li { (sentence) } } }
            }
        }
    }
}

/// The thresholds that follow from the results, as a file for the library to read.
pub(super) fn tuning(results: &Results) -> Markup {
    html! {
        @if !results.tuning.is_empty() {
            section class="card" aria-labelledby="tuning" {
                h2 id="tuning" { "The tuning for this machine" }
                p {
                    "Put these lines into a file, and name it in the environment variable "
                    code { "UNCOPIED_TUNING" }
                    ". Then " code { "uncopied serve" } ", " code { "uncopied relay" }
                    " and every program that uses the library take their thresholds from it. "
                    code { "uncopied bench --save-tuning FILE" } " writes such a file."
                }
                pre tabindex="0" { (tuning_text(results)) }
            }
        }
    }
}

fn tuning_text(results: &Results) -> String {
    let line = |(key, bytes): (&&str, &Option<u64>)| match bytes {
        Some(bytes) => format!("{key} = {bytes}\n"),
        None => format!("{key} = never\n"),
    };
    results.tuning.iter().map(line).collect()
}
