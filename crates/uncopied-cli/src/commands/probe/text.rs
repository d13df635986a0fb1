//! The report for people: columns that fit into 80 characters.

use std::fmt::Write as _;

use super::Probe;
use super::finding::Finding;
use super::interfaces::{Amount, InterfaceReport, header_split_word, word};
use super::path::{PathReport, TriedWith};

/// The width of the report, in characters.
const WIDTH: usize = 80;

/// The column at which the reasons of findings begin, after the name and the status.
const REASON_COLUMN: usize = 24;

/// The column at which the values of settings begin.
const VALUE_COLUMN: usize = 4;

/// Returns the whole report.
pub(super) fn report(probe: &Probe) -> String {
    let mut text = String::new();
    heading(&mut text, probe);
    text.push_str("\nWHAT WORKS (tried over loopback)\n\n");
    for row in &probe.rows {
        finding(&mut text, &row.key.key(), &row.finding);
    }
    for interface in &probe.interfaces {
        describe_interface(&mut text, interface);
    }
    if let Some(error) = &probe.interfaces_error {
        text.push_str("\nINTERFACES\n\n");
        wrap(&mut text, "  ", 2, error);
    }
    describe_path(&mut text, &probe.path);
    text.push_str("\nSETTINGS\n\n");
    for setting in &probe.settings {
        let value = setting.value.as_deref().unwrap_or("(none)");
        wrap(
            &mut text,
            "  ",
            VALUE_COLUMN,
            &format!("{} = {value}", setting.name),
        );
        wrap(&mut text, "    ", VALUE_COLUMN, setting.limits);
    }
    privileges(&mut text, probe);
    text
}

fn heading(text: &mut String, probe: &Probe) {
    let filter = match probe.process.seccomp_filter {
        true => ", with a seccomp filter",
        false => "",
    };
    let namespace = match probe.process.initial_user_namespace {
        true => "",
        false => " of a user namespace",
    };
    let line = format!(
        "uncopied {} on Linux {} ({}, pages of {} bytes), as user {}{namespace}{filter}",
        probe.version, probe.kernel, probe.architecture, probe.page_bytes, probe.process.user
    );
    wrap(text, "", 2, &line);
}

/// Writes a name, its status, why, and what would change it.
fn finding(text: &mut String, name: &str, finding: &Finding) {
    let start = format!("  {name:<14} {:<6}", finding.status.word());
    wrap(
        text,
        &format!("{start:<REASON_COLUMN$}"),
        REASON_COLUMN,
        &finding.why,
    );
    for change in &finding.change {
        let start = format!("{:REASON_COLUMN$}> ", "");
        wrap(text, &start, REASON_COLUMN + 2, change);
    }
}

fn describe_interface(text: &mut String, interface: &InterfaceReport) {
    let _ = write!(text, "\nINTERFACE {}\n\n", interface.name);
    let driver = interface.driver.as_deref().unwrap_or("none");
    let state = if interface.is_up { "up" } else { "down" };
    let mut line = |name: &str, value: &str| {
        let start = format!("  {name:<14} ");
        wrap(
            text,
            &format!("{start:<REASON_COLUMN$}"),
            REASON_COLUMN,
            value,
        );
    };
    line("driver", driver);
    line("state", state);
    let payload = match (
        interface.page_payload_bytes_ipv4,
        interface.page_payload_bytes_ipv6,
    ) {
        (0, 0) => "no payload of a whole page fits".to_owned(),
        (v4, v6) => format!("payloads of whole pages have up to {v4} bytes (IPv6: {v6})"),
    };
    line("mtu", &format!("{}; {payload}", interface.mtu));
    match &interface.offloads {
        None => line("offloads", "the kernel does not tell"),
        Some(offloads) => {
            line("scatter-gather", word(offloads.scatter_gather));
            let (send, receive) = (offloads.send_checksum, offloads.receive_checksum);
            line(
                "checksums",
                &format!("send {}, receive {}", word(send), word(receive)),
            );
            line(
                "segmentation",
                &format!("TSO {}, GSO {}", word(offloads.tso), word(offloads.gso)),
            );
            let (gro, hardware) = (offloads.gro, offloads.hardware_gro);
            line(
                "merging",
                &format!("GRO {}, hardware GRO {}", word(gro), word(hardware)),
            );
            line("TLS offload", word(offloads.tls_send));
        }
    }
    let mut split = header_split_word(interface.header_split).to_owned();
    if let Some(threshold) = interface.header_split_threshold {
        let _ = write!(split, ", for packets of more than {threshold} bytes");
    }
    line("header split", &split);
    let pair = |receive, send| format!("receive {}, send {}", amount(receive), amount(send));
    line("rings", &pair(interface.rx_ring, interface.tx_ring));
    line("queues", &pair(interface.rx_queues, interface.tx_queues));
    finding(text, "zcrx", &interface.zcrx);
    if interface.is_loopback {
        return;
    }
    text.push_str("  To receive without a copy:\n");
    for advice in &interface.advice {
        wrap(text, "  - ", 4, &advice.explanation);
        for command in &advice.commands {
            wrap(text, "    > ", 6, command);
        }
    }
}

/// Returns a number, and the largest possible one.
fn amount(amount: Amount) -> String {
    match (amount.current, amount.max) {
        (Some(current), Some(max)) => format!("{current} of at most {max}"),
        (Some(current), None) => current.to_string(),
        (None, _) => "none".to_owned(),
    }
}

fn describe_path(text: &mut String, path: &PathReport) {
    text.push_str("\nPATH ");
    text.extend(path.path.chars().flat_map(|c| {
        let escaped = c.is_control().then(|| c.escape_default());
        let plain = (!c.is_control()).then_some(c);
        escaped.into_iter().flatten().chain(plain)
    }));
    text.push_str("\n\n");
    let kind = path.file_system.as_deref().unwrap_or("unknown");
    let mut place = format!("file system {kind}");
    if let (Some(point), Some(source)) = (&path.mount_point, &path.source) {
        let _ = write!(place, ", {source} mounted at {point}");
    }
    match path.tried_with {
        TriedWith::TemporaryFile => place.push_str("; tried with a temporary file"),
        TriedWith::File => place.push_str("; tried with this file, which was only read"),
        TriedWith::Nothing => {}
    }
    wrap(text, "  ", 2, &place);
    for sentence in [path.note, path.obstacle.as_deref()].into_iter().flatten() {
        wrap(text, "  ", 2, sentence);
    }
    for check in &path.checks {
        finding(text, check.key, &check.finding);
    }
}

fn privileges(text: &mut String, probe: &Probe) {
    text.push_str("\nWHAT ROOT WOULD ADD\n\n");
    let missing = &probe.process.missing_capabilities;
    if missing.is_empty() {
        text.push_str("  nothing: this process has every capability that matters\n");
    }
    for capability in missing {
        let start = format!("  {:<17} ", capability.name);
        wrap(text, &start, 20, capability.adds);
    }
}

/// Writes words after `start`, in lines of at most [`WIDTH`] characters. Further lines begin at
/// the column `indent`. A word that is longer than a line gets a line of its own.
fn wrap(text: &mut String, start: &str, indent: usize, words: &str) {
    let mut line = start.to_owned();
    let mut is_empty = true;
    for word in words.split(' ').filter(|word| !word.is_empty()) {
        let needed = line.chars().count() + usize::from(!is_empty) + word.chars().count();
        if !is_empty && needed > WIDTH {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
            is_empty = true;
        }
        if !is_empty {
            line.push(' ');
        }
        line.push_str(word);
        is_empty = false;
    }
    text.push_str(line.trim_end());
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_end_between_words() {
        let mut text = String::new();
        wrap(&mut text, "name  ", 6, &"word ".repeat(20));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].len(), 80);
        assert!(lines[0].starts_with("name  word word"));
        assert_eq!(lines[1], format!("      {}", ["word"; 5].join(" ")));
        text.clear();
        wrap(&mut text, "a ", 2, &"x".repeat(100));
        assert_eq!(text, format!("a {}\n", "x".repeat(100)));
    }
}
