//! The line of the access log for one request. The text format is the combined format of Apache and
//! nginx, in UTC, followed by the mechanism and the error.

use std::time::{Duration, SystemTime};

use http::StatusCode;
use uncopied::Mechanism;
use uncopied_http::Address;

use crate::server::access_log::{
    Host, LineFormat, LogLine, json_string, json_time, put, text_escaped, text_time,
};

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

impl LogLine for LogRecord<'_> {
    fn write(&self, format: LineFormat, out: &mut Vec<u8>) {
        match format {
            LineFormat::Text => self.text(out),
            LineFormat::Json => self.json(out),
            LineFormat::Short => self.short(out),
        }
    }
}

impl LogRecord<'_> {
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
        out.extend_from_slice(b"{\"time\":");
        json_time(out, self.at);
        put(out, format_args!(",\"client\":\"{}\"", Host(self.client)));
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::UNIX_EPOCH;

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
             200 12 \"-\" \"x\\x09\\x22\\x5C\\xFFy\" sendfile \"-\""
        );
    }

    #[test]
    fn json_lines_are_objects_and_escaped() {
        assert_eq!(
            written(&record(&client()), LineFormat::Json),
            "{\"time\":\"2000-02-29T12:34:56.789Z\",\"client\":\"127.0.0.1\",\"port\":5000,\"method\":\"GET\",\
             \"target\":\"/a\\\"b%0A?c\",\"version\":\"HTTP/1.1\",\"user_agent\":\"x\\u0009\\\"\\\\\u{fffd}y\",\
             \"status\":200,\"bytes\":12,\"complete\":true,\"seconds\":0.001500,\
             \"mechanism\":\"sendfile\",\"error\":null}"
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
            text.ends_with(" sendfile \"the \\x22file\\x22 was truncated\\x1B\""),
            "{text}"
        );
        assert!(json.contains(",\"client\":\"unix\",\"method\""), "{json}");
        assert!(
            json.ends_with(
                ",\"mechanism\":\"sendfile\",\"error\":\"the \\\"file\\\" was truncated\\u001b\"}"
            ),
            "{json}"
        );
        let without_body = LogRecord {
            mechanism: None,
            ..record(&client)
        };
        let text = written(&without_body, LineFormat::Text);
        let json = written(&without_body, LineFormat::Json);
        assert!(text.ends_with(" - \"-\""), "{text}");
        assert!(
            json.ends_with(",\"mechanism\":null,\"error\":null}"),
            "{json}"
        );
    }

    #[test]
    fn short_lines_are_escaped_and_say_what_was_cut() {
        let client = client();
        let line = "127.0.0.1 GET /a\\x22b%0A?c 200 12 bytes 1 ms";
        assert_eq!(written(&record(&client), LineFormat::Short), line);
        let cut = LogRecord {
            is_complete: false,
            error: Some("send timeout"),
            ..record(&client)
        };
        assert_eq!(
            written(&cut, LineFormat::Short),
            format!("{line}, cut: send timeout")
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
}
