//! Waits by `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, socket_timeout};

use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::mechanism::memory_to_socket::MemorySink;
use crate::transfer::{MemoryProgress, MemoryTransfer, Progress, Transfer};

/// Steps `transfer` to its end, waiting wherever it is blocked.
///
/// If the socket has a send timeout (`SO_SNDTIMEO`), it limits each period in which the socket
/// accepts nothing, not the whole transfer.
///
/// # Errors
///
/// Those of [`Transfer::step`], and [`ErrorKind::TimedOut`]. After a timeout the transfer may be
/// run again; it goes on where it stood.
pub fn run(transfer: &mut Transfer, source: impl AsFd, sink: impl AsFd) -> Result<(), Error> {
    let (source, sink) = (source.as_fd(), sink.as_fd());
    let mut stall = StallTimer::default();
    loop {
        match transfer.step(source, sink)? {
            Progress::Done => return Ok(()),
            Progress::Moved(_) => stall.restart(),
            Progress::Blocked(side) => {
                let waited = stall
                    .left(sink)
                    .and_then(|left| wait(side, source, sink, left));
                let is_ready = waited
                    .map_err(|cause| transfer.driver_error(kind_of(&cause), "poll", cause))?;
                if !is_ready {
                    thread::sleep(ERROR_QUEUE_BACKOFF);
                }
            }
        }
    }
}

/// Steps the send to its end, as [`run`] does.
pub(crate) fn send(
    transfer: &mut MemoryTransfer,
    sink: &mut MemorySink,
    socket: BorrowedFd<'_>,
) -> Result<(), Error> {
    let mut stall = StallTimer::default();
    loop {
        let progress = transfer.step(sink, socket)?;
        let waited = match progress {
            MemoryProgress::Done => return Ok(()),
            MemoryProgress::Moved => {
                stall.restart();
                continue;
            }
            MemoryProgress::FellBack => continue,
            MemoryProgress::Blocked => stall
                .left(socket)
                .and_then(|left| wait(Side::Sink, socket, socket, left)),
            MemoryProgress::AtLimit => stall
                .left(socket)
                .and_then(|left| sink.wait_at_limit(left).map(|()| true)),
        };
        let is_ready =
            waited.map_err(|cause| transfer.driver_error(kind_of(&cause), "poll", cause))?;
        // To poll(2), a notification is an error. So are other entries of the error queue, which
        // stay there.
        if !is_ready && sink.reap() == 0 {
            thread::sleep(ERROR_QUEUE_BACKOFF);
        }
    }
}

fn kind_of(cause: &io::Error) -> ErrorKind {
    match cause.kind() {
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        _ => ErrorKind::Sink,
    }
}

/// Measures how long nothing has moved, against the send timeout of the socket.
#[derive(Default)]
struct StallTimer {
    /// The send timeout, once it has been looked up: most sends never wait.
    limit: Option<Option<Duration>>,
    /// Since when nothing has moved.
    since: Option<Instant>,
}

impl StallTimer {
    /// Starts again, because something has moved.
    fn restart(&mut self) {
        self.since = None;
    }

    /// How much longer nothing may move. `None` means forever.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] if that time is over.
    fn left(&mut self, sink: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
        let of_socket = || socket_timeout(sink, Timeout::Send).unwrap_or(None);
        let Some(limit) = *self.limit.get_or_insert_with(of_socket) else {
            return Ok(None);
        };
        let since = self.since.get_or_insert_with(Instant::now);
        // poll(2) alone cannot decide: it finds the socket ready while its error queue is not
        // empty.
        match limit.saturating_sub(since.elapsed()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// Back-off while a socket is ready only because of foreign entries of its error queue.
const ERROR_QUEUE_BACKOFF: Duration = Duration::from_millis(1);

/// Waits until a side is ready. Returns `false` if only its error queue is.
fn wait(
    side: Side,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    left: Option<Duration>,
) -> io::Result<bool> {
    let mut ready = match side {
        Side::Source => [PollFd::from_borrowed_fd(source, PollFlags::IN)],
        Side::Sink => [PollFd::from_borrowed_fd(sink, PollFlags::OUT)],
    };
    let limit = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut ready, limit.as_ref()) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        // A hang-up counts as ready: the next step reports it.
        Ok(_) => Ok(ready[0].revents() != PollFlags::ERR),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
