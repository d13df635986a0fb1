//! The results for people: a table for each direction, remarks, and the thresholds.

use std::fmt::{self, Write as _};

use clap::ValueEnum as _;
use uncopied_measure::size::size_text;

use super::catalog::Case;
use super::results::{Cell, Network, Results, Spread};
use super::thresholds::{WrongChoice, wrong_choices};
use crate::flags::BenchDirection;

/// The width of the text, in columns.
const WIDTH: usize = 100;

/// A part of the time from which on a limit is named.
const LIMITED_SHARE: f64 = 0.3;

/// Formats the results.
pub(super) fn text(results: &Results, cases: &[Case], remarks: &[String]) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write(&mut text, results, cases, remarks);
    text
}

fn write(out: &mut String, results: &Results, cases: &[Case], remarks: &[String]) -> fmt::Result {
    heading(out, results)?;
    for &direction in BenchDirection::value_variants() {
        table(out, results, direction)?;
    }
    legend(out)?;
    if !remarks.is_empty() {
        writeln!(out, "\nRemarks")?;
        for remark in remarks {
            paragraph(out, remark)?;
        }
    }
    writeln!(out, "\nWhat this setting cannot show")?;
    for sentence in &results.setting.cannot_show {
        paragraph(out, sentence)?;
    }
    thresholds(out, results)?;
    choices(out, results, cases)
}

fn heading(out: &mut String, results: &Results) -> fmt::Result {
    let (machine, setting) = (&results.machine, &results.setting);
    writeln!(
        out,
        "{}, {} CPUs, {}, Linux {}",
        machine.cpu,
        machine.cpus,
        size_text(machine.memory_bytes >> 20 << 20),
        machine.kernel
    )?;
    let between = match setting.network {
        Network::Loopback => "two processes over loopback".to_owned(),
        Network::Netns => "two network namespaces over a veth pair".to_owned(),
        Network::Remote => {
            let peer = setting.peer.as_deref().unwrap_or("another machine");
            format!("this machine and {peer}")
        }
    };
    let cpus = match (setting.sender_cpu, setting.receiver_cpu) {
        (Some(sender), Some(receiver)) => {
            format!("; sender on CPU {sender}, receiver on CPU {receiver}")
        }
        _ => String::new(),
    };
    writeln!(
        out,
        "Between {between}, {}{cpus}; medians of {} rounds of {} s",
        setting.congestion, setting.rounds, setting.seconds_per_cell
    )
}

fn table(out: &mut String, results: &Results, direction: BenchDirection) -> fmt::Result {
    let cells: Vec<&Cell> = results
        .cells
        .iter()
        .filter(|cell| cell.direction == direction.name())
        .collect();
    if cells.is_empty() {
        return Ok(());
    }
    let decisive = match direction.is_sent() {
        true => "sender",
        false => "receiver",
    };
    writeln!(
        out,
        "\n{}: {}\nThe CPU time of the {decisive} decides.\n",
        direction.name(),
        direction.about()
    )?;
    writeln!(
        out,
        "{:<8} {:<16}{:>6}  {:>13}  {:>14}  {:>6} {:>20} limit",
        "", "", "", "CPU s/GB", "% of the bytes", "calls", "µs of a call"
    )?;
    writeln!(
        out,
        "{:<8} {:<16}{:>6}  {:>6} {:>6}  {:>4} {:>4} {:>4}  {:>6} {:>6} {:>6} {:>6}",
        "size",
        "mechanism",
        "GB/s",
        "send",
        "recv",
        "zero",
        "kcpy",
        "map",
        "per MB",
        "p50",
        "p99",
        "max"
    )?;
    let mut size = None;
    for cell in cells {
        let shown = match size.replace(cell.size) == Some(cell.size) {
            true => String::new(),
            false => size_text(cell.size),
        };
        row(out, &shown, cell)?;
    }
    Ok(())
}

fn row(out: &mut String, size: &str, cell: &Cell) -> fmt::Result {
    let mechanism = &cell.mechanism;
    if let Some(why) = &cell.refused {
        let line = format!("{size:<8} {mechanism:<15} refused: {why}");
        return writeln!(out, "{}", shortened(&line));
    }
    let median = |spread: Option<Spread>| spread.map(|it| it.median);
    let percent =
        |share: Option<f64>| share.map_or(String::new(), |it| format!("{:.0}", it * 100.0));
    let number = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), significant);
    let times = cell.call_us;
    let limit = match cell.limits {
        Some(limits) if limits.receive_window > LIMITED_SHARE => "window",
        Some(limits) if limits.send_buffer > LIMITED_SHARE => "buffer",
        _ => "",
    };
    let wide = if cell.is_wide { "~" } else { " " };
    let line = format!(
        "{size:<8} {mechanism:<15}{wide}{:>6}  {:>6} {:>6}  {:>4} {:>4} {:>4}  {:>6} {:>6} {:>6} \
         {:>6} {limit}",
        number(median(cell.gb_per_second)),
        number(median(cell.sender_cpu_s_per_gb)),
        number(median(cell.receiver_cpu_s_per_gb)),
        percent(cell.zero_copy_share),
        percent(cell.kernel_copied_share),
        percent(cell.mapped_share),
        number(cell.calls_per_mb),
        number(times.map(|it| it.p50)),
        number(times.map(|it| it.p99)),
        number(times.map(|it| it.max)),
    );
    writeln!(out, "{}", line.trim_end())
}

fn legend(out: &mut String) -> fmt::Result {
    writeln!(out)?;
    paragraph(
        out,
        "zero: neither copied nor mapped; kcpy: copied by the kernel although a zero-copy mechanism \
         moved them; map: mapped; the rest was copied. calls: system calls of the thread that moves \
         the bytes. µs of a call: of the library, at the measured side; for tcp_to_tcp, from \
         sending a message until it is confirmed. limit: what the sender waited for, the receiver's window or its own send \
         buffer. ~: the rounds differ much. CPU times are those of the whole process, the work of \
         the kernel for it included.",
    )
}

fn thresholds(out: &mut String, results: &Results) -> fmt::Result {
    writeln!(out, "\nThresholds for this machine")?;
    for threshold in &results.thresholds {
        let from = match threshold.from_bytes {
            Some(bytes) => size_text(bytes),
            None => "never".to_owned(),
        };
        let note = match (threshold.measured, threshold.from_bytes) {
            (false, _) => " (default)".to_owned(),
            (true, from) if from == Some(threshold.default_bytes) => " (as the default)".to_owned(),
            (true, _) => format!(" (default: {})", size_text(threshold.default_bytes)),
        };
        let line = format!("{} = {from}{note}. {}", threshold.key, threshold.why);
        paragraph(out, &line)?;
    }
    Ok(())
}

fn choices(out: &mut String, results: &Results, cases: &[Case]) -> fmt::Result {
    let (wrong, looked_at) = wrong_choices(&results.cells, cases);
    if looked_at == 0 {
        return Ok(());
    }
    writeln!(out, "\nWhat the library chooses by itself")?;
    if wrong.is_empty() {
        let line = format!(
            "In all {looked_at} cases, it takes at most 1.1 times the CPU time of the best \
             mechanism."
        );
        return paragraph(out, &line);
    }
    let line = format!(
        "In {} of {looked_at} cases, it takes more than 1.1 times the CPU time of the best \
         mechanism:",
        wrong.len()
    );
    paragraph(out, &line)?;
    for WrongChoice {
        case,
        chosen,
        best,
        factor,
        is_clear,
    } in &wrong
    {
        let (direction, size) = (case.direction.name(), size_text(case.size));
        let doubt = match is_clear {
            true => "",
            false => "; the rounds differ by as much",
        };
        let line = format!(
            "- {direction}, {size}: {chosen} takes {factor:.2} times as much as {best}{doubt}."
        );
        paragraph(out, &line)?;
    }
    Ok(())
}

/// Writes lines of at most [`WIDTH`] columns, indented by two.
fn paragraph(out: &mut String, text: &str) -> fmt::Result {
    let mut line = String::from(" ");
    for word in text.split_whitespace() {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            writeln!(out, "{line}")?;
            line = String::from("   ");
        }
        line.push(' ');
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

/// Cuts a line off after [`WIDTH`] columns.
fn shortened(line: &str) -> String {
    match line.chars().count() > WIDTH {
        true => line.chars().take(WIDTH - 1).chain(['…']).collect(),
        false => line.to_owned(),
    }
}

/// Formats a number of any magnitude with at least two significant digits, in at most 6 columns.
fn significant(value: f64) -> String {
    match value {
        _ if value >= 100.0 => format!("{value:.0}"),
        _ if value >= 10.0 => format!("{value:.1}"),
        _ if value >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_into_the_width() {
        let mut out = String::new();
        let long = "word ".repeat(100);
        assert!(paragraph(&mut out, &long).is_ok());
        assert_eq!(out.split_whitespace().count(), 100);
        assert!(out.lines().all(|line| line.chars().count() <= WIDTH));
        assert_eq!(shortened(&long).chars().count(), WIDTH);
    }

    #[test]
    fn numbers_have_two_digits_at_least() {
        let shown = [0.0123, 1.234, 12.34, 1234.5].map(significant);
        assert_eq!(shown, ["0.012", "1.23", "12.3", "1234"]);
    }
}
