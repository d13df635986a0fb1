//! Waits by `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, socket_timeout};

use crate::channel::Channel;
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::memory_transfer::{MemoryProgress, MemoryTransfer};
use crate::transfer::{Progress, Transfer};

/// Steps `transfer` to its end, waiting wherever it is blocked.
///
/// If the socket has a send time-out (`SO_SNDTIMEO`), it bounds each stretch in which the socket
/// takes nothing, not the whole transfer.
///
/// # Errors
///
/// Those of [`Transfer::step`], and [`ErrorKind::TimedOut`]. The transfer tells where it stands and
/// may be run again after a time-out.
pub fn run(transfer: &mut Transfer, source: impl AsFd, sink: impl AsFd) -> Result<(), Error> {
    let (source, sink) = (source.as_fd(), sink.as_fd());
    let patience = socket_timeout(sink, Timeout::Send).unwrap_or(None);
    let mut last_progress = Instant::now();
    loop {
        match transfer.step(source, sink)? {
            Progress::Done => return Ok(()),
            Progress::Moved(_) => last_progress = Instant::now(),
            Progress::Blocked(side) => {
                let left =
                    patience.map(|patience| patience.saturating_sub(last_progress.elapsed()));
                wait(side, source, sink, left).map_err(|cause| match cause.kind() {
                    io::ErrorKind::TimedOut => {
                        transfer.driver_error(ErrorKind::TimedOut, "poll", cause)
                    }
                    _ => transfer.driver_error(ErrorKind::Sink, "poll", cause),
                })?;
            }
        }
    }
}

/// Steps the send to its end, as [`run`] does.
pub(crate) fn send(
    transfer: &mut MemoryTransfer,
    channel: &mut Channel,
    sink: BorrowedFd<'_>,
) -> Result<(), Error> {
    let patience = socket_timeout(sink, Timeout::Send).unwrap_or(None);
    let mut last_progress = Instant::now();
    loop {
        let progress = transfer.step(channel, sink)?;
        let left = patience.map(|patience| patience.saturating_sub(last_progress.elapsed()));
        let waited = match progress {
            MemoryProgress::Done => return Ok(()),
            MemoryProgress::Moved => {
                last_progress = Instant::now();
                continue;
            }
            MemoryProgress::SteppedDown => continue,
            // Not poll(2) alone decides: to it the socket is ready while anything is on its error queue.
            MemoryProgress::Blocked | MemoryProgress::OverQuota if left == Some(Duration::ZERO) => {
                Err(io::ErrorKind::TimedOut.into())
            }
            MemoryProgress::Blocked => {
                channel.reap();
                wait(Side::Sink, sink, sink, left)
            }
            MemoryProgress::OverQuota => channel.wait(left),
        };
        waited.map_err(|cause| {
            let kind = match cause.kind() {
                io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                _ => ErrorKind::Sink,
            };
            transfer.error(kind, "poll", Some(cause))
        })?;
    }
}

fn wait(
    side: Side,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    left: Option<Duration>,
) -> io::Result<()> {
    let mut ready = match side {
        Side::Source => [PollFd::from_borrowed_fd(source, PollFlags::IN)],
        Side::Sink => [PollFd::from_borrowed_fd(sink, PollFlags::OUT)],
    };
    let limit = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut ready, limit.as_ref()) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        // An error or a hang-up is ready as well: the next step meets it.
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
