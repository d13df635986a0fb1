//! Waits for the other side of a connection, with limits.

use std::time::{Duration, Instant};

use rustix::event::PollFd;
use rustix::io::Errno;
use rustix::time::Timespec;

use crate::error::{Context, Error};
use crate::interrupt;

/// A process that makes no progress for this long is considered failed.
pub(crate) const STALL_LIMIT: Duration = Duration::from_secs(5);

/// Maximum duration of one wait. Between waits, this program checks for Ctrl-C, and for a process
/// that has exited or makes no progress.
pub(super) const WAIT_LIMIT: Duration = Duration::from_millis(100);

/// [`WAIT_LIMIT`] for system calls.
pub(super) const WAIT_LIMIT_TIMESPEC: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: WAIT_LIMIT.as_nanos() as i64,
};

/// Waits until at least one of the descriptors is readable, but not longer than [`WAIT_LIMIT`].
pub(crate) fn wait_readable(descriptors: &mut [PollFd<'_>]) -> Result<(), Error> {
    match rustix::event::poll(descriptors, Some(&WAIT_LIMIT_TIMESPEC)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error).context(|| "cannot wait for bytes".into()),
    }
}

/// Returns an error if `last_progress` is at least [`STALL_LIMIT`] ago, or if the user has
/// interrupted the run.
pub(crate) fn check_progress(last_progress: Instant) -> Result<(), Error> {
    interrupt::check()?;
    if last_progress.elapsed() < STALL_LIMIT {
        return Ok(());
    }
    Err(Error::WrongResult("the sender has stopped sending".into()))
}
