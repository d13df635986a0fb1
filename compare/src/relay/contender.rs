//! The type of the contenders of `compare relay`, and how relays are started.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::Path;

use clap::Args;

use crate::error::Error;
use crate::participant::Contender;
use crate::process::{self, Launch};

/// A relay to compare.
pub(crate) struct RelayProgram {
    /// The contender's name on the command line and in every table.
    pub(super) name: &'static str,
    /// A phrase for the report that says what the contender is.
    pub(super) about: &'static str,
    /// Whether the contender is part of this project.
    pub(super) ours: bool,
    /// Returns the command and the configuration with which to start the relay.
    ///
    /// Returns [`Error::Unavailable`] if the relay cannot be started. If something has to be
    /// installed, the message says what.
    pub(super) prepare: fn(&RelaySetup<'_>) -> Result<Launch, Error>,
}

impl Contender for RelayProgram {
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

/// The values that a relay's command line and configuration are built from.
pub(super) struct RelaySetup<'a> {
    /// An empty directory for the relay's own files, such as its configuration.
    pub(super) scratch: &'a Path,
    /// The address to listen on.
    pub(super) listen: SocketAddr,
    /// The address to relay connections to.
    pub(super) target: SocketAddr,
}

/// The arguments of the relays that are hidden subcommands of this program.
#[derive(Args)]
pub(crate) struct RelayFlags {
    /// The address to listen on.
    pub(super) listen: SocketAddr,
    /// The address to relay connections to.
    pub(super) target: SocketAddr,
}

/// Returns how to start a relay that is a hidden subcommand of this program.
pub(super) fn own_subcommand(
    name: &str,
    version: String,
    setup: &RelaySetup<'_>,
) -> Result<Launch, Error> {
    let command: Vec<OsString> = vec![
        process::own_program()?.into(),
        name.into(),
        setup.listen.to_string().into(),
        setup.target.to_string().into(),
    ];
    Ok(Launch {
        command,
        version,
        configuration: None,
        output: None,
    })
}
