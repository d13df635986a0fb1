//! The report of a run as one HTML page. It needs no network, no script and no other file.
//!
//! [`maud`] escapes every text that is put into the page, in HTML and in SVG alike. Elements of
//! SVG are written with `{}` and not with `;`, which leaves out the end tag, and is for the few
//! elements of HTML that have none.

mod axis;
mod findings;
mod look;
mod panel;
mod plot;
mod shares;
mod summary;
mod table;
mod words;

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;

use maud::{DOCTYPE, Markup, PreEscaped, html};

use super::results::Results;
use panel::{Metric, Panel};
use plot::Frame;

/// Forbids the page to load anything, even from itself, and to run scripts.
const CONTENT_SECURITY_POLICY: &str =
    "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// Draws the results as an HTML page.
pub(crate) fn page(results: &Results) -> String {
    let panels = panel::panels(results);
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta http-equiv="Content-Security-Policy" content=(CONTENT_SECURITY_POLICY);
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="generator" content={ "uncopied " (results.version) };
                title { "uncopied bench: " (results.machine.cpu) }
                style { (PreEscaped(include_str!("page.css"))) }
            }
            body {
                main {
                    (summary::header(results))
                    div class="pair" {
                        (summary::overview(&panels))
                        (summary::caveats(&results.setting))
                    }
                    @for (index, panel) in panels.iter().enumerate() { (section(panel, index)) }
                    (summary::tuning(results))
                    (how_to_read())
                }
            }
        }
    };
    page.into_string()
}

fn section(panel: &Panel<'_>, index: usize) -> Markup {
    let id = format!("panel-{index}");
    let frame = Frame::of(panel);
    html! {
        section class="card panel" id=(id) aria-labelledby={ (id) "-title" } {
            h2 id={ (id) "-title" } { (panel.title) }
            p class="about" { (panel.about) }
            ul class="findings" {
                @for sentence in findings::sentences(panel) { li { (sentence) } }
            }
            @if !panel.series.is_empty() || panel.auto.is_some() {
                (legend(panel))
                div class="plots" {
                    @for metric in Metric::ALL { (plot::plot(panel, &frame, metric)) }
                    (shares::plot(panel, &frame, &id))
                }
            }
            (thresholds(panel))
            (refusals(panel))
            (table::table(panel))
        }
    }
}

/// The colours and markers of the mechanisms.
fn legend(panel: &Panel<'_>) -> Markup {
    html! {
        ul class="legend" {
            @for series in panel.series.iter().chain(&panel.auto) {
                li {
                    svg class={ "key " (series.look.class()) } viewBox="0 0 26 14" role="img" {
                        title { "Line of " (series.name) }
                        desc { "The colour and the marker of " (series.name) " in the plots." }
                        path class=(series.look.line_class()) d="M2 7L24 7" {}
                        (series.look.marker(13.0, 7.0, false))
                    }
                    (series.name)
                    @if series.look == look::Look::AUTO { " (what the plan chooses)" }
                    @if let Some(source) = panel.other_source(series) { " (from: " (source) ")" }
                }
            }
        }
    }
}

fn thresholds(panel: &Panel<'_>) -> Markup {
    html! {
        @if !panel.thresholds.is_empty() {
            h3 { "Crossover points" }
            ul class="thresholds" {
                @for (letter, threshold) in ('A'..='Z').zip(&panel.thresholds) {
                    li {
                        span class="letter" { (letter) }
                        span {
                            b { (findings::threshold(threshold)) } " " (threshold.why) " "
                            code { (threshold.key) }
                        }
                    }
                }
            }
        }
    }
}

fn refusals(panel: &Panel<'_>) -> Markup {
    html! {
        @if !panel.refusals.is_empty() {
            h3 { "Not measured" }
            ul class="refusals" {
                @for refusal in &panel.refusals {
                    li {
                        b { (refusal.mechanism) (findings::refused_at(refusal)) } ": "
                        (refusal.reason)
                    }
                }
            }
        }
    }
}

fn how_to_read() -> Markup {
    html! {
        section class="card" aria-labelledby="reading" {
            h2 id="reading" { "How to read this page" }
            ul {
                li {
                    "The size is the number of bytes of one transfer: of one send, or of one chunk "
                    "that is received. A GB is 10⁹ bytes, a KiB 1024 bytes."
                }
                li {
                    "A point is the median of the rounds, and the thin line through it reaches from "
                    "the lowest round to the highest. It may leave the plot. A hollow point has "
                    "rounds that differ too much for its median to be trusted. Point at it to see "
                    "the figures."
                }
                li {
                    "CPU time is in seconds for each GB, of all threads of one side, in user mode "
                    "and in the kernel. 0.1 s/GB means that a fully used CPU moves 10 GB/s. The "
                    "kernel charges some work to whichever process it interrupts, so compare "
                    "mechanisms within this page, and not with other machines."
                }
                li {
                    "The broad bright line is what the library's plan chooses (auto). It should "
                    "follow the lowest line of the CPU time that decides: that of the sender, or, "
                    "where bytes come from a socket, that of the receiver. Letters in this plot "
                    "mark the crossover points below it."
                }
                li {
                    "\u{201c}Copied by the kernel after all\u{201d} means that the mechanism did not "
                    "copy, but that the kernel did later, and reported it, as it does for "
                    code { "MSG_ZEROCOPY" } " on loopback."
                }
            }
        }
    }
}
