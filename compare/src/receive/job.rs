//! The input of a receiver, and the report that a receiver prints.

use std::net::TcpStream;

use serde_json::{Value, json};

use super::meter::Window;
use super::options::ReceiveOptions;
use crate::error::Error;
use crate::loopback::tcp;

/// The values that a receiver's command line is built from.
pub(super) struct ReceiverSetup<'a> {
    /// The port on 127.0.0.1 to connect to.
    pub(super) port: &'a str,
    /// The options of the run.
    pub(super) options: &'a ReceiveOptions,
}

/// The input of a contender's function [`receive`](super::contender::MemoryReceiver::receive).
pub(super) struct ReceiveJob {
    /// A connected, blocking socket. All its options are the kernel's defaults, except for the
    /// congestion control and the low-water mark.
    pub(super) stream: TcpStream,
    /// The low-water mark in bytes.
    pub(super) low_water_mark: usize,
}

/// The report that a receiver prints at the end of the stream.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct ReceiverReport {
    /// The number of bytes received from the beginning to the end of the stream.
    pub(super) total_bytes: u64,
    /// How many of these bytes were mapped.
    pub(super) mapped_bytes: u64,
    /// What was measured.
    pub(super) window: Window,
    /// The congestion control of the receiver's socket.
    pub(super) congestion: String,
}

impl ReceiverReport {
    /// Formats the report as a line of JSON.
    pub(super) fn line(&self) -> String {
        json!({
            "total_bytes": self.total_bytes,
            "mapped_bytes": self.mapped_bytes,
            "bytes": self.window.bytes,
            "reads": self.window.reads,
            "seconds": self.window.seconds,
            "cpu_seconds": self.window.cpu_seconds,
            "machine_busy_seconds": self.window.machine_busy_seconds,
            "congestion": self.congestion,
        })
        .to_string()
    }

    /// Parses the line that a receiver has printed.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::WrongResult(format!("the receiver's report is {text:?}"));
        let value: Value = serde_json::from_str(text).map_err(|_| malformed())?;
        let number = |key: &str| value[key].as_u64().ok_or_else(malformed);
        let seconds = |key: &str| value[key].as_f64().ok_or_else(malformed);
        Ok(Self {
            total_bytes: number("total_bytes")?,
            mapped_bytes: number("mapped_bytes")?,
            window: Window {
                bytes: number("bytes")?,
                reads: number("reads")?,
                seconds: seconds("seconds")?,
                cpu_seconds: seconds("cpu_seconds")?,
                machine_busy_seconds: seconds("machine_busy_seconds")?,
            },
            congestion: value["congestion"]
                .as_str()
                .ok_or_else(malformed)?
                .to_owned(),
        })
    }

    /// Returns an error unless the receiver reports `sent_bytes` as the number of bytes received,
    /// and `congestion` as its congestion control.
    pub(super) fn check(&self, sent_bytes: u64, congestion: &str) -> Result<(), Error> {
        let (total, mapped) = (self.total_bytes, self.mapped_bytes);
        if total != sent_bytes {
            return Err(Error::WrongResult(format!(
                "it reports that it received {total} bytes, but {sent_bytes} were sent"
            )));
        }
        if mapped > total {
            return Err(Error::WrongResult(format!(
                "it reports that {mapped} of {total} bytes were mapped"
            )));
        }
        tcp::check_reported_congestion(&self.congestion, congestion)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report() -> ReceiverReport {
        ReceiverReport {
            total_bytes: 8192,
            mapped_bytes: 4096,
            window: Window {
                bytes: 5000,
                reads: 3,
                seconds: 0.5,
                cpu_seconds: 0.043_210_987,
                machine_busy_seconds: 0.75,
            },
            congestion: "cubic".into(),
        }
    }

    #[test]
    fn a_report_is_parsed_as_it_is_printed() {
        assert_eq!(ReceiverReport::parse(&report().line()).unwrap(), report());
        for bad in ["", "{}", "[]", r#"{"total_bytes":1,"mapped_bytes":0}"#] {
            assert!(ReceiverReport::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_must_agree_with_what_was_sent() {
        assert!(report().check(8192, "cubic").is_ok());
        assert!(report().check(8191, "cubic").is_err());
        assert!(report().check(8192, "bbr").is_err());
        let mut implausible = report();
        implausible.mapped_bytes = 8193;
        assert!(implausible.check(8192, "cubic").is_err());
    }
}
