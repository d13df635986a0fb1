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
/// If the socket has a send time-out (`SO_SNDTIMEO`), it bounds each stretch in which the socket
/// takes nothing, not the whole transfer.
///
/// # Errors
///
/// Those of [`Transfer::step`], and [`ErrorKind::TimedOut`]. The transfer tells where it stands and
/// may be run again after a time-out.
pub fn run(transfer: &mut Transfer, source: impl AsFd, sink: impl AsFd) -> Result<(), Error> {
    let (source, sink) = (source.as_fd(), sink.as_fd());
    let mut patience = Patience::default();
    loop {
        match transfer.step(source, sink)? {
            Progress::Done => return Ok(()),
            Progress::Moved(_) => patience.renew(),
            Progress::Blocked(side) => {
                let waited = patience
                    .left(sink)
                    .and_then(|left| wait(side, source, sink, left));
                let is_ready = waited
                    .map_err(|cause| transfer.driver_error(kind_of(&cause), "poll", cause))?;
                if !is_ready {
                    thread::sleep(MOMENT);
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
    let mut patience = Patience::default();
    loop {
        let progress = transfer.step(sink, socket)?;
        let waited = match progress {
            MemoryProgress::Done => return Ok(()),
            MemoryProgress::Moved => {
                patience.renew();
                continue;
            }
            MemoryProgress::FellBack => continue,
            MemoryProgress::Blocked => patience
                .left(socket)
                .and_then(|left| wait(Side::Sink, socket, socket, left)),
            MemoryProgress::AtLimit => patience
                .left(socket)
                .and_then(|left| sink.wait_at_limit(left).map(|()| true)),
        };
        let is_ready =
            waited.map_err(|cause| transfer.driver_error(kind_of(&cause), "poll", cause))?;
        // To poll(2) a notice is an error. So is what others have on the error queue, which stays there.
        if !is_ready && sink.reap() == 0 {
            thread::sleep(MOMENT);
        }
    }
}

fn kind_of(cause: &io::Error) -> ErrorKind {
    match cause.kind() {
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        _ => ErrorKind::Sink,
    }
}

/// How long nothing may move.
#[derive(Default)]
struct Patience {
    /// The socket's send time-out, once it was asked for: most sends never wait.
    limit: Option<Option<Duration>>,
    /// Since when nothing has moved.
    since: Option<Instant>,
}

impl Patience {
    /// Something has moved.
    fn renew(&mut self) {
        self.since = None;
    }

    /// Nothing moves: how much longer that may be so. `None` is for ever.
    fn left(&mut self, sink: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
        let of_socket = || socket_timeout(sink, Timeout::Send).unwrap_or(None);
        let Some(limit) = *self.limit.get_or_insert_with(of_socket) else {
            return Ok(None);
        };
        let since = self.since.get_or_insert_with(Instant::now);
        // Not poll(2) alone decides: to it the socket is ready while anything is on its error queue.
        match limit.saturating_sub(since.elapsed()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// For so long nothing is tried while a socket has an error to tell that is none of ours.
const MOMENT: Duration = Duration::from_millis(1);

/// Waits until a side is ready. Answers whether it is; if not, only its error queue is.
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
        // A hang-up is ready as well: the next step meets it.
        Ok(_) => Ok(ready[0].revents() != PollFlags::ERR),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}
