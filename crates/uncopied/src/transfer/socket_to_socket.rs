//! The transfer of one stream socket to another.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::Progress;
use super::fallback::{FallbackEngine, Next};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::mechanism::socket_to_socket::{HeldBytes, RelayStep};
use crate::policy::{Direction, Flow, Length, Mechanism, Plan, Support};
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
    length: Length,
    held: HeldBytes,
    flow: Flow,
    always_bulk: bool,
    is_done: bool,
    /// Whether a `recv` that returns fewer bytes than it could shows that the source has no more.
    /// `None` if that is not known yet.
    short_read_empties: Option<bool>,
    /// Whether there was such a `recv` before. A stream with a single one is not worth finding out.
    had_short_read: bool,
    engine: FallbackEngine,
    support: Support,
}

impl RelayTransfer {
    /// Creates a transfer of `length` bytes, whose bulk data moves by `plan`. Nothing is received
    /// yet. If the plan is empty, every byte is copied.
    #[must_use]
    pub fn new(length: Length, plan: Plan) -> Self {
        let promised = match length {
            Length::Exact(bytes) => Some(bytes),
            Length::UntilEof => None,
        };
        Self {
            length,
            held: HeldBytes::default(),
            flow: Flow::default(),
            always_bulk: false,
            is_done: false,
            short_read_empties: None,
            had_short_read: false,
            engine: FallbackEngine::new(Direction::SocketToSocket, plan, promised),
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
        self.always_bulk = true;
    }

    /// Records that every byte is copied because zero copy is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.engine
            .report_mut()
            .set_switched_off(Direction::SocketToSocket);
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
    /// See [`ErrorKind`], and [`Error::side`] for the socket that has failed. The error contains
    /// the report so far, which counts the bytes that the sink has accepted. After an error,
    /// calling `step` again is harmless, but its result has no meaning.
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
        .and_then(|(next, moved)| self.progress(next, moved))?;
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
        if self.always_bulk {
            self.flow = Flow::BULK;
        }
        let (mechanism, outcome) = self.held.step(kernel, mechanism, &mut self.flow, step);
        let moved = outcome.moved;
        let next = self.engine.process(mechanism, outcome, &mut self.support)?;
        Ok((next, moved))
    }

    fn progress(&self, next: Next, moved: u64) -> Result<Progress, Error> {
        match next {
            Next::Continue if self.remaining() == Some(0) => Ok(Progress::Done),
            Next::Wait(side) => Ok(Progress::Blocked(side)),
            Next::Ended(call) => match self.length {
                Length::UntilEof => Ok(Progress::Done),
                Length::Exact(_) => Err(self.engine.too_short(call)),
            },
            // The last two never get here: `copy` is not to be replaced by itself, and no memory is
            // in flight.
            Next::Continue | Next::FellBack(_) | Next::CopyOnce(_) | Next::WaitForMemory => {
                Ok(Progress::Moved(moved))
            }
        }
    }

    /// Whether the last step is known to have left no bytes in the source. An event loop that is
    /// told of new bytes (`EPOLLET`, `epoll(7)`) can then wait, without another step that finds
    /// none. If false, it is not known.
    ///
    /// Only TCP promises that a read which returns fewer bytes than it could has emptied the queue,
    /// and only if neither urgent data nor a record of kernel TLS has ended the read.
    pub fn has_emptied_source(&mut self, source: impl AsFd) -> bool {
        let source = source.as_fd();
        let is_plain_tcp = || {
            let protocol = rustix::net::sockopt::socket_protocol(source);
            protocol.is_ok_and(|it| it == Some(rustix::net::ipproto::TCP))
                && Linux.has_upper_protocol(source) == Ok(false)
        };
        self.held.has_read_less()
            && std::mem::replace(&mut self.had_short_read, true)
            && *self.short_read_empties.get_or_insert_with(is_plain_tcp)
            && Linux.is_at_mark(source) == Ok(false)
    }

    /// Returns the error for a driver that failed to wait for a side, or to pass on the end of the
    /// stream.
    pub(crate) fn driver_error(&self, side: Side, call: &'static str, cause: io::Error) -> Error {
        let kind = match (side, cause.kind()) {
            (_, io::ErrorKind::TimedOut) => ErrorKind::TimedOut,
            (Side::Source, _) => ErrorKind::Source,
            (Side::Sink, _) => ErrorKind::Sink,
        };
        let mechanism = self.mechanism();
        self.engine
            .error(kind, mechanism, call, Some(cause))
            .at_side(side)
    }

    /// Whether the next step takes bytes from the source with `splice`.
    pub(crate) fn splices_next(&self) -> bool {
        let is_bulk = self.always_bulk || self.flow.is_bulk();
        is_bulk && self.mechanism() == Mechanism::Splice && self.held.len() == 0
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
