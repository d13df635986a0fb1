//! The line of the access log for one connection.
//!
//! ```text
//! 192.0.2.1:50000 [27/Nov/2026:08:00:00 +0000] listener=127.0.0.1:5432 target=db1:5432
//!     to_target=900 (splice 0, copy 900) to_client=70000 (splice 65536, copy 4464)
//!     seconds=1.250000 end=finished "-"
//! ```

use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use uncopied_http::Address;

use crate::server::access_log::{
    LineFormat, LogLine, json_string, json_time, put, text_escaped, text_time,
};

use super::connection::End;
use super::stats::{Direction, RelayedBytes};

/// The data of one log line.
pub(super) struct LogRecord<'a> {
    /// When the connection was accepted.
    pub(super) at: SystemTime,
    /// The time from then until the end of the connection.
    pub(super) took: Duration,
    /// The client, as the PROXY header says if there is one.
    pub(super) client: &'a Address,
    pub(super) listener: &'a str,
    /// `None` if no target was connected to.
    pub(super) target: Option<&'a str>,
    pub(super) bytes: &'a RelayedBytes,
    pub(super) end: &'a End,
}

impl LogLine for LogRecord<'_> {
    fn write(&self, format: LineFormat, out: &mut Vec<u8>) {
        match format {
            LineFormat::Json => self.json(out),
            LineFormat::Text | LineFormat::Short => self.text(out),
        }
    }
}

impl LogRecord<'_> {
    fn text(&self, out: &mut Vec<u8>) {
        match self.client {
            Address::Tcp(address) => {
                let address = SocketAddr::new(address.ip().to_canonical(), address.port());
                put(out, format_args!("{address} ["));
            }
            other => put(out, format_args!("{other} [")),
        }
        text_time(out, self.at);
        out.extend_from_slice(b"] listener=");
        text_escaped(out, self.listener.as_bytes());
        out.extend_from_slice(b" target=");
        text_escaped(out, self.target.unwrap_or("-").as_bytes());
        for direction in Direction::ALL {
            let total = self.bytes.total(direction);
            put(out, format_args!(" {}={total} (", direction.name()));
            for (index, (mechanism, bytes)) in self.bytes.by_mechanism(direction).enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                put(out, format_args!("{comma}{mechanism} {bytes}"));
            }
            out.push(b')');
        }
        let (seconds, kind) = (self.took.as_secs_f64(), self.end.kind().name());
        put(out, format_args!(" seconds={seconds:.6} end={kind} \""));
        match self.end.error() {
            Some(error) => text_escaped(out, error.to_string().as_bytes()),
            None => out.push(b'-'),
        }
        out.push(b'"');
    }

    fn json(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"time\":");
        json_time(out, self.at);
        match self.client {
            Address::Tcp(address) => {
                let (ip, port) = (address.ip().to_canonical(), address.port());
                put(out, format_args!(",\"client\":\"{ip}\",\"port\":{port}"));
            }
            other => put(out, format_args!(",\"client\":\"{other}\"")),
        }
        out.extend_from_slice(b",\"listener\":");
        json_string(out, self.listener.as_bytes());
        out.extend_from_slice(b",\"target\":");
        match self.target {
            Some(target) => json_string(out, target.as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
        for direction in Direction::ALL {
            let total = self.bytes.total(direction);
            put(
                out,
                format_args!(",\"{}\":{{\"bytes\":{total}", direction.name()),
            );
            for (mechanism, bytes) in self.bytes.by_mechanism(direction) {
                put(out, format_args!(",\"{mechanism}\":{bytes}"));
            }
            out.push(b'}');
        }
        let (seconds, kind) = (self.took.as_secs_f64(), self.end.kind().name());
        put(
            out,
            format_args!(",\"seconds\":{seconds:.6},\"end\":\"{kind}\",\"error\":"),
        );
        match self.end.error() {
            Some(error) => json_string(out, error.to_string().as_bytes()),
            None => out.extend_from_slice(b"null"),
        }
        out.push(b'}');
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::UNIX_EPOCH;

    use super::*;

    fn written(record: &LogRecord<'_>, format: LineFormat) -> String {
        let mut line = Vec::new();
        record.write(format, &mut line);
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn lines_have_the_documented_formats() {
        let client = Address::Tcp("[::ffff:192.0.2.1]:50000".parse().unwrap());
        let record = LogRecord {
            at: UNIX_EPOCH + Duration::from_millis(951_827_696_789),
            took: Duration::from_micros(1_250_000),
            client: &client,
            listener: "127.0.0.1:5432",
            target: Some("db1:5432"),
            bytes: &RelayedBytes::from_counts([[0, 900], [65_536, 4464]]),
            end: &End::Finished,
        };
        assert_eq!(
            written(&record, LineFormat::Text),
            "192.0.2.1:50000 [29/Feb/2000:12:34:56 +0000] listener=127.0.0.1:5432 \
             target=db1:5432 to_target=900 (splice 0, copy 900) to_client=70000 (splice 65536, \
             copy 4464) seconds=1.250000 end=finished \"-\""
        );
        assert_eq!(
            written(&record, LineFormat::Json),
            "{\"time\":\"2000-02-29T12:34:56.789Z\",\"client\":\"192.0.2.1\",\"port\":50000,\
             \"listener\":\"127.0.0.1:5432\",\"target\":\"db1:5432\",\
             \"to_target\":{\"bytes\":900,\"splice\":0,\"copy\":900},\
             \"to_client\":{\"bytes\":70000,\"splice\":65536,\"copy\":4464},\
             \"seconds\":1.250000,\"end\":\"finished\",\"error\":null}"
        );
    }

    #[test]
    fn a_connection_without_a_target_says_why() {
        let record = LogRecord {
            at: UNIX_EPOCH,
            took: Duration::ZERO,
            client: &Address::Unix,
            listener: "unix:/run/\"a\n",
            target: None,
            bytes: &RelayedBytes::default(),
            end: &End::NoTarget("db1:5432: \"refused\"".to_owned()),
        };
        let text = written(&record, LineFormat::Text);
        assert!(text.starts_with("unix ["), "{text}");
        assert!(
            text.contains("listener=unix:/run/\\x22a\\x0A target=- "),
            "{text}"
        );
        assert!(
            text.ends_with(
                " end=no_target \"no target can be connected to: db1:5432: \\x22refused\\x22\""
            ),
            "{text}"
        );
        let json = written(&record, LineFormat::Json);
        let parsed: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(parsed["target"], serde_json::Value::Null);
        assert_eq!(parsed["listener"], "unix:/run/\"a\n");
        assert_eq!(
            parsed["error"],
            "no target can be connected to: db1:5432: \"refused\""
        );
    }
}
