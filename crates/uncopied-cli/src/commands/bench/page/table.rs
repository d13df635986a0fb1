//! The table of all figures of a panel.

use maud::{Markup, html};

use super::super::results::{Cell, Spread};
use super::panel::Panel;
use super::words::{self, ABSENT};

/// The table of a panel, which is closed at first.
pub(super) fn table(panel: &Panel<'_>) -> Markup {
    let mut cells = panel.cells.clone();
    cells.sort_by_key(|cell| cell.size);
    html! {
        details {
            summary { "All figures: " (cells.len()) " rows" }
            div class="scroll" tabindex="0" role="region"
                aria-label={ (panel.title) ": all figures" } {
                table {
                    (head())
                    tbody {
                        @for (index, cell) in cells.iter().enumerate() {
                            @let is_first = index == 0 || cells[index - 1].size != cell.size;
                            (row(cell, is_first))
                        }
                    }
                }
            }
        }
    }
}

fn head() -> Markup {
    html! {
        thead {
            tr {
                th scope="col" { "size" }
                th scope="col" { "mechanism" }
                th scope="col" { "GB/s" }
                th scope="col" { "sender CPU s/GB" }
                th scope="col" { "receiver CPU s/GB" }
                th scope="col" { "not copied" }
                th scope="col" { "mapped" }
                th scope="col" { "copied by the kernel" }
                th scope="col" { "copied" }
                th scope="col" { "calls per MB" }
                th scope="col" { "µs per call: p50 / p99 / max" }
                th scope="col" { "limited by: sending / receive window / send buffer" }
                th scope="col" { "remarks" }
            }
        }
    }
}

fn row(cell: &Cell, is_first: bool) -> Markup {
    let spread = |value: Option<Spread>| value.map_or(ABSENT.to_owned(), words::spread);
    let share = |value: Option<f64>| value.map_or(ABSENT.to_owned(), words::percent);
    let shares = [
        cell.zero_copy_share,
        cell.mapped_share,
        cell.kernel_copied_share,
        cell.copied_share,
    ];
    html! {
        tr class=[is_first.then_some("first")] {
            th scope="row" { (words::size(cell.size)) }
            td class="text" { (cell.mechanism) }
            td { (spread(cell.gb_per_second)) }
            td { (spread(cell.sender_cpu_s_per_gb)) }
            td { (spread(cell.receiver_cpu_s_per_gb)) }
            @for value in shares { td { (share(value)) } }
            td { (cell.calls_per_mb.map_or(ABSENT.to_owned(), words::number)) }
            td { (call_times(cell)) }
            td { (limits(cell)) }
            td class="text" { (remarks(cell)) }
        }
    }
}

fn call_times(cell: &Cell) -> String {
    cell.call_us.map_or(ABSENT.to_owned(), |times| {
        let [p50, p99, max] = [times.p50, times.p99, times.max].map(words::number);
        format!("{p50} / {p99} / {max}")
    })
}

fn limits(cell: &Cell) -> String {
    cell.limits.map_or(ABSENT.to_owned(), |limits| {
        let shares = [limits.busy, limits.receive_window, limits.send_buffer];
        shares.map(words::percent).join(" / ")
    })
}

fn remarks(cell: &Cell) -> Markup {
    html! {
        @if let Some(reason) = &cell.refused { "refused: " (reason) }
        @if !cell.chosen.is_empty() { "moved by " (words::list(&cell.chosen)) }
        @if cell.is_wide { span class="wide" { "wide spread" } }
    }
}
