//! The plot of what became of the bytes: one bar for each mechanism and size.

use maud::{Markup, html};

use super::super::results::Cell;
use super::axis::px;
use super::panel::{Panel, Series};
use super::plot::{Frame, LEFT, short};
use super::words;

/// The top of the first row, and the height of a row with the space above it.
const TOP: f64 = 4.0;
const ROW_HEIGHT: f64 = 32.0;
const ROW_SPACE: f64 = 6.0;

/// The space below the rows for the labels of the sizes.
const LABELS_HEIGHT: f64 = 26.0;

/// The width of a bar, at most, and as a share of the distance between two bars.
const BAR_MAX_WIDTH: f64 = 20.0;
const BAR_SHARE: f64 = 0.66;

/// What can become of a byte.
struct Part {
    class: &'static str,
    label: &'static str,
    of: fn(&Cell) -> Option<f64>,
}

/// The parts of a bar, from the bottom to the top.
const PARTS: [Part; 4] = [
    Part {
        class: "zero",
        label: "not copied",
        of: |cell| cell.zero_copy_share,
    },
    Part {
        class: "mapped",
        label: "mapped",
        of: |cell| cell.mapped_share,
    },
    Part {
        class: "kernel",
        label: "copied by the kernel after all",
        of: |cell| cell.kernel_copied_share,
    },
    Part {
        class: "copied",
        label: "copied",
        of: |cell| cell.copied_share,
    },
];

impl Part {
    fn share(&self, cell: &Cell) -> Option<f64> {
        let share = (self.of)(cell).filter(|share| share.is_finite())?;
        Some(share.clamp(0.0, 1.0))
    }
}

/// Draws the shares of all cells of a panel. `id` is a name that no other panel has.
pub(super) fn plot(panel: &Panel<'_>, frame: &Frame, id: &str) -> Markup {
    let has_shares = |series: &&Series<'_>| {
        let mut cells = series.cells.iter();
        cells.any(|cell| PARTS.iter().any(|part| part.share(cell).is_some()))
    };
    let rows: Vec<&Series<'_>> = panel
        .series
        .iter()
        .chain(&panel.auto)
        .filter(has_shares)
        .collect();
    let bottom = TOP + ROW_HEIGHT * rows.len() as f64;
    let hatch = format!("hatch-{id}");
    html! {
        figure class="plot" {
            figcaption {
                strong { "What became of the bytes" }
                span class="unit" { "shares of the bytes, by mechanism and size" }
            }
            @if rows.is_empty() {
                p class="absent" { "Not measured in this run." }
            } @else {
                svg viewBox=(Frame::view_box(bottom + LABELS_HEIGHT)) role="img" {
                    title { (panel.title) ": what became of the bytes" }
                    desc { (description(&rows)) }
                    defs {
                        pattern id=(hatch) width="4" height="4" patternUnits="userSpaceOnUse"
                            patternTransform="rotate(45)" {
                            rect class="hatch-ground" width="4" height="4" {}
                            rect class="hatch-stripe" width="2" height="4" {}
                        }
                    }
                    @for (index, series) in rows.iter().enumerate() {
                        (row(series, frame, &panel.sizes, TOP + ROW_HEIGHT * index as f64, &hatch))
                    }
                    (frame.size_labels(&panel.sizes, bottom))
                }
                (legend())
            }
        }
    }
}

/// What the bars show, for those who cannot see them.
fn description(rows: &[&Series<'_>]) -> String {
    let sentence = |series: &&Series<'_>| {
        let mut cells = series.cells.iter();
        let cell = cells.rfind(|cell| cell.refused.is_none())?;
        let size = words::size(cell.size);
        Some(format!("{} at {size}: {}.", series.name, shares(cell)))
    };
    let sentences: Vec<String> = rows.iter().filter_map(sentence).collect();
    sentences.join(" ")
}

/// The shares of a cell that are not 0, in words.
fn shares(cell: &Cell) -> String {
    let word = |part: &Part| {
        let share = part.share(cell).filter(|share| *share > 0.0)?;
        Some(format!("{} {}", words::percent(share), part.label))
    };
    let words: Vec<String> = PARTS.iter().filter_map(word).collect();
    match words.is_empty() {
        true => "not known".to_owned(),
        false => words.join(", "),
    }
}

fn row(series: &Series<'_>, frame: &Frame, sizes: &[u64], top: f64, hatch: &str) -> Markup {
    let step = match sizes {
        [] | [_] => BAR_MAX_WIDTH,
        [first, .., last] => {
            let length = frame.sizes.at(*last as f64) - frame.sizes.at(*first as f64);
            length / (sizes.len() - 1) as f64
        }
    };
    let width = (step * BAR_SHARE).min(BAR_MAX_WIDTH);
    let (top, bottom) = (top + ROW_SPACE, top + ROW_HEIGHT);
    html! {
        line class="grid" x1=(px(LEFT)) x2=(px(frame.right)) y1=(px(bottom)) y2=(px(bottom)) {}
        @for cell in series.cells.iter().filter(|cell| cell.refused.is_none()) {
            @let left = frame.sizes.at(cell.size as f64) - width / 2.0;
            g class="bar" {
                title { (series.name) ", " (words::size(cell.size)) ": " (shares(cell)) }
                rect class="empty" x=(px(left)) y=(px(top)) width=(px(width))
                    height=(px(bottom - top)) {}
                (bar(cell, left, width, top, bottom, hatch))
            }
        }
        text class="name" x=(px(frame.right + 8.0)) y=(px((top + bottom) / 2.0 + 4.0)) {
            (short(series.name))
            @if short(series.name) != series.name { title { (series.name) } }
        }
    }
}

fn bar(cell: &Cell, left: f64, width: f64, top: f64, bottom: f64, hatch: &str) -> Markup {
    let mut from = bottom;
    html! {
        @for part in &PARTS {
            @if let Some(share) = part.share(cell).filter(|share| *share > 0.0) {
                @let to = {
                    let start = from;
                    // Shares that add up to more than 1, by rounding, end at the top.
                    from = (from - share * (bottom - top)).max(top);
                    (from, start - from)
                };
                rect class=(part.class) x=(px(left)) y=(px(to.0)) width=(px(width))
                    height=(px(to.1)) fill=[(part.class == "kernel").then(|| format!("url(#{hatch})"))] {}
            }
        }
    }
}

fn legend() -> Markup {
    html! {
        ul class="legend parts" {
            @for part in &PARTS {
                li { span class={ "swatch " (part.class) } {} (part.label) }
            }
        }
    }
}
