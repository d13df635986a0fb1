//! The driver for blocking code. It waits with `poll(2)`.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, socket_timeout};

use crate::endpoint::{self, StreamSocket};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::mechanism::memory_to_socket::MemorySink;
use crate::mechanism::socket_to_memory::{MemorySource, Waiting};
use crate::policy::{DescriptorKind, Mechanism};
use crate::sys::Linux;
use crate::transfer::{
    AnyTransfer, ChunkProgress, ChunkTransfer, DescriptorTransfer, MemoryProgress, MemoryTransfer,
    Progress, ReceiveTransfer, RelayTransfer, Transfer,
};

/// Runs `transfer` to its end. Blocks the thread whenever the transfer has to wait.
///
/// If the socket has a send timeout (`SO_SNDTIMEO`), the timeout limits each period in which the
/// socket accepts no bytes. It does not limit the duration of the whole transfer.
///
/// # Errors
///
/// The errors of [`Transfer::step`], [`ErrorKind::TimedOut`], and [`ErrorKind::Sink`] if `poll(2)`
/// fails. After a timeout, the transfer can be run again and continues where it stopped.
///
/// ```
/// use std::{fs::File, os::unix::net::UnixStream};
/// use uncopied::{SendFile, driver};
///
/// let file = File::open("Cargo.toml")?;
/// let (socket, _peer) = UnixStream::pair()?;
/// let mut transfer = SendFile::new(&file).transfer(&socket)?;
/// driver::blocking::run(&mut transfer, &file, &socket)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run(
    transfer: &mut Transfer,
    source: impl AsFd,
    sink: &impl StreamSocket,
) -> Result<(), Error> {
    let (source, sink) = (source.as_fd(), sink.as_fd());
    let mut stall = StallTimer::of_send();
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

/// Runs the send to its end, in the same way as [`run`].
pub(crate) fn send(
    transfer: &mut MemoryTransfer,
    sink: &mut MemorySink,
    socket: BorrowedFd<'_>,
) -> Result<(), Error> {
    let mut stall = StallTimer::of_send();
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
        // Sleep briefly if `wait` returned only because the error queue has entries, and none of
        // them was a notification of ours. Such entries may stay in the queue, and `poll(2)` would
        // then return at once again.
        if !is_ready && sink.reap() == 0 {
            thread::sleep(ERROR_QUEUE_BACKOFF);
        }
    }
}

/// Receives until the chunk of `source` is complete. Returns false if the stream has ended.
///
/// If the socket has a receive timeout (`SO_RCVTIMEO`), the call waits no longer than that. It then
/// returns what has arrived, even if that is less than `SO_RCVLOWAT` says.
///
/// If the socket `is_blocking`, a step of `copy` waits in its own system call, which saves one. If
/// it is not after all, or if a timeout or a signal ends that call, the rest of the wait is that of
/// other mechanisms.
pub(crate) fn receive(
    transfer: &mut ChunkTransfer,
    source: &mut MemorySource,
    socket: BorrowedFd<'_>,
    is_blocking: bool,
) -> Result<bool, Error> {
    let mut stall = StallTimer::of_receive();
    let mut backoff = ERROR_QUEUE_BACKOFF;
    let mut must_wait = source.must_wait();
    let mut waits_in_call = is_blocking && transfer.mechanism() == Mechanism::Copy;
    loop {
        let mut timeout = None;
        let mut waiting = Waiting::Done;
        if waits_in_call {
            stall.start();
            waiting = Waiting::InCall;
        } else if must_wait {
            let waited = stall
                .left(socket)
                .and_then(|left| wait_until_readable(socket, left, &mut backoff));
            match waited {
                Ok(true) => {}
                Ok(false) => continue,
                Err(cause) if cause.kind() == io::ErrorKind::TimedOut => timeout = Some(cause),
                Err(cause) => return Err(transfer.driver_error(ErrorKind::Source, cause)),
            }
        }
        waits_in_call = false;
        match transfer.step(source, socket, waiting)? {
            ChunkProgress::Done => return Ok(true),
            ChunkProgress::Ended => return Ok(false),
            ChunkProgress::Moved | ChunkProgress::FellBack => must_wait = false,
            ChunkProgress::Blocked => match timeout {
                Some(cause) => return Err(transfer.driver_error(ErrorKind::TimedOut, cause)),
                None => must_wait = true,
            },
        }
    }
}

/// Runs `transfer` to its end. Blocks the thread whenever the transfer has to wait.
///
/// If the socket has a receive timeout (`SO_RCVTIMEO`), the timeout limits each period in which the
/// socket delivers no bytes. It does not limit the duration of the whole transfer, nor how long a
/// full pipe is waited for.
///
/// # Errors
///
/// The errors of [`ReceiveTransfer::step`], [`ErrorKind::TimedOut`], and [`ErrorKind::Source`] or
/// [`ErrorKind::Sink`] if `poll(2)` fails. After a timeout, the transfer can be run again and
/// continues where it stopped, as it can after an error of the sink.
///
/// ```
/// use std::{io::Write, os::unix::net::UnixStream};
/// use uncopied::{ReceiveFile, driver};
///
/// let (mut peer, socket) = UnixStream::pair()?;
/// peer.write_all(b"hello")?;
/// drop(peer);
/// let file = tempfile::tempfile()?;
/// let mut transfer = ReceiveFile::new(&file).transfer(&socket)?;
/// driver::blocking::run_receive(&mut transfer, &socket, &file)?;
/// assert_eq!(transfer.report().bytes(), 5);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn run_receive(
    transfer: &mut ReceiveTransfer,
    source: &impl StreamSocket,
    sink: impl AsFd,
) -> Result<(), Error> {
    let (source, sink) = (source.as_fd(), sink.as_fd());
    let is_blocking = endpoint::is_blocking(source);
    let mut stall = StallTimer::of_receive();
    let mut backoff = ERROR_QUEUE_BACKOFF;
    // A call that waits for the socket itself saves another that does.
    let mut may_wait = is_blocking;
    loop {
        if may_wait {
            stall.start();
        }
        match transfer.step_with(&Linux, source, sink, may_wait)? {
            Progress::Done => return Ok(()),
            Progress::Moved(_) => {
                stall.restart();
                may_wait = is_blocking;
            }
            Progress::Blocked(Side::Source) => {
                may_wait = false;
                let failed = |cause: io::Error| {
                    let kind = match cause.kind() {
                        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
                        _ => ErrorKind::Source,
                    };
                    transfer.driver_error(kind, "poll", cause)
                };
                // Make no step before the socket is readable. If the socket is blocking, `splice`
                // would wait for the whole timeout, and again after every signal.
                while !stall
                    .left(source)
                    .and_then(|left| wait_until_readable(source, left, &mut backoff))
                    .map_err(failed)?
                {}
            }
            Progress::Blocked(Side::Sink) => {
                stall.restart();
                wait(Side::Sink, source, sink, None)
                    .map_err(|cause| transfer.driver_error(ErrorKind::Sink, "poll", cause))?;
            }
        }
    }
}

/// Runs `transfer` to its end. Blocks the thread whenever the transfer has to wait.
///
/// The receive timeout of the source (`SO_RCVTIMEO`) limits each period in which it delivers no
/// bytes, and the send timeout of the sink (`SO_SNDTIMEO`) each period in which it accepts none.
///
/// # Errors
///
/// The errors of [`RelayTransfer::step`], [`ErrorKind::TimedOut`], and [`ErrorKind::Source`] or
/// [`ErrorKind::Sink`] if `poll(2)` fails. After a timeout, the transfer can be run again and
/// continues where it stopped.
pub fn run_relay(
    transfer: &mut RelayTransfer,
    source: &impl StreamSocket,
    sink: &impl StreamSocket,
) -> Result<(), Error> {
    let (source, sink) = (source.as_fd(), sink.as_fd());
    let is_blocking = endpoint::is_blocking(source);
    let mut receiving = StallTimer::of_receive();
    let mut sending = StallTimer::of_send();
    let mut backoff = ERROR_QUEUE_BACKOFF;
    let mut must_wait = false;
    loop {
        // `splice` would wait in its own call, with a pipe that another thread could use.
        if must_wait || (is_blocking && transfer.splices_next()) {
            while !receiving
                .left(source)
                .and_then(|left| wait_until_readable(source, left, &mut backoff))
                .map_err(|cause| transfer.driver_error(Side::Source, "poll", cause))?
            {}
        }
        must_wait = false;
        match transfer.step(source, sink)? {
            Progress::Done => return Ok(()),
            Progress::Moved(_) => {
                receiving.restart();
                sending.restart();
            }
            Progress::Blocked(Side::Source) => must_wait = true,
            Progress::Blocked(Side::Sink) => {
                receiving.restart();
                let is_ready = sending
                    .left(sink)
                    .and_then(|left| wait(Side::Sink, source, sink, left))
                    .map_err(|cause| transfer.driver_error(Side::Sink, "poll", cause))?;
                if !is_ready {
                    thread::sleep(ERROR_QUEUE_BACKOFF);
                }
            }
        }
    }
}

/// Runs `transfer` to its end, or until `is_stopped` becomes true, which is looked at between two
/// steps. Blocks the thread whenever the transfer has to wait.
///
/// If the sink is a socket with a send timeout (`SO_SNDTIMEO`), the timeout limits each period in
/// which it accepts no bytes.
pub(crate) fn run_descriptors(
    transfer: &mut DescriptorTransfer,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    is_stopped: &AtomicBool,
) -> Result<(), Error> {
    // A call that waits itself saves another that does.
    let may_wait = endpoint::is_blocking(source) && endpoint::is_blocking(sink);
    let mut stall = StallTimer::of_send();
    while !is_stopped.load(Ordering::Relaxed) {
        // Only a socket has a timeout.
        if may_wait && transfer.sink_kind() == DescriptorKind::Socket {
            stall.start();
        }
        match transfer.step(&Linux, source, sink, may_wait)? {
            Progress::Done => return Ok(()),
            Progress::Moved(_) => stall.restart(),
            Progress::Blocked(Side::Source) => {
                stall.restart();
                wait(Side::Source, source, sink, None)
                    .map_err(|cause| transfer.driver_error(Side::Source, "poll", cause))?;
            }
            Progress::Blocked(Side::Sink) => {
                let is_ready = stall
                    .left(sink)
                    .and_then(|left| wait(Side::Sink, source, sink, left))
                    .map_err(|cause| transfer.driver_error(Side::Sink, "poll", cause))?;
                if !is_ready {
                    thread::sleep(ERROR_QUEUE_BACKOFF);
                }
            }
        }
    }
    Ok(())
}

/// Waits until a descriptor that was not ready is. If it is a socket, for at most its timeout.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`], and the errors of `poll(2)`.
pub(crate) fn wait_until_ready(descriptor: BorrowedFd<'_>, side: Side) -> io::Result<()> {
    let mut stall = match side {
        Side::Source => StallTimer::of_receive(),
        Side::Sink => StallTimer::of_send(),
    };
    let left = stall.left(descriptor)?;
    if !wait(side, descriptor, descriptor, left)? {
        thread::sleep(ERROR_QUEUE_BACKOFF);
    }
    Ok(())
}

/// Runs a transfer in any direction to its end, with the function of its direction.
/// [`run_descriptors`] says what `is_stopped` does. In other directions, it has no effect.
pub(crate) fn run_any(
    transfer: &mut AnyTransfer,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
    is_stopped: &AtomicBool,
) -> Result<(), Error> {
    match transfer {
        AnyTransfer::Send(transfer) => run(transfer, source, &sink),
        AnyTransfer::Receive(transfer) => run_receive(transfer, &source, sink),
        AnyTransfer::Relay(transfer) => run_relay(transfer, &source, &sink),
        AnyTransfer::Descriptors(transfer) => run_descriptors(transfer, source, sink, is_stopped),
    }
}

/// Waits until the socket is readable or its stream has ended, for at most `left`. Returns `false`
/// if a signal has ended the wait, or if only the error queue of the socket has entries, in which
/// case `poll(2)` returns at once. The call then sleeps for `backoff`, and doubles it.
fn wait_until_readable(
    socket: BorrowedFd<'_>,
    left: Option<Duration>,
    backoff: &mut Duration,
) -> io::Result<bool> {
    let mut ready = [PollFd::from_borrowed_fd(socket, PollFlags::IN)];
    let limit = left.and_then(|left| Timespec::try_from(left).ok());
    match poll(&mut ready, limit.as_ref()) {
        Ok(0) => Err(io::ErrorKind::TimedOut.into()),
        Ok(_) if ready[0].revents() == PollFlags::ERR => {
            thread::sleep(left.map_or(*backoff, |left| left.min(*backoff)));
            *backoff = (*backoff * 2).min(MAX_RECEIVE_BACKOFF);
            Ok(false)
        }
        Ok(_) => Ok(true),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn kind_of(cause: &io::Error) -> ErrorKind {
    match cause.kind() {
        io::ErrorKind::TimedOut => ErrorKind::TimedOut,
        _ => ErrorKind::Sink,
    }
}

/// Measures how long no bytes have moved, and enforces a timeout of the socket.
struct StallTimer {
    of_socket: Timeout,
    /// The socket's timeout. The outer `Option` is `None` until the timeout is first needed,
    /// because most sends never wait. The inner `Option` is `None` if the socket has no timeout.
    limit: Option<Option<Duration>>,
    /// The time at which the transfer was first found blocked after bytes last moved. `None` if it
    /// has not been blocked since then.
    since: Option<Instant>,
}

impl StallTimer {
    /// Enforces the send timeout.
    fn of_send() -> Self {
        Self {
            of_socket: Timeout::Send,
            limit: None,
            since: None,
        }
    }

    /// Enforces the receive timeout.
    fn of_receive() -> Self {
        Self {
            of_socket: Timeout::Recv,
            ..Self::of_send()
        }
    }

    /// Starts the measurement.
    fn start(&mut self) {
        self.since.get_or_insert_with(Instant::now);
    }

    /// Restarts the measurement, because bytes have moved.
    fn restart(&mut self) {
        self.since = None;
    }

    /// Returns how much longer the socket may move no bytes before the timeout expires, or `None`
    /// if there is no timeout.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::TimedOut`] if the timeout has expired.
    fn left(&mut self, socket: BorrowedFd<'_>) -> io::Result<Option<Duration>> {
        let of_socket = || socket_timeout(socket, self.of_socket).unwrap_or(None);
        let Some(limit) = *self.limit.get_or_insert_with(of_socket) else {
            return Ok(None);
        };
        let since = self.since.get_or_insert_with(Instant::now);
        // Check the elapsed time here, because the timeout that is passed to `poll(2)` is not
        // enough: while the error queue is not empty, `poll(2)` always returns at once and never
        // times out.
        match limit.saturating_sub(since.elapsed()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

/// How long to sleep before polling again if a socket is ready only because its error queue has
/// entries that are not our notifications.
const ERROR_QUEUE_BACKOFF: Duration = Duration::from_millis(1);

/// The longest time to sleep before polling a socket to receive from again. It delays bytes that
/// arrive while the error queue has entries. A sender on the same socket that waits for its
/// notifications removes them.
const MAX_RECEIVE_BACKOFF: Duration = Duration::from_millis(16);

/// Waits until `side` is ready, for at most `left`. Returns `false` if `poll(2)` reports nothing
/// but `POLLERR`, which it does while the socket's error queue has entries.
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
