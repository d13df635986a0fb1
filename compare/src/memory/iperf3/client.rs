//! Builds the command line of iperf3's client, and parses the client's output.

use std::ffi::OsString;

use serde_json::Value;

use crate::error::Error;
use crate::machine;
use crate::memory::job::{SenderReport, SenderSetup, SentBytes};

/// The longest buffer that iperf3 accepts: `MAX_BLOCKSIZE` in its source.
pub(in crate::memory) const MAX_SIZE_BYTES: u64 = 1 << 20;

/// The system call that the client sends with.
#[derive(Clone, Copy)]
pub(in crate::memory) enum Mode {
    /// `write`, from memory.
    Write,
    /// `sendfile`, from a temporary file.
    Sendfile,
}

/// Returns the name and the version of the installed iperf3.
pub(in crate::memory) fn version() -> Result<String, Error> {
    // The first line looks like "iperf 3.12 (cJSON 1.7.15)".
    machine::first_line_of("iperf3", &["--version"]).ok_or_else(|| {
        Error::Unavailable(
            "iperf3 is not installed: install iperf3 (Debian, Ubuntu and Fedora have it)".into(),
        )
    })
}

impl Mode {
    /// Returns the client's command line. Rounds the sending time up, because the client accepts
    /// only whole seconds.
    pub(in crate::memory) fn command(self, setup: &SenderSetup<'_>) -> Vec<OsString> {
        let seconds = setup.sending_time.as_secs_f64().ceil();
        // With -Z, the client sends a temporary file from TMPDIR. Set this variable, because the
        // default, /tmp, may be a tmpfs, where `sendfile` takes another path through the kernel.
        let mut directory = OsString::from("TMPDIR=");
        directory.push(setup.scratch);
        let mut command = vec![OsString::from("env"), directory];
        let seconds = seconds.to_string();
        let words = [
            "iperf3",
            "--client",
            "127.0.0.1",
            "--port",
            setup.port,
            "--length",
            setup.size,
            "--time",
            &seconds,
            "--congestion",
            setup.congestion,
            "--json",
        ];
        command.extend(words.map(OsString::from));
        if matches!(self, Self::Sendfile) {
            command.push("--zerocopy".into());
        }
        command
    }

    /// Parses the results that the client prints after sending.
    pub(in crate::memory) fn parse_report(self, printed: &str) -> Result<SenderReport, Error> {
        let value: Value = serde_json::from_str(printed)
            .map_err(|_| Error::WrongResult("iperf3's output is not JSON".into()))?;
        if let Some(error) = failure_in(&value) {
            return Err(error);
        }
        let end = &value["end"];
        let missing = |key: &str| Error::WrongResult(format!("iperf3 does not report its {key}"));
        let bytes = end["sum_sent"]["bytes"]
            .as_u64()
            .ok_or_else(|| missing("end.sum_sent.bytes"))?;
        let congestion = end["sender_tcp_congestion"]
            .as_str()
            .ok_or_else(|| missing("end.sender_tcp_congestion"))?;
        Ok(SenderReport {
            sent: match self {
                Self::Write => SentBytes::all_copied(bytes),
                Self::Sendfile => SentBytes {
                    total: bytes,
                    copied: 0,
                },
            },
            congestion: congestion.to_owned(),
        })
    }
}

/// Returns the failure that the client has reported, if there is one. With `--json`, the client
/// prints failures as part of its results.
pub(in crate::memory) fn failure(printed: &str) -> Option<Error> {
    failure_in(&serde_json::from_str(printed).ok()?)
}

fn failure_in(results: &Value) -> Option<Error> {
    let error = results["error"].as_str()?;
    Some(Error::WrongResult(format!("iperf3 reports: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn bytes_and_congestion_control_are_read_from_the_json() {
        let printed = r#"{"start":{},"intervals":[],"end":{"streams":[{}],
            "sum_sent":{"seconds":1.000252,"bytes":3543531520,"retransmits":0,"sender":true},
            "sum_received":{"bytes":7},"sender_tcp_congestion":"cubic"}}"#;
        let report = Mode::Write.parse_report(printed).unwrap();
        assert_eq!(report.congestion, "cubic");
        assert_eq!(report.sent.total, 3_543_531_520);
        assert_eq!(report.sent.copied, 3_543_531_520);
        let report = Mode::Sendfile.parse_report(printed).unwrap();
        assert_eq!(report.sent.copied, 0);
    }

    #[test]
    fn errors_of_iperf3_are_passed_on_and_missing_values_are_named() {
        assert!(failure("{}").is_none() && failure("oops").is_none());
        let message = |printed| Mode::Write.parse_report(printed).unwrap_err().to_string();
        let refused = message(r#"{"end":{},"error":"unable to connect"}"#);
        assert!(refused.contains("unable to connect"), "{refused}");
        assert!(message("iperf3: oops").contains("not JSON"));
        assert!(message(r#"{"end":{}}"#).contains("sum_sent.bytes"));
        let incomplete = message(r#"{"end":{"sum_sent":{"bytes":1}}}"#);
        assert!(incomplete.contains("sender_tcp_congestion"), "{incomplete}");
    }

    #[test]
    fn the_sending_time_is_rounded_up_to_whole_seconds() {
        let setup = SenderSetup {
            port: "5201",
            size: "65536",
            connections: 1,
            sending_time: Duration::from_millis(1550),
            congestion: "cubic",
            scratch: Path::new("/there"),
        };
        let words = |mode: Mode| {
            let words: Vec<_> = mode.command(&setup);
            words.join(std::ffi::OsStr::new(" ")).into_string().unwrap()
        };
        assert_eq!(
            words(Mode::Sendfile),
            "env TMPDIR=/there iperf3 --client 127.0.0.1 --port 5201 --length 65536 --time 2 \
             --congestion cubic --json --zerocopy"
        );
        assert!(words(Mode::Write).ends_with("--json"));
    }
}
