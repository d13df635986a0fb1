//! A contender of this comparison.

use std::ffi::OsString;

use super::iperf3::client;
use super::job::{MemoryJob, SenderReport, SenderSetup, SentBytes};
use super::receive::Protocol;
use crate::error::Error;
use crate::participant::Contender;
use crate::{pattern, process};

/// A program that sends memory over TCP.
pub(crate) struct MemorySender {
    /// Its name on the command line and in every table.
    pub(super) name: &'static str,
    /// What it is, in one sentence for the report.
    pub(super) about: &'static str,
    /// Whether it belongs to this project.
    pub(super) ours: bool,
    /// What exactly is run.
    ///
    /// Returns [`Error::Unavailable`] with what to install if it cannot be run, or with why this
    /// machine does not support it.
    pub(super) version: fn() -> Result<String, Error>,
    /// The program that sends.
    pub(super) program: SendingProgram,
}

/// The program that sends.
pub(super) enum SendingProgram {
    /// This program, by that function.
    Own(fn(MemoryJob) -> Result<SentBytes, Error>),
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
    /// What exactly is run, if it can be run.
    pub(super) fn version(&self) -> Result<String, Error> {
        (self.version)()
    }

    /// The size limit of one call, if it has one.
    pub(super) fn max_size(&self) -> Option<u64> {
        match self.program {
            SendingProgram::Own(_) => None,
            SendingProgram::Iperf3(_) => Some(client::MAX_SIZE_BYTES),
        }
    }

    /// Whether it can send `size` bytes with one call.
    pub(super) fn supports(&self, size: u64) -> bool {
        self.max_size().is_none_or(|max_size| size <= max_size)
    }

    /// The program to start, and its arguments.
    pub(super) fn command(&self, setup: &SenderSetup<'_>) -> Result<Vec<OsString>, Error> {
        match &self.program {
            SendingProgram::Own(_) => own_subcommand(self.name, setup),
            SendingProgram::Iperf3(mode) => Ok(mode.command(setup)),
        }
    }

    /// The protocol that it speaks.
    pub(super) fn protocol(&self, size: u64) -> Protocol {
        match self.program {
            SendingProgram::Own(_) => Protocol::Bytes(pattern::bytes(size)),
            SendingProgram::Iperf3(_) => Protocol::Iperf3,
        }
    }

    /// The function of this program that sends, if it is not a program of its own.
    pub(super) fn own_function(&self) -> Option<fn(MemoryJob) -> Result<SentBytes, Error>> {
        match self.program {
            SendingProgram::Own(send) => Some(send),
            SendingProgram::Iperf3(_) => None,
        }
    }

    /// Parses what it has printed at its end.
    pub(super) fn parse_report(&self, printed: &str) -> Result<SenderReport, Error> {
        match &self.program {
            SendingProgram::Own(_) => SenderReport::parse(printed),
            SendingProgram::Iperf3(mode) => mode.parse_report(printed),
        }
    }

    /// The failure in what it has printed, if it prints failures there.
    pub(super) fn failure(&self, printed: &str) -> Option<Error> {
        match &self.program {
            SendingProgram::Own(_) => None,
            SendingProgram::Iperf3(_) => client::failure(printed),
        }
    }
}

/// The command of a sender that is this program.
fn own_subcommand(name: &str, setup: &SenderSetup<'_>) -> Result<Vec<OsString>, Error> {
    Ok(vec![
        process::own_program()?.into(),
        "memory-sender".into(),
        "--contender".into(),
        name.into(),
        "--connect".into(),
        format!("127.0.0.1:{}", setup.port).into(),
        "--size".into(),
        setup.size.into(),
        "--congestion".into(),
        setup.congestion.into(),
    ])
}
