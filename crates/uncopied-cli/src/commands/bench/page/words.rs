//! The words and numbers of the page.

use super::super::results::{Network, Setting, Spread};

/// The name of the cells that measure what the plan chooses.
pub(super) const AUTO: &str = "auto";

/// The title of a direction, as a heading.
pub(super) fn direction_title(direction: &str) -> &str {
    match direction {
        "file_to_tcp" => "File to TCP socket",
        "memory_to_tcp" => "Memory to TCP socket",
        "tcp_to_memory" => "TCP socket to memory",
        "tcp_to_file" => "TCP socket to file",
        "tcp_to_null" => "TCP socket to /dev/null",
        "tcp_to_tcp" => "TCP socket to TCP socket",
        other => other,
    }
}

/// What the cells of a direction measure.
pub(super) fn direction_about(direction: &str) -> &'static str {
    match direction {
        "file_to_tcp" => "A file in the page cache is sent over TCP.",
        "memory_to_tcp" => "Memory is sent over TCP.",
        "tcp_to_memory" => "Bytes are received over TCP into memory.",
        "tcp_to_file" => "Bytes are received over TCP into a file.",
        "tcp_to_null" => "Bytes are received over TCP into /dev/null.",
        "tcp_to_tcp" => "Bytes are relayed from one TCP connection to another.",
        _ => "",
    }
}

/// Between what the bytes moved.
pub(super) fn network(setting: &Setting) -> String {
    match setting.network {
        Network::Loopback => "loopback".to_owned(),
        Network::Netns => "veth between two network namespaces".to_owned(),
        Network::Remote => match &setting.peer {
            Some(peer) => format!("a network, to {peer}"),
            None => "a network, to another machine".to_owned(),
        },
    }
}

/// A number of bytes in the largest binary unit that divides it, such as `64 KiB`.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    for (unit, shift) in UNITS {
        let in_unit = bytes >> shift;
        if in_unit > 0 && in_unit << shift == bytes {
            return format!("{in_unit} {unit}");
        }
    }
    format!("{bytes} B")
}

/// A range of sizes that were measured one after the other.
pub(super) fn sizes(first: u64, last: u64) -> String {
    if first == last {
        size(first)
    } else {
        format!("{} to {}", size(first), size(last))
    }
}

/// An amount of memory, rounded.
pub(super) fn memory(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

/// What stands where there is no figure.
pub(super) const ABSENT: &str = "–";

/// A number with three significant digits.
pub(super) fn number(value: f64) -> String {
    if !value.is_finite() {
        return ABSENT.to_owned();
    }
    let digits_before_point = value.abs().max(1e-9).log10().floor() as i32 + 1;
    let decimals = (3 - digits_before_point).clamp(0, 6) as usize;
    format!("{value:.decimals$}")
}

/// A median, with the extremes in parentheses.
pub(super) fn spread(spread: Spread) -> String {
    format!(
        "{} ({}–{})",
        number(spread.median),
        number(spread.min),
        number(spread.max)
    )
}

/// A share as a percentage.
pub(super) fn percent(share: f64) -> String {
    format!("{:.0} %", share * 100.0)
}

/// By how much a cost is higher than another one. Tenths of a percent are told, and rounded up,
/// where they decide whether the cost is too high.
pub(super) fn excess(excess: f64) -> String {
    match excess < 0.2 {
        // The subtraction keeps errors of floating point from being rounded up.
        true => format!("{:.1} %", (excess * 1000.0 - 1e-6).ceil() / 10.0),
        false => percent(excess),
    }
}

/// Words as in a sentence: `a`, `a and b`, `a, b and c`.
pub(super) fn list(words: &[String]) -> String {
    match words {
        [] => String::new(),
        [word] => word.clone(),
        [start @ .., last] => format!("{} and {last}", start.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_largest_unit_that_divides_them() {
        let texts = [1, 1000, 1024, 1536, 65_536, 1 << 20, 3 << 30].map(size);
        assert_eq!(
            texts,
            [
                "1 B", "1000 B", "1 KiB", "1536 B", "64 KiB", "1 MiB", "3 GiB"
            ]
        );
    }

    #[test]
    fn an_excess_that_is_just_too_high_does_not_look_allowed() {
        assert_eq!(
            [0.1001, 0.104, 0.312].map(excess),
            ["10.1 %", "10.4 %", "31 %"]
        );
    }

    #[test]
    fn numbers_have_three_significant_digits() {
        let texts = [0.0, 0.001_234, 0.1, 7.518, 14.03, 1234.5, f64::NAN].map(number);
        assert_eq!(
            texts,
            ["0.000000", "0.00123", "0.100", "7.52", "14.0", "1234", "–"]
        );
    }
}
