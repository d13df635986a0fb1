//! What the sender and the listener tell each other: lines of JSON over a control connection.
//!
//! ```text
//! sender                                      listener
//!   hello                              ──▶    welcome, or refused
//!   begin (what is measured)           ──▶    expect (a number)
//!   data (the number), then the bytes, over a second connection to the same port
//!   ready                              ──▶    ready, once the second connection is there
//!   mark                               ──▶    marked (CPU time, bytes), twice
//!   count                              ──▶    counted (system calls)
//!   end (how many bytes were sent)     ──▶    ended (how they were received)
//! ```
//!
//! A line has at most 16 KiB, and nothing in it may be unknown. Whatever else arrives ends the run.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uncopied_measure::interrupt;

use super::error::BenchError;
use crate::flags::{BenchDirection, BenchMechanism};

/// The version of this protocol. Both sides must have the same.
pub(super) const PROTOCOL: u32 = 1;

/// The longest line, in bytes.
const MAX_LINE: usize = 16 << 10;

/// How long the other side may take for a reply.
pub(super) const REPLY_LIMIT: Duration = Duration::from_secs(15);

/// How often a wait looks whether the run was interrupted.
const TICK: Duration = Duration::from_millis(100);

/// What the sender says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Request {
    Hello {
        protocol: u32,
    },
    Begin(Setup),
    /// The first line of the second connection.
    Data {
        number: u64,
    },
    Ready,
    Mark {
        is_measuring: bool,
    },
    Count {
        millis: u64,
    },
    End {
        bytes: u64,
    },
}

/// What the listener says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Reply {
    Welcome,
    Refused { why: String },
    Expect { number: u64 },
    Ready,
    Marked(Mark),
    Counted { calls: Option<u64>, bytes: u64 },
    Ended(Received),
}

/// What the receiver has to know to receive.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Setup {
    pub(super) direction: BenchDirection,
    pub(super) mechanism: BenchMechanism,
    pub(super) size: u64,
    /// The stream consists of the first `period` bytes of the pattern `pattern`, over and over.
    pub(super) pattern: u64,
    pub(super) period: u64,
    /// The CPU that the sink of a relay is pinned to, if it is the receiver's own machine.
    pub(super) sink_cpu: Option<usize>,
}

/// The state of the receiver at one moment.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Mark {
    /// The time since the run began, in seconds.
    pub(super) at: f64,
    /// Bytes that were taken out of the socket.
    pub(super) bytes: u64,
    /// The CPU time of the receiver, without that of the sink of a relay.
    pub(super) cpu_seconds: f64,
    pub(super) sink_cpu_seconds: f64,
    pub(super) machine_busy_seconds: f64,
}

/// How the bytes of one measurement were received.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Received {
    pub(super) bytes: u64,
    /// Why the mechanism could not be used.
    pub(super) refused: Option<String>,
    /// What has failed.
    pub(super) failed: Option<String>,
    pub(super) moved: Moved,
    pub(super) call_us: Option<[f64; 3]>,
}

/// How bytes were moved.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Moved {
    /// All bytes.
    pub(super) bytes: u64,
    /// Those that a zero-copy mechanism moved, and that are not known to be copied. Those that were
    /// mapped are among them.
    pub(super) zero_copy: u64,
    /// Those that the kernel copied although a zero-copy mechanism moved them.
    pub(super) kernel_copied: u64,
    pub(super) mapped: u64,
    /// The bytes of each mechanism.
    pub(super) by_mechanism: BTreeMap<String, u64>,
}

/// One end of the control connection.
pub(super) struct Control {
    stream: TcpStream,
    /// Bytes that have arrived after the last line.
    pending: Vec<u8>,
}

impl Control {
    /// Takes a connection.
    pub(super) fn new(stream: TcpStream) -> Result<Self, BenchError> {
        stream
            .set_nodelay(true)
            .and_then(|()| stream.set_read_timeout(Some(TICK)))
            .and_then(|()| stream.set_write_timeout(Some(REPLY_LIMIT)))
            .map_err(BenchError::Connection)?;
        Ok(Self {
            stream,
            pending: Vec::new(),
        })
    }

    /// Sends a line.
    pub(super) fn send(&mut self, message: &impl Serialize) -> Result<(), BenchError> {
        let mut line =
            serde_json::to_vec(message).map_err(|error| BenchError::Protocol(error.to_string()))?;
        line.push(b'\n');
        self.stream.write_all(&line).map_err(connection_error)
    }

    /// Receives a line, for which the other side has a limited time.
    pub(super) fn receive<T: DeserializeOwned>(
        &mut self,
        limit: Duration,
    ) -> Result<T, BenchError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.pending.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.pending.drain(..=end).collect();
                return serde_json::from_slice(&line)
                    .map_err(|error| BenchError::Protocol(error.to_string()));
            }
            if self.pending.len() > MAX_LINE {
                let why = format!("a line has more than {MAX_LINE} bytes");
                return Err(BenchError::Protocol(why));
            }
            if interrupt::is_interrupted() {
                return Err(BenchError::Interrupted);
            }
            if Instant::now() >= deadline {
                return Err(BenchError::Silent(limit.as_secs()));
            }
            let mut buffer = [0; 4096];
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(BenchError::Closed),
                Ok(count) => self.pending.extend_from_slice(&buffer[..count]),
                Err(error) if is_temporary(&error) => {}
                Err(error) => return Err(connection_error(error)),
            }
        }
    }

    /// Sends a request and receives the reply.
    pub(super) fn ask(&mut self, request: &Request) -> Result<Reply, BenchError> {
        self.send(request)?;
        self.receive(REPLY_LIMIT)
    }

    /// Returns the connection, on which nothing but one line was received.
    pub(super) fn into_stream(self) -> Result<TcpStream, BenchError> {
        match self.pending.is_empty() {
            true => Ok(self.stream),
            false => Err(BenchError::Protocol("bytes came too early".into())),
        }
    }
}

fn is_temporary(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
    )
}

fn connection_error(error: io::Error) -> BenchError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => BenchError::Closed,
        _ => BenchError::Connection(error),
    }
}

/// The error of a reply that does not fit the request.
pub(super) fn unexpected(reply: &Reply) -> BenchError {
    match reply {
        Reply::Refused { why } => BenchError::Refused(why.clone()),
        _ => BenchError::Protocol("the reply does not fit the request".into()),
    }
}

impl Moved {
    /// Adds the bytes of a report.
    pub(super) fn add(&mut self, report: &uncopied::Report) {
        self.bytes += report.bytes();
        self.zero_copy += report.zero_copy_bytes();
        self.kernel_copied += report.kernel_copied();
        self.mapped += report.by(uncopied::Mechanism::MapReceive);
        for (mechanism, bytes) in report.by_mechanism() {
            let name = mechanism.name().to_owned();
            *self.by_mechanism.entry(name).or_default() += bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_unknown_is_accepted() {
        let parse = serde_json::from_str::<Request>;
        assert!(parse(r#"{"hello":{"protocol":1}}"#).is_ok());
        assert!(parse(r#""ready""#).is_ok());
        for line in [
            r#"{"hello":{"protocol":1,"more":2}}"#,
            r#"{"hello":{}}"#,
            r#"{"greeting":{"protocol":1}}"#,
            r#"{"mark":{"is_measuring":1}}"#,
            "",
            "[]",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
