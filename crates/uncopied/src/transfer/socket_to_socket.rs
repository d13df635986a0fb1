//! The transfer of one stream socket to another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::sockopt::socket_protocol;
use rustix::net::{Shutdown, ipproto, shutdown};

use super::Progress;
use super::fallback::{FallbackEngine, Next};
use crate::error::Error;
use crate::mechanism::Side;
use crate::mechanism::socket_to_socket::{HeldBytes, RelayStep};
use crate::policy::{Direction, Flow, Length, Mechanism, Plan, Support, Tuning};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// A transfer of the bytes of one stream socket to another, one step at a time.
///
/// A `RelayTransfer` owns neither socket, does not wait and needs no runtime. A driver calls
/// [`step`](Self::step), and waits if the result says that the transfer is blocked. The functions
/// of the module [`relay`](crate::relay) use the drivers of this crate. Use a `RelayTransfer`
/// directly if you have an event loop of your own.
///
/// Small messages go by `recv` and `send`. The plan's first mechanism takes over once a read shows
/// that the stream carries bulk data, and stays until several reads in a row were short. While a
/// transfer has nothing to move, it has neither a pipe nor a buffer.
///
/// # Bytes between the sockets
///
/// The sink may accept fewer bytes than were taken from the source. The rest is kept in the
/// transfer, at most what a pipe holds: [`held_bytes`](Self::held_bytes) returns its number, and
/// the next step passes it on. If the transfer is dropped, these bytes are lost. Between two steps,
/// it may be left alone for any length of time.
///
/// ```
/// use std::{io::Read, io::Write, os::unix::net::UnixStream};
/// use uncopied::policy::{Length, RelayPlanInput, plan_relay};
/// use uncopied::{Progress, RelayTransfer, Support};
///
/// let (mut client, source) = UnixStream::pair()?;
/// let (sink, mut server) = UnixStream::pair()?;
/// source.set_nonblocking(true)?;
/// sink.set_nonblocking(true)?;
/// client.write_all(b"hello, world")?;
/// drop(client);
///
/// let plan = plan_relay(&RelayPlanInput::new(), &Support::of_process());
/// let mut transfer = RelayTransfer::new(Length::UntilEof, plan);
/// loop {
///     match transfer.step(&source, &sink)? {
///         Progress::Moved(_) => {}
///         Progress::Blocked(side) => panic!("all bytes have arrived: wait for {side:?}"),
///         Progress::Done => break,
///     }
/// }
/// drop(sink);
/// let mut received = String::new();
/// server.read_to_string(&mut received)?;
/// assert_eq!(received, "hello, world");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RelayTransfer {
    held: HeldBytes,
    flow: Flow,
    is_done: bool,
    short_reads: ShortReads,
    engine: FallbackEngine,
    support: Support,
}

/// What is known of reads of the source that return fewer bytes than they could.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ShortReads {
    /// There was none.
    None,
    /// There was one. Finding out what it means takes two system calls, which a stream that has a
    /// single one does not earn back.
    One,
    /// There were several. `true` if such a read shows that the source has no more bytes.
    Several(bool),
}

impl RelayTransfer {
    /// Creates a transfer of `length` bytes, whose bulk data moves by `plan`. Nothing is received
    /// yet. If the plan is empty, every byte is copied.
    #[must_use]
    pub fn new(length: Length, plan: Plan) -> Self {
        Self {
            held: HeldBytes::default(),
            flow: Flow::new(&Tuning::current()),
            is_done: false,
            short_reads: ShortReads::None,
            engine: FallbackEngine::new(Direction::SocketToSocket, plan, length),
            support: Support::none_refused(),
        }
    }

    /// Sends these bytes first, which were already read from the source: a header, for example. The
    /// report counts them as copied, and they count towards an exact length.
    #[must_use]
    pub fn after(mut self, bytes: Vec<u8>) -> Self {
        self.held = HeldBytes::new(bytes);
        self
    }

    /// Uses the plan for small messages as well.
    pub(crate) fn set_always_bulk(&mut self) {
        self.flow.set_always_bulk();
    }

    /// Records that every byte is copied because zero copy is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.engine.set_switched_off();
    }

    /// Tries once to move bytes, at most 2 MiB. If the sockets are non-blocking, this does not
    /// wait.
    ///
    /// [`Progress::Blocked`] means that the source has no bytes ([`Side::Source`]), or that the
    /// sink is full ([`Side::Sink`]). [`Progress::Done`] means that the stream has ended, or that
    /// its exact length has been reached, and that the sink has accepted every byte. The sink is
    /// not shut down. Every step must be given the same source and sink. SIGPIPE is never raised.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind), and [`Error::side`] for the socket that has failed. The
    /// error contains the report so far, which counts the bytes that the sink has accepted. After
    /// an error, calling `step` again is harmless, but its result has no meaning.
    pub fn step(&mut self, source: impl AsFd, sink: impl AsFd) -> Result<Progress, Error> {
        self.step_with(&Linux, source.as_fd(), sink.as_fd())
    }

    /// Does the same as [`step`](Self::step).
    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
    ) -> Result<Progress, Error> {
        let held = self.held_bytes();
        let untaken = self.remaining().map(|bytes| bytes.saturating_sub(held));
        if self.is_done || (held == 0 && untaken == Some(0)) {
            self.is_done = true;
            return Ok(Progress::Done);
        }
        let step = RelayStep {
            source,
            sink,
            untaken,
        };
        let progress = match self.move_bytes(kernel, self.mechanism(), &step)? {
            // Only a mechanism that has taken nothing is to be replaced for once.
            (Next::CopyOnce(_), _) => self.move_bytes(kernel, Mechanism::Copy, &step),
            other => Ok(other),
        }
        .and_then(|(next, moved)| self.engine.progress(next, moved))?;
        self.is_done = progress == Progress::Done;
        Ok(progress)
    }

    /// Makes the step with `mechanism`, and counts the bytes that it has moved.
    fn move_bytes(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &RelayStep<'_>,
    ) -> Result<(Next, u64), Error> {
        let (mechanism, outcome) = self.held.step(kernel, mechanism, &mut self.flow, step);
        let moved = outcome.moved;
        let next = self.engine.process(mechanism, outcome, &mut self.support)?;
        Ok((next, moved))
    }

    /// Whether the last step has received fewer bytes with `recv` than there was room for.
    ///
    /// If the source is TCP, without kernel TLS, then this means that the step has left no bytes in
    /// it, unless urgent data has ended the read. An event loop of your own can have epoll tell of
    /// urgent data (`EPOLLPRI`, `epoll_ctl(2)`), which costs no system call for each read. Without
    /// that, call [`has_emptied_source`](Self::has_emptied_source).
    #[must_use]
    pub fn last_read_was_short(&self) -> bool {
        self.held.has_read_less()
    }

    /// Whether the last step is known to have left no bytes in the source. An event loop that is
    /// told of new bytes (`EPOLLET`, `epoll(7)`) can then wait, without another step that finds
    /// none. If false, it is not known.
    ///
    /// Only TCP promises that a read which returns fewer bytes than it could has emptied the queue,
    /// and only if neither urgent data nor a record of kernel TLS has ended the read.
    pub fn has_emptied_source(&mut self, source: impl AsFd) -> bool {
        let source = source.as_fd();
        if !self.last_read_was_short() {
            return false;
        }
        self.short_reads = match self.short_reads {
            ShortReads::None => ShortReads::One,
            ShortReads::One => ShortReads::Several(is_plain_tcp(source)),
            known => known,
        };
        self.short_reads == ShortReads::Several(true) && Linux.is_at_mark(source) == Ok(false)
    }

    /// Passes on that the stream has ended: shuts the sink down for writing (`shutdown(2)`). To be
    /// called once the transfer is [done](Self::is_done), if the sink is to be told. A sink whose
    /// peer has already closed or reset the connection is no error.
    ///
    /// # Errors
    ///
    /// The sink cannot be shut down. The error contains the report.
    pub fn pass_on_end(&self, sink: impl AsFd) -> Result<(), Error> {
        match shutdown(sink, Shutdown::Write) {
            Ok(()) | Err(Errno::NOTCONN) => Ok(()),
            Err(errno) => Err(self.driver_error(Side::Sink, "shutdown", errno.into())),
        }
    }

    /// Returns the error for a driver that failed to wait for a side, or to pass on the end of the
    /// stream.
    pub(crate) fn driver_error(&self, side: Side, call: &'static str, cause: io::Error) -> Error {
        self.engine.driver_error(side, call, cause)
    }

    /// Whether the next step takes bytes from the source with `splice`.
    pub(crate) fn splices_next(&self) -> bool {
        self.flow.is_bulk() && self.mechanism() == Mechanism::Splice && self.held.len() == 0
    }

    /// Returns the mechanism that the next step uses for bulk data.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// Whether the transfer has ended, and the sink has accepted every byte.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.is_done
    }

    /// Returns how many bytes were taken from the source that the sink has not accepted.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.held.len() as u64
    }

    /// Returns how many bytes the sink is still to accept. Returns `None` if the transfer goes up
    /// to the end of the stream.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.engine.remaining()
    }

    /// Returns the report so far: how many bytes the sink has accepted by each mechanism, and the
    /// fallbacks.
    #[must_use]
    pub fn report(&self) -> &Report {
        self.engine.report()
    }

    /// Ends the transfer and returns its report.
    #[must_use]
    pub fn into_report(self) -> Report {
        self.engine.into_report()
    }

    /// Returns the mechanisms that this transfer has found to be unsupported for its sockets.
    #[must_use]
    pub fn support(&self) -> &Support {
        &self.support
    }
}

/// Whether a socket is TCP, and nothing on top of TCP, such as kernel TLS, processes its bytes.
fn is_plain_tcp(socket: BorrowedFd<'_>) -> bool {
    socket_protocol(socket).is_ok_and(|it| it == Some(ipproto::TCP))
        && Linux.has_upper_protocol(socket) == Ok(false)
}
