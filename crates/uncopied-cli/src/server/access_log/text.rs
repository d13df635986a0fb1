//! Pieces of log lines: formats, times, addresses, and bytes of the peer. Such bytes are escaped,
//! so that a client can neither forge a line nor send control sequences to a terminal that shows
//! the log.

use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::time::{SystemTime, UNIX_EPOCH};

use uncopied_http::Address;

use crate::server::SecondText;

/// The format of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// One line of text, with the time as Apache and nginx write it.
    Text,
    /// One JSON object per line.
    Json,
    /// What a person at a terminal wants to see.
    Short,
}

/// The data of one log line. It borrows what the connection has, so that a line needs no memory of
/// its own before it is formatted.
pub(crate) trait LogLine {
    /// Appends the log line to `out`, without a line feed at its end.
    fn write(&self, format: LineFormat, out: &mut Vec<u8>);
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Writes the address of a client without its port. A client that reaches a socket for both IPv6
/// and IPv4 over IPv4 has an address like `::ffff:192.0.2.1`, which is written as IPv4, as it would
/// be for a socket of IPv4 alone.
pub(crate) struct Host<'a>(pub(crate) &'a Address);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Address::Tcp(address) => address.ip().to_canonical().fmt(f),
            other => other.fmt(f),
        }
    }
}

/// Appends formatted text.
pub(crate) fn put(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

thread_local! {
    static TEXT_TIME: RefCell<SecondText> = const { RefCell::new(SecondText::new()) };
}

/// Appends the time in the combined format.
pub(crate) fn text_time(out: &mut Vec<u8>, at: SystemTime) {
    let second = at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    TEXT_TIME.with_borrow_mut(|last| {
        last.append(second, out, |text| {
            let time = CalendarTime::of(at);
            let month = MONTHS[usize::from(time.month - 1)];
            put(
                text,
                format_args!(
                    "{:02}/{month}/{:04}:{:02}:{:02}:{:02} +0000",
                    time.day, time.year, time.hour, time.minute, time.second
                ),
            );
        });
    });
}

/// Appends the time as a JSON string, in the format of RFC 3339.
pub(crate) fn json_time(out: &mut Vec<u8>, at: SystemTime) {
    let time = CalendarTime::of(at);
    put(
        out,
        format_args!(
            "\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z\"",
            time.year, time.month, time.day, time.hour, time.minute, time.second, time.millis
        ),
    );
}

/// Appends bytes, escaped as in nginx and Apache: quotes, backslashes and everything that is not
/// printable ASCII become `\xHH`.
pub(crate) fn text_escaped(out: &mut Vec<u8>, mut bytes: &[u8]) {
    let is_escaped = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..0x20 | 0x7f..);
    while let Some(at) = bytes.iter().position(is_escaped) {
        out.extend_from_slice(&bytes[..at]);
        put(out, format_args!("\\x{:02X}", bytes[at]));
        bytes = &bytes[at + 1..];
    }
    out.extend_from_slice(bytes);
}

/// Appends a JSON string. Bytes that are not UTF-8 become U+FFFD. All control characters are
/// escaped, even those that JSON allows (DEL and U+0080 to U+009F), because terminals interpret
/// them.
pub(crate) fn json_string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(b'"');
    for character in String::from_utf8_lossy(bytes).chars() {
        match character {
            '"' | '\\' => {
                out.push(b'\\');
                put(out, format_args!("{character}"));
            }
            _ if character.is_control() => {
                put(out, format_args!("\\u{:04x}", u32::from(character)));
            }
            _ => put(out, format_args!("{character}")),
        }
    }
    out.push(b'"');
}

/// A date and time in UTC, in the Gregorian calendar.
#[derive(Debug, PartialEq, Eq)]
struct CalendarTime {
    year: u64,
    month: u8,
    day: u64,
    hour: u64,
    minute: u64,
    second: u64,
    millis: u32,
}

impl CalendarTime {
    /// Converts a system time. A time before the Unix epoch becomes the epoch.
    fn of(time: SystemTime) -> Self {
        let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, seconds) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        // Count in years that begin on 1 March, so that a leap day is the last day of its year and
        // does not shift any later day. There are 719,468 days between 0000-03-01 and 1970-01-01.
        // An era is 400 years, which have 146,097 days.
        let shifted = days + 719_468;
        let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        // Starting in March, every five months have 153 days in total, so a month has 153/5 days on
        // average.
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = (month_from_march + 2) % 12 + 1;
        Self {
            year: era * 400 + year_of_era + u64::from(month <= 2),
            month: month as u8,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            hour: seconds / 3_600,
            minute: seconds / 60 % 60,
            second: seconds % 60,
            millis: since.subsec_millis(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Compares every day of 150 years, starting in 1970.
    #[test]
    fn the_calendar_agrees_with_httpdate() {
        for day in 0..55_000 {
            let at = UNIX_EPOCH + Duration::from_secs(day * 86_400 + day);
            let time = CalendarTime::of(at);
            let month = MONTHS[usize::from(time.month - 1)];
            let ours = format!(
                "{:02} {month} {:04} {:02}:{:02}:{:02} GMT",
                time.day, time.year, time.hour, time.minute, time.second
            );
            assert!(httpdate::fmt_http_date(at).ends_with(&ours), "{ours}");
        }
    }
}
