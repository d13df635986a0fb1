//! The type of the contenders of `compare serve`, and how their servers are started.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;

use super::case::ServeCase;
use crate::error::Error;
use crate::participant::Contender;
use crate::process::{self, Launch};

/// A file server to compare.
pub(crate) struct FileServer {
    /// The contender's name on the command line and in every table.
    pub(super) name: &'static str,
    /// A phrase for the report that says what the contender is.
    pub(super) about: &'static str,
    /// Whether the contender is part of this project.
    pub(super) ours: bool,
    /// The contender that this one is a variant of, if it is one. The report compares a variant
    /// only with that contender.
    pub(super) variant_of: Option<&'static str>,
    /// Whether the contender is measured in a case.
    pub(super) takes_part: fn(ServeCase) -> bool,
    /// Returns the command and the configuration with which to start the server.
    ///
    /// Returns [`Error::Unavailable`] if the server cannot be started. If something has to be
    /// installed, the message says what.
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

/// The maximum number of files that each server keeps open between requests: the limit of
/// `uncopied serve`, if it may open enough descriptors.
pub(super) const OPEN_FILES: u32 = 4096;

/// See [`with_one_small_file`].
const SMALL_FILE_MAX_BYTES: u64 = 1024;

/// For contenders that are measured in every case.
pub(super) fn always(_: ServeCase) -> bool {
    true
}

/// For contenders that are measured only with one file, to save time.
pub(super) fn with_one_file(case: ServeCase) -> bool {
    case.files == 1
}

/// For contenders that are measured only with one small file, because nothing else is of interest.
pub(super) fn with_one_small_file(case: ServeCase) -> bool {
    case.files == 1 && case.size <= SMALL_FILE_MAX_BYTES
}

/// The values that a server's command line and configuration are built from.
pub(super) struct ServerSetup<'a> {
    /// The directory of files to serve.
    pub(super) files: &'a Path,
    /// An empty directory for the server's own files, such as its configuration.
    pub(super) scratch: &'a Path,
    /// The address to listen on.
    pub(super) address: SocketAddr,
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

/// Returns the command line of a server that is a hidden subcommand of this program.
pub(super) fn own_subcommand(name: &str, setup: &ServerSetup<'_>) -> Result<Vec<OsString>, Error> {
    Ok(vec![
        process::own_program()?.into(),
        name.into(),
        setup.files.into(),
        "--listen".into(),
        setup.address.to_string().into(),
    ])
}
