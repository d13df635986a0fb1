//! Who takes part. To add a contender, write a file that says how it sends, and add it to [`ALL`].

mod copy;
mod iperf3;
mod lending;
mod msg_zerocopy;
mod region;
mod send_zc;
mod vmsplice;
mod write;
mod write_all;

use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use super::receiver::Protocol;
use super::sender::{Account, Job, Sent};
use crate::entrants::{self, Named};
use crate::error::{Context, Error};
use crate::pattern;

/// Everyone who takes part, in the order in which they are measured and listed.
pub(super) const ALL: &[Contender] = &[
    write::CONTENDER,
    write_all::CONTENDER,
    iperf3::WRITING,
    iperf3::SENDFILE,
    copy::CONTENDER,
    vmsplice::CONTENDER,
    region::CONTENDER,
    msg_zerocopy::CONTENDER,
    send_zc::CONTENDER,
];

/// A way from memory to a socket.
pub(super) struct Contender {
    /// How it is named on the command line and in every table.
    pub(super) name: &'static str,
    /// What it is, in a sentence for the report.
    pub(super) about: &'static str,
    /// Whether it is this project's: then it is compared with every peer.
    pub(super) ours: bool,
    /// Says what exactly is run.
    ///
    /// Answers [`Error::Unavailable`] with what to install if it cannot be, or why this machine refuses.
    version: fn() -> Result<String, Error>,
    how: How,
}

/// What sends.
enum How {
    /// This program.
    Within(fn(Job) -> Result<Sent, Error>),
    /// iperf3.
    Iperf3(iperf3::Mode),
}

/// What a sender is given.
pub(super) struct Setup<'a> {
    /// Where it is to connect to on 127.0.0.1.
    pub(super) port: &'a str,
    /// What it is to send with one call, over and over, in bytes.
    pub(super) size: &'a str,
    /// How long it is to send, if it cannot be told to stop.
    pub(super) at_least: Duration,
    /// The congestion control to set on its socket.
    pub(super) congestion: &'a str,
    /// A directory for whatever it needs besides.
    pub(super) scratch: &'a Path,
}

/// Finds a contender by its name.
pub(super) fn by_name(name: &str) -> Result<&'static Contender, String> {
    entrants::by_name(ALL, name)
}

impl Named for Contender {
    fn name(&self) -> &'static str {
        self.name
    }
}

impl Contender {
    /// What exactly is run, if it can be.
    pub(super) fn version(&self) -> Result<String, Error> {
        (self.version)()
    }

    /// The longest buffer that it sends with one call.
    pub(super) fn longest(&self) -> Option<u64> {
        match self.how {
            How::Within(_) => None,
            How::Iperf3(_) => Some(iperf3::LONGEST),
        }
    }

    /// Whether it sends buffers of that size with one call.
    pub(super) fn takes(&self, size: u64) -> bool {
        self.longest().is_none_or(|longest| size <= longest)
    }

    /// The program to start, and its arguments.
    pub(super) fn command(&self, setup: &Setup<'_>) -> Result<Vec<OsString>, Error> {
        match &self.how {
            How::Within(_) => own_subcommand(self.name, setup),
            How::Iperf3(mode) => Ok(mode.command(setup)),
        }
    }

    /// What it speaks.
    pub(super) fn protocol(&self, size: u64) -> Protocol {
        match self.how {
            How::Within(_) => Protocol::Bytes(pattern::bytes(size)),
            How::Iperf3(_) => Protocol::Iperf3,
        }
    }

    /// How this program is to send in its place.
    pub(super) fn send_within(&self) -> Option<fn(Job) -> Result<Sent, Error>> {
        match self.how {
            How::Within(send) => Some(send),
            How::Iperf3(_) => None,
        }
    }

    /// What it says in the end.
    pub(super) fn account(&self, said: &str) -> Result<Account, Error> {
        match &self.how {
            How::Within(_) => Account::parse(said),
            How::Iperf3(mode) => mode.account(said),
        }
    }

    /// What it says of a failure, if it says that among its results.
    pub(super) fn complaint(&self, said: &str) -> Option<Error> {
        match &self.how {
            How::Within(_) => None,
            How::Iperf3(_) => iperf3::complaint(said),
        }
    }
}

/// The command for a sender that is this program.
fn own_subcommand(name: &str, setup: &Setup<'_>) -> Result<Vec<OsString>, Error> {
    let own = std::env::current_exe().context(|| "cannot find this program".into())?;
    Ok(vec![
        own.into(),
        "memory-sender".into(),
        "--how".into(),
        name.into(),
        "--connect".into(),
        format!("127.0.0.1:{}", setup.port).into(),
        "--size".into(),
        setup.size.into(),
        "--congestion".into(),
        setup.congestion.into(),
    ])
}

/// The version of what is part of this program and uses nothing else.
fn own_version() -> Result<String, Error> {
    Ok(format!("compare {}", env!("CARGO_PKG_VERSION")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for contender in ALL {
            let namesakes = ALL.iter().filter(|other| other.name == contender.name);
            assert_eq!(namesakes.count(), 1, "{}", contender.name);
            assert!(by_name(contender.name).is_ok_and(|found| found.about == contender.about));
        }
        assert!(by_name("netperf").is_err_and(|message| message.contains("iperf3-Z")));
    }
}
