//! The transfer of a stream socket to a file, a pipe or a device.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use super::Progress;
use super::fallback::{FallbackEngine, Next};
use crate::endpoint;
use crate::error::{Error, ErrorKind};
use crate::mechanism::file_to_socket::MAX_FILE_OFFSET;
use crate::mechanism::socket_to_file::{ReceiveStep, TakenBytes};
use crate::policy::{Direction, Length, Mechanism, Plan, SinkKind, Support};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// A transfer of a stream socket to a file, a pipe or a device, one step at a time.
///
/// A `ReceiveTransfer` owns neither the socket nor the sink, does not wait for the socket and needs
/// no runtime. A driver calls [`step`](Self::step), and waits if the result says that the transfer
/// is blocked. [`ReceiveFile`](crate::ReceiveFile) uses the two drivers of this crate. Use a
/// `ReceiveTransfer` directly if you have an event loop of your own.
///
/// # Bytes between the socket and the sink
///
/// The sink may accept fewer bytes than were taken from the socket. The rest is kept in the
/// transfer, at most 2 MiB: [`held_bytes`](Self::held_bytes) returns its number, and the next step
/// passes it on. If the transfer is dropped, these bytes are lost. Between two steps, it may be
/// left alone for any length of time.
///
/// ```
/// use std::{fs::File, io::Write, os::unix::net::UnixStream};
/// use uncopied::policy::{Length, Plan};
/// use uncopied::{Progress, ReceiveTransfer};
///
/// let (mut peer, socket) = UnixStream::pair()?;
/// socket.set_nonblocking(true)?;
/// peer.write_all(b"hello, world")?;
///
/// let file = tempfile::tempfile()?;
/// let mut transfer = ReceiveTransfer::new(Some(0), Length::Exact(5), Plan::copying());
/// loop {
///     match transfer.step(&socket, &file)? {
///         Progress::Moved(_) => {}
///         Progress::Blocked(side) => panic!("5 bytes have arrived: wait for {side:?}"),
///         Progress::Done => break,
///     }
/// }
/// assert_eq!((transfer.report().bytes(), file.metadata()?.len()), (5, 5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct ReceiveTransfer {
    /// The offset in the sink of the first byte that it has not accepted.
    offset: Option<u64>,
    /// `None` until the first step.
    sink_kind: Option<SinkKind>,
    taken: TakenBytes,
    engine: FallbackEngine,
    support: Support,
}

impl ReceiveTransfer {
    /// Creates a transfer of `length` bytes that follows `plan`. Nothing is received yet.
    ///
    /// With an offset, the bytes are written to the sink from that offset on, and the position of
    /// the descriptor is neither used nor changed. So several transfers may fill different parts of
    /// a file at the same time. The sink must be a regular file or a block device that was not
    /// opened with `O_APPEND`: with that flag, Linux ignores the offset (`pwrite(2)`).
    ///
    /// Without an offset, the bytes are written where the descriptor stands, as by `write(2)`.
    /// Pipes, terminals and devices such as `/dev/null` have no offsets.
    ///
    /// If the plan is empty, every byte is copied.
    #[must_use]
    pub fn new(offset: Option<u64>, length: Length, plan: Plan) -> Self {
        Self {
            offset,
            sink_kind: None,
            taken: TakenBytes::default(),
            engine: FallbackEngine::new(Direction::SocketToFile, plan, length),
            support: Support::none_refused(),
        }
    }

    /// Records that every byte is copied because zero-copy receiving is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.engine.set_switched_off();
    }

    /// Tries once to move bytes, at most 2 MiB. If the socket is non-blocking, this does not wait
    /// for it. (If it is blocking and has no bytes, `splice` waits.) If the sink is a pipe or a
    /// terminal, it should be non-blocking as well, because `copy` waits otherwise. Writing to a
    /// file may wait for the disk.
    ///
    /// [`Progress::Blocked`] means that the socket has no bytes ([`Side::Source`]), or that the
    /// sink, a pipe, is full ([`Side::Sink`]). Every step must be given the same source and sink.
    /// Neither SIGPIPE nor SIGXFSZ (`RLIMIT_FSIZE`) is ever raised.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error contains the report so far, which counts the bytes that are in
    /// the sink. If it is the sink that has failed, for example because its disk is full
    /// (`ENOSPC`), the bytes that were taken from the socket are [held](Self::held_bytes), and the
    /// step may be repeated once the cause is gone. After any other error, calling `step` again is
    /// harmless, but its result has no meaning.
    ///
    /// [`Side::Source`]: crate::Side::Source
    /// [`Side::Sink`]: crate::Side::Sink
    pub fn step(&mut self, source: impl AsFd, sink: impl AsFd) -> Result<Progress, Error> {
        self.step_with(&Linux, source.as_fd(), sink.as_fd(), false)
    }

    /// Does the same as [`step`](Self::step). With `may_wait`, the system call that receives waits
    /// if it can and the socket is blocking.
    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        may_wait: bool,
    ) -> Result<Progress, Error> {
        let held = self.taken.len();
        let untaken = self.remaining().map(|bytes| bytes.saturating_sub(held));
        if held == 0 && untaken == Some(0) {
            return Ok(Progress::Done);
        }
        if self.offset.is_some_and(|offset| offset >= MAX_FILE_OFFSET) {
            return Err(self.driver_error(ErrorKind::Sink, "pwrite", Errno::FBIG.into()));
        }
        let sink_kind = *self
            .sink_kind
            .get_or_insert_with(|| endpoint::sink_kind(sink));
        let step = ReceiveStep {
            source,
            sink,
            sink_kind,
            offset: self.offset,
            untaken,
            may_wait,
        };
        match self.move_bytes(kernel, self.mechanism(), &step)? {
            // Only a mechanism that has taken nothing is to be replaced for once.
            (Next::CopyOnce(_), _) => self.move_bytes(kernel, Mechanism::Copy, &step),
            other => Ok(other),
        }
        .and_then(|(next, moved)| self.engine.progress(next, moved))
    }

    /// Makes the step with `mechanism`, and counts the bytes that it has moved.
    fn move_bytes(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &ReceiveStep<'_>,
    ) -> Result<(Next, u64), Error> {
        let (mechanism, outcome) = self.taken.step(kernel, mechanism, step);
        let moved = outcome.moved;
        if let Some(offset) = &mut self.offset {
            *offset += moved;
        }
        // Pipes keep references, and `/dev/null` drops them. Files and terminals copy.
        let is_copied = matches!(step.sink_kind, SinkKind::File | SinkKind::Other);
        if mechanism == Mechanism::Splice && is_copied {
            self.engine.report_mut().count_kernel_copied(moved);
        }
        let next = self.engine.process(mechanism, outcome, &mut self.support)?;
        Ok((next, moved))
    }

    /// Returns the error for a driver that failed to wait.
    pub(crate) fn driver_error(
        &self,
        kind: ErrorKind,
        call: &'static str,
        cause: io::Error,
    ) -> Error {
        let mechanism = self.mechanism();
        self.engine.error(kind, mechanism, call, Some(cause))
    }

    /// Returns the mechanism that the next step uses.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// Returns the offset in the sink, in bytes, of the first byte that the sink has not accepted.
    /// Returns `None` if the transfer has no offset.
    #[must_use]
    pub fn offset(&self) -> Option<u64> {
        self.offset
    }

    /// Returns how many bytes were taken from the socket that the sink has not accepted.
    #[must_use]
    pub fn held_bytes(&self) -> u64 {
        self.taken.len()
    }

    /// Returns how many bytes the sink is still to accept. Returns `None` if the transfer goes up
    /// to the end of the stream.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.engine.remaining()
    }

    /// Returns the report so far: how many bytes each mechanism has moved into the sink, and the
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

    /// Returns the mechanisms that this transfer has found to be unsupported for its source and
    /// sink.
    #[must_use]
    pub fn support(&self) -> &Support {
        &self.support
    }
}
