//! iperf3's client, which writes from memory, or with `-Z` sends a file of its buffer's bytes by
//! `sendfile`.

use std::ffi::OsString;

use serde_json::Value;

use super::{Contender, How, Setup};
use crate::error::Error;
use crate::machine;
use crate::memory::sender::{Account, Sent};

pub(super) const WRITING: Contender = Contender {
    name: "iperf3",
    about: "iperf3's client, which writes from memory (it says nothing of copies; a write copies all)",
    ours: false,
    version,
    how: How::Iperf3(Mode::Write),
};

pub(super) const SENDFILE: Contender = Contender {
    name: "iperf3-Z",
    about: "iperf3's client with `-Z`: `sendfile` of a temporary file with the buffer's bytes (it says \
            nothing of copies; sendfile lends the file's pages)",
    ours: false,
    version,
    how: How::Iperf3(Mode::Sendfile),
};

/// iperf3 refuses longer buffers: `MAX_BLOCKSIZE` in its source.
pub(super) const LONGEST: u64 = 1 << 20;

/// How it sends.
#[derive(Clone, Copy)]
pub(super) enum Mode {
    Write,
    Sendfile,
}

fn version() -> Result<String, Error> {
    // The first line, as "iperf 3.12 (cJSON 1.7.15)".
    machine::first_line_of("iperf3", &["--version"]).ok_or_else(|| {
        Error::Unavailable(
            "iperf3 is not installed: install iperf3 (Debian, Ubuntu and Fedora have it)".into(),
        )
    })
}

impl Mode {
    /// The client's command line. It can only be told to send for whole seconds.
    pub(super) fn command(self, setup: &Setup<'_>) -> Vec<OsString> {
        let seconds = setup.at_least.as_secs_f64().ceil();
        // The file of -Z is to lie on a real file system.
        let mut place = OsString::from("TMPDIR=");
        place.push(setup.scratch);
        let mut command = vec![OsString::from("env"), place];
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

    /// Reads what the client prints in the end.
    pub(super) fn account(self, said: &str) -> Result<Account, Error> {
        let value: Value = serde_json::from_str(said)
            .map_err(|_| Error::WrongAnswer("what iperf3 printed is not JSON".into()))?;
        if let Some(error) = complaint_of(&value) {
            return Err(error);
        }
        let end = &value["end"];
        let missing = |what: &str| Error::WrongAnswer(format!("iperf3 does not say its {what}"));
        let bytes = end["sum_sent"]["bytes"]
            .as_u64()
            .ok_or_else(|| missing("end.sum_sent.bytes"))?;
        let congestion = end["sender_tcp_congestion"]
            .as_str()
            .ok_or_else(|| missing("end.sender_tcp_congestion"))?;
        Ok(Account {
            sent: Sent {
                bytes,
                copied: match self {
                    Self::Write => bytes,
                    Self::Sendfile => 0,
                },
            },
            congestion: congestion.to_owned(),
        })
    }
}

/// What the client says of its failure: with `--json` it is part of its results.
pub(super) fn complaint(said: &str) -> Option<Error> {
    complaint_of(&serde_json::from_str(said).ok()?)
}

fn complaint_of(said: &Value) -> Option<Error> {
    let error = said["error"].as_str()?;
    Some(Error::WrongAnswer(format!("iperf3 says: {error}")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::path::Path;
    use std::time::Duration;

    #[test]
    fn bytes_and_congestion_control_are_read_from_its_json() {
        let said = r#"{"start":{},"intervals":[],"end":{"streams":[{}],
            "sum_sent":{"seconds":1.000252,"bytes":3543531520,"retransmits":0,"sender":true},
            "sum_received":{"bytes":7},"sender_tcp_congestion":"cubic"}}"#;
        let account = Mode::Write.account(said).unwrap();
        assert_eq!(account.congestion, "cubic");
        assert_eq!(account.sent.bytes, 3_543_531_520);
        assert_eq!(account.sent.copied, 3_543_531_520);
        assert_eq!(Mode::Sendfile.account(said).unwrap().sent.copied, 0);
    }

    #[test]
    fn its_errors_are_passed_on_and_what_is_missing_is_named() {
        assert!(complaint("{}").is_none() && complaint("oops").is_none());
        let message = |said| Mode::Write.account(said).unwrap_err().to_string();
        let refused = message(r#"{"end":{},"error":"unable to connect"}"#);
        assert!(refused.contains("unable to connect"), "{refused}");
        assert!(message("iperf3: oops").contains("not JSON"));
        assert!(message(r#"{"end":{}}"#).contains("sum_sent.bytes"));
        let silent = message(r#"{"end":{"sum_sent":{"bytes":1}}}"#);
        assert!(silent.contains("sender_tcp_congestion"), "{silent}");
    }

    #[test]
    fn the_time_is_in_whole_seconds() {
        let setup = Setup {
            port: "5201",
            size: "65536",
            at_least: Duration::from_millis(1550),
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
