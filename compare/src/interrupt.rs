//! Turns Ctrl-C and SIGTERM into errors, so that a run cleans up on its way out: it stops child
//! processes, removes temporary files, and restores the congestion control.

use uncopied_measure::interrupt;

use crate::error::{Context, Error};

/// Starts to watch for SIGINT and SIGTERM.
pub(crate) fn watch() -> Result<(), Error> {
    interrupt::watch().context(|| "cannot watch for signals".into())
}

/// Returns [`Error::Interrupted`] if SIGINT or SIGTERM has arrived.
pub(crate) fn check() -> Result<(), Error> {
    if interrupt::is_interrupted() {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}
