//! A plot: one figure by size, with one line for each mechanism.

use maud::{Markup, html};

use super::super::results::{Cell, Spread};
use super::axis::{Axis, labelled_sizes, px};
use super::panel::{Metric, Panel, Series};
use super::words;

/// The size of a plot in units of the SVG. At the least width of a window, 360 pixels, a unit is
/// about a pixel, so that the text is still readable there.
const WIDTH: f64 = 336.0;
const HEIGHT: f64 = 264.0;

/// Where the plots of a panel begin on the left, and end at the top and the bottom.
pub(super) const LEFT: f64 = 36.0;
const TOP: f64 = 18.0;
const BOTTOM: f64 = HEIGHT - 26.0;

/// The least distance between two labels of sizes, and between the labels of two lines.
const SIZE_LABEL_DISTANCE: f64 = 46.0;
const LINE_LABEL_DISTANCE: f64 = 13.0;

/// The width of a character of a label, on average, in the widest of the usual fonts. Longer labels
/// than these are cut.
const CHARACTER_WIDTH: f64 = 7.0;
const MAX_LABEL_CHARACTERS: usize = 16;

/// The places that the plots of a panel have in common.
pub(super) struct Frame {
    pub(super) sizes: Axis,
    /// Where lines end and their labels begin.
    pub(super) right: f64,
}

impl Frame {
    pub(super) fn of(panel: &Panel<'_>) -> Self {
        let label = |series: &Series<'_>| short(series.name).chars().count();
        let longest = panel.lines().map(label).max().unwrap_or(0);
        let right = WIDTH - 10.0 - CHARACTER_WIDTH * longest as f64;
        Self {
            sizes: Axis::of_sizes(&panel.sizes, LEFT + 9.0, right - 8.0),
            right,
        }
    }

    /// The attribute `viewBox` of a figure of this height.
    pub(super) fn view_box(height: f64) -> String {
        format!("0 0 {} {}", px(WIDTH), px(height))
    }

    /// The labels of the sizes, below `y`.
    pub(super) fn size_labels(&self, sizes: &[u64], y: f64) -> Markup {
        html! {
            @for size in labelled_sizes(&self.sizes, sizes, SIZE_LABEL_DISTANCE) {
                @let x = px(self.sizes.at(size as f64));
                line class="tick" x1=(x) x2=(x) y1=(px(y)) y2=(px(y + 4.0)) {}
                text class="tick" x=(x) y=(px(y + 16.0)) text-anchor="middle" {
                    (words::size(size))
                }
            }
        }
    }
}

/// The name of a line, cut if it is too long for its place.
pub(super) fn short(name: &str) -> String {
    if name.chars().count() <= MAX_LABEL_CHARACTERS {
        return name.to_owned();
    }
    let start: String = name.chars().take(MAX_LABEL_CHARACTERS - 1).collect();
    format!("{start}…")
}

/// Draws the plot of one figure, or says that it was not measured.
pub(super) fn plot(panel: &Panel<'_>, frame: &Frame, metric: Metric) -> Markup {
    let spreads: Vec<[f64; 3]> = panel
        .lines()
        .flat_map(|series| &series.cells)
        .filter_map(|cell| metric.of(cell))
        .map(|spread| [spread.min, spread.median, spread.max])
        .collect();
    let values = Axis::of_values(&spreads, BOTTOM, TOP);
    html! {
        figure class="plot" {
            figcaption {
                strong { (metric.title()) }
                span class="unit" {
                    (metric.unit()) @if values.is_log { ", logarithmic" } ", " (metric.aim())
                }
            }
            @if spreads.is_empty() {
                p class="absent" { "Not measured in this run." }
            } @else {
                svg viewBox=(Frame::view_box(HEIGHT)) role="img" {
                    title { (panel.title) ": " (metric.title()) ", " (metric.unit()) }
                    desc { (description(panel, metric)) }
                    (grid(frame, &values, &panel.sizes))
                    (thresholds(panel, frame, metric))
                    @for series in panel.lines() {
                        (line(series, frame, &values, metric))
                    }
                    (line_labels(panel, frame, &values, metric))
                }
            }
        }
    }
}

/// What a plot shows, for those who cannot see it.
fn description(panel: &Panel<'_>, metric: Metric) -> String {
    let ends = |series: &Series<'_>| {
        let mut points = series
            .cells
            .iter()
            .filter_map(|cell| Some((cell.size, metric.of(cell)?.median)));
        let first = points.next()?;
        let last = points.next_back().unwrap_or(first);
        Some(format!(
            "{}: {} at {}, {} at {}.",
            series.name,
            words::number(first.1),
            words::size(first.0),
            words::number(last.1),
            words::size(last.0)
        ))
    };
    let lines: Vec<String> = panel.lines().filter_map(ends).collect();
    format!(
        "{} in {} by bytes per transfer. {}",
        metric.title(),
        metric.unit(),
        lines.join(" ")
    )
}

fn grid(frame: &Frame, values: &Axis, sizes: &[u64]) -> Markup {
    let (left, right) = (px(LEFT), px(frame.right));
    html! {
        @for value in values.ticks() {
            @let y = values.at(value);
            line class="grid" x1=(left) x2=(right) y1=(px(y)) y2=(px(y)) {}
            text class="tick" x=(px(LEFT - 5.0)) y=(px(y + 3.6)) text-anchor="end" {
                (tick(value))
            }
        }
        line class="base" x1=(left) x2=(right) y1=(px(BOTTOM)) y2=(px(BOTTOM)) {}
        (frame.size_labels(sizes, BOTTOM))
    }
}

/// The label of a value on an axis.
fn tick(value: f64) -> String {
    // Ticks are round numbers, so that rounding only removes errors of floating point.
    format!("{}", (value * 1e6).round() / 1e6)
}

/// Lines where the tuning has its thresholds, with letters that the text below explains.
fn thresholds(panel: &Panel<'_>, frame: &Frame, metric: Metric) -> Markup {
    let mut last_x = f64::NEG_INFINITY;
    let mut shift = 0.0;
    html! {
        @if metric == panel.cost {
            @for (letter, x) in threshold_places(panel, frame) {
                @let badge = {
                    // Thresholds at the same place have their letters side by side.
                    shift = if x - last_x < 1.0 { shift + 15.0 } else { 0.0 };
                    last_x = x;
                    x + shift
                };
                g class="threshold" {
                    line x1=(px(x)) x2=(px(x)) y1=(px(TOP - 3.0)) y2=(px(BOTTOM)) {}
                    circle cx=(px(badge)) cy=(px(TOP - 10.0)) r="7" {}
                    text x=(px(badge)) y=(px(TOP - 6.4)) text-anchor="middle" { (letter) }
                }
            }
        }
    }
}

fn threshold_places(panel: &Panel<'_>, frame: &Frame) -> Vec<(char, f64)> {
    let mut places: Vec<(char, f64)> = ('A'..='Z')
        .zip(&panel.thresholds)
        .filter(|(_, threshold)| threshold.measured)
        .filter_map(|(letter, threshold)| Some((letter, threshold.from_bytes? as f64)))
        .filter(|(_, bytes)| frame.sizes.contains(*bytes))
        .map(|(letter, bytes)| (letter, frame.sizes.at(bytes)))
        .collect();
    places.sort_by(|a, b| a.1.total_cmp(&b.1));
    places
}

/// The line of a mechanism, with its points and whiskers.
fn line(series: &Series<'_>, frame: &Frame, values: &Axis, metric: Metric) -> Markup {
    let place = |cell: &Cell| {
        let spread = metric.of(cell)?;
        Some((frame.sizes.at(cell.size as f64), values.at(spread.median)))
    };
    let path = path(series.cells.iter().map(|cell| place(cell)));
    html! {
        g class=(series.look.class()) {
            @if let Some(path) = path { path class=(series.look.line_class()) d=(path) {} }
            @for cell in &series.cells {
                @if let (Some(spread), Some(at)) = (metric.of(cell), place(cell)) {
                    (point(series, cell, spread, values, at, metric))
                }
            }
        }
    }
}

/// A path through places, interrupted where one is missing. `None` if no two places are joined.
fn path(places: impl Iterator<Item = Option<(f64, f64)>>) -> Option<String> {
    let mut path = String::new();
    let mut is_pen_down = false;
    let mut has_line = false;
    for place in places {
        if let Some((x, y)) = place {
            has_line |= is_pen_down;
            path.push_str(if is_pen_down { "L" } else { "M" });
            path.push_str(&format!("{} {}", px(x), px(y)));
        }
        is_pen_down = place.is_some();
    }
    has_line.then_some(path)
}

fn point(
    series: &Series<'_>,
    cell: &Cell,
    spread: Spread,
    values: &Axis,
    (x, y): (f64, f64),
    metric: Metric,
) -> Markup {
    html! {
        g class="point" {
            title {
                (series.name) ", " (words::size(cell.size)) ": " (words::spread(spread)) " "
                (metric.unit())
                @if !cell.chosen.is_empty() { ", moved by " (words::list(&cell.chosen)) }
                @if cell.is_wide { " (the rounds differ too much to trust this)" }
            }
            line class="whisker" x1=(px(x)) x2=(px(x))
                y1=(px(values.clamped(spread.min))) y2=(px(values.clamped(spread.max))) {}
            (series.look.marker(x, y, cell.is_wide))
        }
    }
}

/// The names of the lines, where they end on the right, moved apart if they would overlap.
fn line_labels(panel: &Panel<'_>, frame: &Frame, values: &Axis, metric: Metric) -> Markup {
    let end = |series: &Series<'_>| {
        let mut cells = series.cells.iter().rev();
        let (cell, spread) = cells.find_map(|cell| Some((*cell, metric.of(cell)?)))?;
        Some((frame.sizes.at(cell.size as f64), values.at(spread.median)))
    };
    let mut labels: Vec<(&Series<'_>, f64, f64)> = panel
        .lines()
        .filter_map(|series| end(series).map(|(x, y)| (series, x, y)))
        .collect();
    labels.sort_by(|a, b| a.2.total_cmp(&b.2));
    let wanted: Vec<f64> = labels.iter().map(|label| label.2).collect();
    let places = spread_apart(&wanted, TOP, BOTTOM - 2.0, LINE_LABEL_DISTANCE);
    html! {
        @for ((series, x, y), label_y) in labels.into_iter().zip(places) {
            g class=(series.look.class()) {
                polyline class="leader" points=(format!(
                    "{},{} {},{} {},{}",
                    px(x + 4.0), px(y), px(frame.right - 1.0), px(label_y),
                    px(frame.right + 5.0), px(label_y)
                )) {}
                text class="name" x=(px(frame.right + 8.0)) y=(px(label_y + 3.8)) {
                    (short(series.name))
                    @if short(series.name) != series.name { title { (series.name) } }
                }
            }
        }
    }
}

/// Moves ascending places apart, as little as is needed for the distance, between two limits. If
/// there is not enough room, the distance is shorter.
fn spread_apart(wanted: &[f64], low: f64, high: f64, distance: f64) -> Vec<f64> {
    let gaps = wanted.len().saturating_sub(1).max(1);
    let distance = distance.min((high - low) / gaps as f64);
    let mut places: Vec<f64> = wanted.to_vec();
    let mut least = low;
    for place in &mut places {
        *place = place.max(least);
        least = *place + distance;
    }
    let mut most = high;
    for place in places.iter_mut().rev() {
        *place = place.min(most);
        most = *place - distance;
    }
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_move_apart_within_the_plot() {
        let close = [50.0, 50.0, 51.0, 99.0, 100.0];
        let places = spread_apart(&close, 0.0, 100.0, 12.0);
        assert!(
            places.windows(2).all(|pair| pair[1] - pair[0] > 11.99),
            "{places:?}"
        );
        assert!(places[0] >= 0.0 && places[4] <= 100.0);
        // There is no room for the distance.
        let many = spread_apart(&[100.0; 21], 0.0, 100.0, 12.0);
        assert!(
            many.windows(2).all(|pair| pair[1] - pair[0] > 4.99),
            "{many:?}"
        );
        assert!(many[0] > -0.01 && many[20] <= 100.0);
        assert_eq!(spread_apart(&[], 0.0, 100.0, 12.0), [0.0; 0]);
        assert_eq!(spread_apart(&[70.0], 0.0, 100.0, 12.0), [70.0]);
    }

    #[test]
    fn paths_are_interrupted_where_a_place_is_missing() {
        let at = |x| Some((x, 1.0));
        let joined = path([at(1.0), at(2.0), None, at(4.0), None, at(6.0), at(7.0)].into_iter());
        assert_eq!(joined.as_deref(), Some("M1 1L2 1M4 1M6 1L7 1"));
        assert_eq!(path([at(1.0), None, at(3.0)].into_iter()), None);
    }

    #[test]
    fn long_names_are_cut() {
        assert_eq!(short("msg_zerocopy"), "msg_zerocopy");
        assert_eq!(short("region-of-huge-pages"), "region-of-huge-…");
    }
}
