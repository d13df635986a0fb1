//! Who takes part. To add a contender, write a file that says how to start it, and add it to
//! [`ALL`].

pub(crate) mod axum;
pub(crate) mod axum_uncopied;
mod nginx;
pub(crate) mod plain;
mod uncopied;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::entrants::{self, Named};
use crate::error::{Context, Error};

/// Everyone who takes part, in the order in which they are measured and listed.
pub(crate) const ALL: &[Contender] = &[
    uncopied::CONTENDER,
    nginx::CONTENDER,
    plain::CONTENDER,
    axum::CONTENDER,
    axum_uncopied::CONTENDER,
];

/// A server to be compared.
pub(crate) struct Contender {
    /// How it is named on the command line and in every table.
    pub(crate) name: &'static str,
    /// What it is, in a sentence for the report.
    pub(crate) about: &'static str,
    /// Whether it is this project's: then it is compared with every peer.
    pub(crate) ours: bool,
    /// Says how it is started.
    ///
    /// Answers [`Error::Unavailable`] with what to install if it cannot be.
    pub(crate) prepare: fn(&Setup<'_>) -> Result<Launch, Error>,
}

/// What a contender is given.
pub(crate) struct Setup<'a> {
    /// The directory of files to serve.
    pub(crate) files: &'a Path,
    /// An empty directory for whatever it needs besides.
    pub(crate) scratch: &'a Path,
    /// Where it is to listen.
    pub(crate) address: SocketAddr,
}

/// How to start a contender: as one process with one event loop.
pub(crate) struct Launch {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// What exactly is run.
    pub(crate) version: String,
    /// Its configuration file, if it has one.
    pub(crate) configuration: Option<String>,
}

/// Finds a contender by its name.
pub(crate) fn by_name(name: &str) -> Result<&'static Contender, String> {
    entrants::by_name(ALL, name)
}

impl Named for Contender {
    fn name(&self) -> &'static str {
        self.name
    }
}

/// The arguments of the servers that live in this program.
#[derive(Args)]
pub(crate) struct ServeFlags {
    /// The directory to serve.
    dir: PathBuf,
    /// Where to listen.
    #[arg(long)]
    listen: SocketAddr,
}

/// The command for a server that is a hidden subcommand of this program.
fn own_subcommand(name: &str, setup: &Setup<'_>) -> Result<Vec<OsString>, Error> {
    let own = std::env::current_exe().context(|| "cannot find this program".into())?;
    Ok(vec![
        own.into(),
        name.into(),
        setup.files.into(),
        "--listen".into(),
        setup.address.to_string().into(),
    ])
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
        assert!(by_name("apache").is_err_and(|message| message.contains("nginx")));
    }
}
