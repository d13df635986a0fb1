//! A contender of this comparison, and how it is started.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use crate::error::Error;
use crate::participant::Contender;
use crate::process;

/// A file server to compare.
pub(crate) struct FileServer {
    /// Its name on the command line and in every table.
    pub(super) name: &'static str,
    /// What it is, in one sentence for the report.
    pub(super) about: &'static str,
    /// Whether it belongs to this project.
    pub(super) ours: bool,
    /// How to start it.
    ///
    /// Returns [`Error::Unavailable`] with what to install if it cannot be started.
    pub(super) prepare: fn(&ServerSetup<'_>) -> Result<Launch, Error>,
}

impl Contender for FileServer {
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

/// What the command line and the configuration of a server are built from.
pub(super) struct ServerSetup<'a> {
    /// The directory of files to serve.
    pub(super) files: &'a Path,
    /// An empty directory for files of its own.
    pub(super) scratch: &'a Path,
    /// The address to listen on.
    pub(super) address: SocketAddr,
}

/// How to start a server as one process with one event loop.
pub(super) struct Launch {
    /// The program and its arguments.
    pub(super) command: Vec<OsString>,
    /// What exactly is run.
    pub(super) version: String,
    /// Its configuration file, if it has one.
    pub(super) configuration: Option<String>,
}

/// The arguments of the servers that are hidden subcommands of this program.
#[derive(Args)]
pub(crate) struct ServerFlags {
    /// The directory to serve.
    pub(super) dir: PathBuf,
    /// The address to listen on.
    #[arg(long)]
    pub(super) listen: SocketAddr,
}

/// The command of a server that is a hidden subcommand of this program.
pub(super) fn own_subcommand(name: &str, setup: &ServerSetup<'_>) -> Result<Vec<OsString>, Error> {
    Ok(vec![
        process::own_program()?.into(),
        name.into(),
        setup.files.into(),
        "--listen".into(),
        setup.address.to_string().into(),
    ])
}
