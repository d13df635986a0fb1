//! The formats of a log line. Bytes from the peer are escaped, so that a client can neither forge a
//! line nor send control sequences to a terminal that shows the log.

use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use uncopied::Mechanism;
use uncopied_http::Address;

use crate::commands::serve::second_text::SecondText;

/// The format of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineFormat {
    /// The combined format of Apache and nginx, in UTC, followed by the mechanism and the error.
    Text,
    /// One JSON object per line.
    Json,
    /// What a person at a terminal wants to see.
    Short,
}

/// The data of one log line: a request and its response. It borrows what the connection has in its
/// buffers, so that a line needs no memory of its own before it is formatted.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogRecord<'a> {
    pub(crate) at: SystemTime,
    /// The time from the end of the request's head until the socket accepted the last byte of the
    /// response. If the response was cut short, the time until the connection ended.
    pub(crate) took: Duration,
    pub(crate) client: &'a Address,
    /// `None` if the request could not be parsed.
    pub(crate) request: Option<RequestLine<'a>>,
    pub(crate) status: StatusCode,
    /// The number of body bytes that the socket accepted.
    pub(crate) body_bytes: u64,
    /// Whether the socket accepted the whole response, head and body.
    pub(crate) is_complete: bool,
    /// What moved the body. `None` if there was no body.
    pub(crate) mechanism: Option<Mechanism>,
    /// Why the response was cut short. `None` if it was not, or if the reason is unknown.
    pub(crate) error: Option<&'a str>,
}

/// The parts of a request that are logged, as the peer has sent them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestLine<'a> {
    pub(crate) method: &'a [u8],
    pub(crate) target: &'a [u8],
    /// The protocol, such as `HTTP/1.1`. It is ours and not the peer's, so it needs no escapes.
    pub(crate) version: &'static str,
    pub(crate) referer: Option<&'a [u8]>,
    pub(crate) agent: Option<&'a [u8]>,
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

impl LogRecord<'_> {
    /// Appends the log line to `out`, including its line feed.
    pub(super) fn write(&self, format: LineFormat, out: &mut Vec<u8>) {
        match format {
            LineFormat::Text => self.text(out),
            LineFormat::Json => self.json(out),
            LineFormat::Short => self.short(out),
        }
        out.push(b'\n');
    }

    fn text(&self, out: &mut Vec<u8>) {
        // Omit the port, because addresses in the combined format have none.
        put(out, format_args!("{}", Host(self.client)));
        out.extend_from_slice(b" - - [");
        text_time(out, self.at);
        out.extend_from_slice(b"] \"");
        match &self.request {
            Some(request) => {
                text_escaped(out, request.method);
                out.push(b' ');
                text_escaped(out, request.target);
                out.push(b' ');
                out.extend_from_slice(request.version.as_bytes());
            }
            None => out.push(b'-'),
        }
        put(
            out,
            format_args!("\" {} {}", self.status.as_u16(), self.body_bytes),
        );
        for header in [
            self.request.and_then(|request| request.referer),
            self.request.and_then(|request| request.agent),
        ] {
            out.extend_from_slice(b" \"");
            text_escaped(out, header.unwrap_or(b"-"));
            out.push(b'"');
        }
        let mechanism = self.mechanism.map_or("-", Mechanism::name);
        for text in [" ", mechanism, " \""] {
            out.extend_from_slice(text.as_bytes());
        }
        text_escaped(out, self.error.unwrap_or("-").as_bytes());
        out.push(b'"');
    }

    fn short(&self, out: &mut Vec<u8>) {
        put(out, format_args!("{} ", Host(self.client)));
        match &self.request {
            Some(request) => {
                text_escaped(out, request.method);
                out.push(b' ');
                text_escaped(out, request.target);
            }
            None => out.extend_from_slice(b"(not a request)"),
        }
        let (bytes, millis) = (self.body_bytes, self.took.as_millis());
        put(
            out,
            format_args!(" {} {bytes} bytes {millis} ms", self.status.as_u16()),
        );
        if let Some(error) = self.error {
            out.extend_from_slice(b", cut: ");
            text_escaped(out, error.as_bytes());
        } else if !self.is_complete {
            out.extend_from_slice(b", cut");
        }
    }

    fn json(&self, out: &mut Vec<u8>) {
        let time = CalendarTime::of(self.at);
        put(
            out,
            format_args!(
                "{{\"time\":\"{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:03}Z\",\"client\":\"{}\"",
                time.year,
                time.month,
                time.day,
                time.hour,
                time.minute,
                time.second,
                time.millis,
                Host(self.client)
            ),
        );
        if let Address::Tcp(address) = self.client {
            put(out, format_args!(",\"port\":{}", address.port()));
        }
        if let Some(request) = &self.request {
            out.extend_from_slice(b",\"method\":");
            json_string(out, request.method);
            out.extend_from_slice(b",\"target\":");
            json_string(out, request.target);
            put(out, format_args!(",\"version\":\"{}\"", request.version));
            for (name, value) in [("referer", request.referer), ("user_agent", request.agent)] {
                if let Some(value) = value {
                    put(out, format_args!(",\"{name}\":"));
                    json_string(out, value);
                }
            }
        }
        put(
            out,
            format_args!(
                ",\"status\":{},\"bytes\":{},\"complete\":{},\"seconds\":{:.6}",
                self.status.as_u16(),
                self.body_bytes,
                self.is_complete,
                self.took.as_secs_f64()
            ),
        );
        match self.mechanism {
            Some(mechanism) => put(out, format_args!(",\"mechanism\":\"{mechanism}\"")),
            None => out.extend_from_slice(b",\"mechanism\":null"),
        }
        out.extend_from_slice(b",\"error\":");
        match self.error {
            Some(error) => json_string(out, error.as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
}

/// Writes the address of a client without its port. A client that reaches a socket for both IPv6
/// and IPv4 over IPv4 has an address like `::ffff:192.0.2.1`, which is written as IPv4, as it would
/// be for a socket of IPv4 alone.
struct Host<'a>(&'a Address);

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Address::Tcp(address) => address.ip().to_canonical().fmt(f),
            other => other.fmt(f),
        }
    }
}

fn put(out: &mut Vec<u8>, text: fmt::Arguments<'_>) {
    // Writing to memory does not fail.
    let _ = out.write_fmt(text);
}

thread_local! {
    static TEXT_TIME: RefCell<SecondText> = const { RefCell::new(SecondText::new()) };
}

/// Appends the time in the combined format.
fn text_time(out: &mut Vec<u8>, at: SystemTime) {
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

/// Appends bytes, escaped as in nginx and Apache: quotes, backslashes and everything that is not
/// printable ASCII become `\xHH`.
fn text_escaped(out: &mut Vec<u8>, mut bytes: &[u8]) {
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
fn json_string(out: &mut Vec<u8>, bytes: &[u8]) {
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
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn record(client: &Address) -> LogRecord<'_> {
        LogRecord {
            at: UNIX_EPOCH + Duration::from_millis(951_827_696_789),
            took: Duration::from_micros(1500),
            client,
            request: Some(RequestLine {
                method: b"GET",
                target: b"/a\"b%0A?c",
                version: "HTTP/1.1",
                referer: None,
                agent: Some(b"x\t\"\\\xffy"),
            }),
            status: StatusCode::OK,
            body_bytes: 12,
            is_complete: true,
            mechanism: Some(Mechanism::Sendfile),
            error: None,
        }
    }

    fn client() -> Address {
        Address::Tcp("127.0.0.1:5000".parse().unwrap())
    }

    fn written(record: &LogRecord<'_>, format: LineFormat) -> String {
        let mut line = Vec::new();
        record.write(format, &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn text_lines_are_combined_and_escaped() {
        assert_eq!(
            written(&record(&client()), LineFormat::Text),
            "127.0.0.1 - - [29/Feb/2000:12:34:56 +0000] \"GET /a\\x22b%0A?c HTTP/1.1\" \
             200 12 \"-\" \"x\\x09\\x22\\x5C\\xFFy\" sendfile \"-\"\n"
        );
    }

    #[test]
    fn json_lines_are_objects_and_escaped() {
        assert_eq!(
            written(&record(&client()), LineFormat::Json),
            "{\"time\":\"2000-02-29T12:34:56.789Z\",\"client\":\"127.0.0.1\",\"port\":5000,\"method\":\"GET\",\
             \"target\":\"/a\\\"b%0A?c\",\"version\":\"HTTP/1.1\",\"user_agent\":\"x\\u0009\\\"\\\\\u{fffd}y\",\
             \"status\":200,\"bytes\":12,\"complete\":true,\"seconds\":0.001500,\
             \"mechanism\":\"sendfile\",\"error\":null}\n"
        );
    }

    #[test]
    fn a_response_that_was_cut_says_why_and_one_without_a_body_has_no_mechanism() {
        let client = Address::Unix;
        let cut = LogRecord {
            is_complete: false,
            error: Some("the \"file\" was truncated\x1b"),
            ..record(&client)
        };
        let text = written(&cut, LineFormat::Text);
        let json = written(&cut, LineFormat::Json);
        assert!(text.starts_with("unix - - ["), "{text}");
        assert!(
            text.ends_with(" sendfile \"the \\x22file\\x22 was truncated\\x1B\"\n"),
            "{text}"
        );
        assert!(json.contains(",\"client\":\"unix\",\"method\""), "{json}");
        assert!(
            json.ends_with(
                ",\"mechanism\":\"sendfile\",\"error\":\"the \\\"file\\\" was truncated\\u001b\"}\n"
            ),
            "{json}"
        );
        let without_body = LogRecord {
            mechanism: None,
            ..record(&client)
        };
        let text = written(&without_body, LineFormat::Text);
        let json = written(&without_body, LineFormat::Json);
        assert!(text.ends_with(" - \"-\"\n"), "{text}");
        assert!(
            json.ends_with(",\"mechanism\":null,\"error\":null}\n"),
            "{json}"
        );
    }

    #[test]
    fn short_lines_are_escaped_and_say_what_was_cut() {
        let client = client();
        let line = "127.0.0.1 GET /a\\x22b%0A?c 200 12 bytes 1 ms";
        assert_eq!(
            written(&record(&client), LineFormat::Short),
            format!("{line}\n")
        );
        let cut = LogRecord {
            is_complete: false,
            error: Some("send timeout"),
            ..record(&client)
        };
        assert_eq!(
            written(&cut, LineFormat::Short),
            format!("{line}, cut: send timeout\n")
        );
    }

    #[test]
    fn a_request_that_cannot_be_parsed_has_no_request_line() {
        let client = client();
        let record = LogRecord {
            request: None,
            status: StatusCode::BAD_REQUEST,
            ..record(&client)
        };
        assert!(written(&record, LineFormat::Text).contains("] \"-\" 400 12 \"-\" \"-\""));
        assert!(!written(&record, LineFormat::Json).contains("method"));
    }

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
