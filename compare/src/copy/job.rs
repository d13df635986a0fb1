//! The input of a sender, and the report that a sender prints.

use std::fs::File;
use std::net::TcpStream;

use serde_json::{Value, json};

use crate::error::Error;
use crate::loopback::tcp;

/// The input of a contender's function [`send`](super::contender::FileSender::send).
pub(super) struct CopyJob {
    /// The file to send from its beginning to its end.
    pub(super) file: File,
    /// A connected, blocking socket. All its options are the kernel's defaults, except for the
    /// congestion control.
    pub(super) socket: TcpStream,
}

/// The report that a sender prints after the transfer.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TransferReport {
    /// The number of bytes that the sender has sent.
    pub(super) bytes: u64,
    /// The user and system CPU seconds that all threads of the sender's process together have used
    /// for the transfer.
    pub(super) cpu_seconds: f64,
    /// The congestion control of the sender's socket.
    pub(super) congestion: String,
}

impl TransferReport {
    /// Formats the report as a line of JSON.
    pub(super) fn line(&self) -> String {
        json!({
            "bytes": self.bytes,
            "cpu_seconds": self.cpu_seconds,
            "congestion": self.congestion,
        })
        .to_string()
    }

    /// Parses the line that a sender has printed.
    pub(super) fn parse(text: &str) -> Result<Self, Error> {
        let malformed = || Error::WrongResult(format!("the sender's report is {text:?}"));
        let value: Value = serde_json::from_str(text).map_err(|_| malformed())?;
        Ok(Self {
            bytes: value["bytes"].as_u64().ok_or_else(malformed)?,
            cpu_seconds: value["cpu_seconds"].as_f64().ok_or_else(malformed)?,
            congestion: value["congestion"]
                .as_str()
                .ok_or_else(malformed)?
                .to_owned(),
        })
    }

    /// Returns an error unless the sender reports the size of the file as the number of bytes sent,
    /// and `congestion` as its congestion control.
    pub(super) fn check(&self, file_bytes: u64, congestion: &str) -> Result<(), Error> {
        if self.bytes != file_bytes {
            return Err(Error::WrongResult(format!(
                "it reports that it sent {} bytes, but the file has {file_bytes}",
                self.bytes
            )));
        }
        tcp::check_reported_congestion(&self.congestion, congestion)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn report() -> TransferReport {
        TransferReport {
            bytes: 8192,
            cpu_seconds: 0.043_210_987,
            congestion: "cubic".into(),
        }
    }

    #[test]
    fn a_report_is_parsed_as_it_is_printed() {
        assert_eq!(TransferReport::parse(&report().line()).unwrap(), report());
        for bad in [
            "",
            "{}",
            r#"{"bytes":-1,"cpu_seconds":0.1,"congestion":"cubic"}"#,
            r#"{"bytes":1,"congestion":"cubic"}"#,
        ] {
            assert!(TransferReport::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_report_must_agree_with_the_file_and_the_options() {
        assert!(report().check(8192, "cubic").is_ok());
        assert!(report().check(8193, "cubic").is_err());
        assert!(report().check(8192, "bbr").is_err());
    }
}
