//! The type of the contenders of `compare memory`.

use std::ffi::OsString;

use super::iperf3::client;
use super::job::{MemoryJob, SenderReport, SenderSetup, SentBytes};
use super::receive::Protocol;
use crate::error::Error;
use crate::participant::Contender;
use crate::{pattern, process};

/// A program that sends memory over TCP.
pub(crate) struct MemorySender {
    /// The contender's name on the command line and in every table.
    pub(super) name: &'static str,
    /// A phrase for the report that says what the contender is.
    pub(super) about: &'static str,
    /// Whether the contender is part of this project.
    pub(super) ours: bool,
    /// Returns the name and the version of the software that sends.
    ///
    /// Returns [`Error::Unavailable`] if the contender cannot be run. The message says what to
    /// install, or why this machine does not support the contender.
    pub(super) version: fn() -> Result<String, Error>,
    /// The program that sends.
    pub(super) program: SendingProgram,
}

/// The program that sends.
pub(super) enum SendingProgram {
    /// This program, which calls the given function. It sends over one connection.
    Own(fn(MemoryJob) -> Result<SentBytes, Error>),
    /// This program, which calls the given function. It sends over any number of connections.
    OwnFanOut(fn(MemoryJob) -> Result<SentBytes, Error>),
    /// iperf3.
    Iperf3(client::Mode),
}

impl Contender for MemorySender {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn is_ours(&self) -> bool {
        self.ours
    }
}

impl MemorySender {
    /// Returns the name and the version of the software that sends, or an error if the contender
    /// cannot be run, or cannot send over this number of connections.
    pub(super) fn version(&self, connections: u16) -> Result<String, Error> {
        match self.can_open(connections) {
            true => (self.version)(),
            false => Err(Error::Unavailable(
                "it sends over one connection only".into(),
            )),
        }
    }

    /// Returns the largest size that the contender can send with one call, or `None` if there is no
    /// limit.
    pub(super) fn max_size(&self) -> Option<u64> {
        match self.program {
            SendingProgram::Own(_) | SendingProgram::OwnFanOut(_) => None,
            SendingProgram::Iperf3(_) => Some(client::MAX_SIZE_BYTES),
        }
    }

    /// Whether the contender can send over this number of connections.
    pub(super) fn can_open(&self, connections: u16) -> bool {
        connections == 1 || matches!(self.program, SendingProgram::OwnFanOut(_))
    }

    /// Whether the contender can send `size` bytes with one call.
    pub(super) fn supports(&self, size: u64) -> bool {
        self.max_size().is_none_or(|max_size| size <= max_size)
    }

    /// Returns the command line of the contender's process.
    pub(super) fn command(&self, setup: &SenderSetup<'_>) -> Result<Vec<OsString>, Error> {
        match &self.program {
            SendingProgram::Own(_) | SendingProgram::OwnFanOut(_) => {
                own_subcommand(self.name, setup)
            }
            SendingProgram::Iperf3(mode) => Ok(mode.command(setup)),
        }
    }

    /// Returns the protocol that the contender uses to send buffers of `size` bytes.
    pub(super) fn protocol(&self, size: u64) -> Protocol {
        match self.program {
            SendingProgram::Own(_) | SendingProgram::OwnFanOut(_) => {
                Protocol::Bytes(pattern::bytes(size))
            }
            SendingProgram::Iperf3(_) => Protocol::Iperf3,
        }
    }

    /// Returns the function that sends, or `None` if the contender is not built into this program.
    pub(super) fn own_function(&self) -> Option<fn(MemoryJob) -> Result<SentBytes, Error>> {
        match self.program {
            SendingProgram::Own(send) | SendingProgram::OwnFanOut(send) => Some(send),
            SendingProgram::Iperf3(_) => None,
        }
    }

    /// Parses the report that the contender has printed after sending.
    pub(super) fn parse_report(&self, printed: &str) -> Result<SenderReport, Error> {
        match &self.program {
            SendingProgram::Own(_) | SendingProgram::OwnFanOut(_) => SenderReport::parse(printed),
            SendingProgram::Iperf3(mode) => mode.parse_report(printed),
        }
    }

    /// Returns the failure that the contender has reported on standard output, if there is one.
    /// Only iperf3 reports failures there. The contenders that are built into this program print
    /// them on standard error.
    pub(super) fn failure(&self, printed: &str) -> Option<Error> {
        match &self.program {
            SendingProgram::Own(_) | SendingProgram::OwnFanOut(_) => None,
            SendingProgram::Iperf3(_) => client::failure(printed),
        }
    }
}

/// Returns the command line of a sender that is built into this program.
fn own_subcommand(name: &str, setup: &SenderSetup<'_>) -> Result<Vec<OsString>, Error> {
    Ok(vec![
        process::own_program()?.into(),
        "memory-sender".into(),
        "--contender".into(),
        name.into(),
        "--connect".into(),
        format!("127.0.0.1:{}", setup.port).into(),
        "--connections".into(),
        setup.connections.to_string().into(),
        "--size".into(),
        setup.size.into(),
        "--congestion".into(),
        setup.congestion.into(),
    ])
}
