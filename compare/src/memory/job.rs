//! The input of a sender, and the report that a sender prints.

use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::error::Error;
use crate::loopback::tcp;

/// The values that a sender's command line is built from.
pub(super) struct SenderSetup<'a> {
    /// The port on 127.0.0.1 to connect to.
    pub(super) port: &'a str,
    /// The size of the buffer in bytes. The sender sends the whole buffer with one call, over and
    /// over.
    pub(super) size: &'a str,
    /// The number of connections to open.
    pub(super) connections: u16,
    /// The sending time, for a sender that cannot be told to stop (iperf3's client).
    pub(super) sending_time: Duration,
    /// The congestion control to set on the socket.
    pub(super) congestion: &'a str,
    /// A directory for temporary files.
    pub(super) scratch: &'a Path,
}

/// The input of a contender that is built into this program.
pub(super) struct MemoryJob {
    /// Connected, blocking sockets, of which there is at least one. All their options are the
    /// kernel's defaults, except for the congestion control.
    pub(super) streams: Vec<TcpStream>,
    /// The bytes to send with one call to each socket, over and over.
    pub(super) payload: Vec<u8>,
    stop: Arc<AtomicBool>,
}

impl MemoryJob {
    /// Creates a job that ends when `stop` is set.
    pub(super) fn new(streams: Vec<TcpStream>, payload: Vec<u8>, stop: Arc<AtomicBool>) -> Self {
        Self {
            streams,
            payload,
            stop,
        }
    }

    /// Returns the first socket, for a contender that sends over one connection only.
    pub(super) fn stream(&self) -> &TcpStream {
        &self.streams[0]
    }

    /// Whether to send the payload once more.
    pub(super) fn continues(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// The numbers of bytes that a sender has sent and copied, according to its own report.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct SentBytes {
    /// Bytes that the sockets accepted.
    pub(super) total: u64,
    /// The number of these bytes that the CPU copied.
    pub(super) copied: u64,
}

impl SentBytes {
    /// Returns the numbers for a sender whose bytes were all copied, as with `write`.
    pub(super) fn all_copied(total: u64) -> Self {
        Self {
            total,
            copied: total,
        }
    }
}

/// The report that a sender prints after sending.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SenderReport {
    /// The numbers of bytes sent and copied.
    pub(super) sent: SentBytes,
    /// The congestion control of the sender's sockets.
    pub(super) congestion: String,
}

impl SenderReport {
    /// Formats the report as a line of JSON.
    pub(super) fn line(&self) -> String {
        json!({
            "bytes": self.sent.total,
            "copied": self.sent.copied,
            "congestion": self.congestion,
        })
        .to_string()
    }

    /// Parses the line printed by a sender that is built into this program.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::WrongResult(format!("the sender's report is {text:?}"));
        let value: Value = serde_json::from_str(text).map_err(|_| malformed())?;
        let number = |key: &str| value[key].as_u64().ok_or_else(malformed);
        Ok(Self {
            sent: SentBytes {
                total: number("bytes")?,
                copied: number("copied")?,
            },
            congestion: value["congestion"]
                .as_str()
                .ok_or_else(malformed)?
                .to_owned(),
        })
    }

    /// Returns an error unless the sender reports `received_bytes` as the number of bytes sent, and
    /// `congestion` as its congestion control.
    pub(super) fn check(&self, received_bytes: u64, congestion: &str) -> Result<(), Error> {
        let SentBytes { total, copied } = self.sent;
        if total != received_bytes {
            return Err(Error::WrongResult(format!(
                "it reports that it sent {total} bytes, but {received_bytes} arrived"
            )));
        }
        if copied > total {
            return Err(Error::WrongResult(format!(
                "it reports that {copied} of {total} bytes were copied"
            )));
        }
        tcp::check_reported_congestion(&self.congestion, congestion)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report() -> SenderReport {
        SenderReport {
            sent: SentBytes {
                total: 8192,
                copied: 4096,
            },
            congestion: "cubic".into(),
        }
    }

    #[test]
    fn a_report_is_parsed_as_it_is_printed() {
        assert_eq!(SenderReport::parse(&report().line()).unwrap(), report());
        for bad in [
            "",
            "{}",
            "[]",
            r#"{"bytes":-1,"copied":0,"congestion":"cubic"}"#,
            r#"{"bytes":1,"copied":0}"#,
        ] {
            assert!(SenderReport::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_must_agree_with_what_arrived() {
        assert!(report().check(8192, "cubic").is_ok());
        assert!(report().check(8191, "cubic").is_err());
        assert!(report().check(8192, "bbr").is_err());
        let mut implausible = report();
        implausible.sent.copied = 8193;
        assert!(implausible.check(8192, "cubic").is_err());
    }
}
