//! This project's library under the least program: the relay of [`super::tokio`], with
//! `uncopied::tokio::copy_bidirectional` instead of tokio's. It is the hidden subcommand
//! `bare-relay`. What `uncopied relay` costs more than this, the command costs, not the library.

use std::io;

use super::tokio::relay_with;
use crate::error::Error;
use crate::machine;
use crate::relay::contender::{RelayFlags, RelayProgram, own_subcommand};

pub(super) const CONTENDER: RelayProgram = RelayProgram {
    name: "uncopied-bare",
    about: "`uncopied::tokio::copy_bidirectional` in place of tokio's, in the same program",
    ours: true,
    prepare: |setup| own_subcommand("bare-relay", machine::own_version(), setup),
};

/// Runs the hidden subcommand `bare-relay`.
pub(crate) fn run(flags: &RelayFlags) -> Result<(), Error> {
    relay_with(flags, |client, server| async move {
        uncopied::tokio::copy_bidirectional(&client, &server)
            .await
            .map(drop)
            .map_err(io::Error::other)
    })
}
