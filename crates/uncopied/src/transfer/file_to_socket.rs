//! The transfer of a file to a stream socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;

use super::fallback::{FallbackEngine, Next};
use crate::error::{Error, ErrorKind};
use crate::mechanism::file_to_socket::{ActiveMechanism, FileStep, MAX_FILE_OFFSET};
use crate::mechanism::{Side, send_slice};
use crate::policy::{Direction, Length, Mechanism, Plan, Support};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// A transfer of a file to a stream socket, one non-blocking step at a time.
///
/// A `Transfer` owns no descriptor, does not wait for the socket and needs no runtime. A driver
/// calls [`step`](Self::step), and waits if the result says that the transfer is blocked.
/// [`SendFile`](crate::SendFile) uses the two drivers of this crate. Use a `Transfer` directly if
/// you have an event loop of your own. Between two steps, it may be left alone for any length of
/// time, or be dropped. Its [`offset`](Self::offset) says which byte comes next.
///
/// ```
/// use std::{fs::File, os::unix::net::UnixStream};
/// use uncopied::policy::{Length, Plan};
/// use uncopied::{Mechanism, Progress, Transfer};
///
/// let file = File::open("Cargo.toml")?;
/// let (socket, _peer) = UnixStream::pair()?;
/// socket.set_nonblocking(true)?;
///
/// let plan = Plan::preferring(Mechanism::Sendfile);
/// let mut transfer = Transfer::new(0, Length::Exact(100), plan);
/// loop {
///     match transfer.step(&file, &socket)? {
///         Progress::Moved(_) => {}
///         Progress::Blocked(side) => panic!("100 bytes fit into any socket: wait for {side:?}"),
///         Progress::Done => break,
///     }
/// }
/// assert_eq!(transfer.report().bytes(), 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Transfer {
    offset: u64,
    length: Length,
    /// The bytes that are sent before and after those of the file and that the socket has not
    /// accepted yet.
    header: Bytes,
    trailer: Bytes,
    is_file_done: bool,
    /// Whether the kernel holds back a part of the header, to fill a packet with bytes that follow.
    is_held_back: bool,
    active: ActiveMechanism,
    engine: FallbackEngine,
    support: Support,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The sink accepted this many bytes. The number may be 0, for example if the transfer fell
    /// back to another mechanism. There may be more to move: step again.
    Moved(u64),
    /// No bytes can be moved until this side is ready.
    Blocked(Side),
    /// The sink has accepted every byte.
    Done,
}

impl Transfer {
    /// Creates a transfer of `length` bytes of the source, starting at `offset`, that follows
    /// `plan`. Nothing is sent yet.
    ///
    /// If the plan is empty, every byte is copied.
    #[must_use]
    pub fn new(offset: u64, length: Length, plan: Plan) -> Self {
        let engine = FallbackEngine::new(Direction::FileToSocket, plan, length);
        Self {
            offset,
            length,
            header: Bytes::new(),
            trailer: Bytes::new(),
            is_file_done: false,
            is_held_back: false,
            active: ActiveMechanism::new(engine.mechanism()),
            engine,
            support: Support::none_refused(),
        }
    }

    /// Adds bytes that are sent before and after those of the file; see
    /// [`SendFile::header`](crate::SendFile::header). Must be called before the first step.
    pub(crate) fn with_header_and_trailer(mut self, header: Bytes, trailer: Bytes) -> Self {
        self.engine
            .promise_more((header.len() + trailer.len()) as u64);
        (self.header, self.trailer) = (header, trailer);
        self
    }

    /// Records that every byte is copied because zero-copy sending is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.engine.set_switched_off();
    }

    /// Tries once to move bytes, at most 2 MiB of the file. If the socket is non-blocking, this
    /// does not wait for the socket. It does wait for the disk if the bytes are not in the page
    /// cache: see [`residency`](crate::residency).
    ///
    /// Every step must be given the same source and sink. This is not checked: a step sends
    /// whatever bytes its source has at the [`offset`](Self::offset). SIGPIPE is never raised.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error contains the report so far. Calling `step` again after an error
    /// is harmless, but its result has no meaning.
    pub fn step(&mut self, source: impl AsFd, sink: impl AsFd) -> Result<Progress, Error> {
        self.step_with(&Linux, source.as_fd(), sink.as_fd())
    }

    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
    ) -> Result<Progress, Error> {
        let before = self.engine.report().bytes();
        let progress = self.step_parts(kernel, source, sink);
        let progress = progress.map_err(|error| error.recognise_unconnected(sink))?;
        let moved = self.engine.report().bytes() - before;
        Ok(match progress {
            Progress::Moved(_) => Progress::Moved(moved),
            // The part before the one that is blocked has moved.
            Progress::Blocked(_) if moved > 0 => Progress::Moved(moved),
            progress => progress,
        })
    }

    /// Moves bytes of the header, the file or the trailer, or of several of them.
    fn step_parts(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
    ) -> Result<Progress, Error> {
        if !self.header.is_empty() {
            let is_last = self.trailer.is_empty() && self.length == Length::Exact(0);
            let mut header = std::mem::take(&mut self.header);
            let progress = self.step_slice(kernel, sink, &mut header, !is_last);
            self.header = header;
            self.is_held_back = !is_last;
            match progress? {
                Progress::Done => {}
                progress => return Ok(progress),
            }
        }
        if !self.is_file_done {
            match self.step_file(kernel, source, sink)? {
                Progress::Done => self.is_file_done = true,
                progress => return Ok(progress),
            }
        }
        if !self.trailer.is_empty() {
            let mut trailer = std::mem::take(&mut self.trailer);
            let progress = self.step_slice(kernel, sink, &mut trailer, false);
            self.trailer = trailer;
            self.is_held_back = false;
            return progress;
        }
        if self.is_held_back {
            // Nothing followed the header. If this fails, the header arrives up to 200 ms later.
            let _ = kernel.push(sink);
            self.is_held_back = false;
        }
        Ok(Progress::Done)
    }

    /// Moves bytes of the header or the trailer, and removes them from `slice`.
    fn step_slice(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        slice: &mut Bytes,
        more: bool,
    ) -> Result<Progress, Error> {
        let outcome = send_slice(kernel, sink, slice, more);
        let moved = outcome.moved;
        let _ = slice.split_to(moved as usize);
        let copy = Mechanism::Copy;
        Ok(
            match self.engine.process(copy, outcome, &mut self.support)? {
                Next::Wait(side) => Progress::Blocked(side),
                _ if slice.is_empty() => Progress::Done,
                _ => Progress::Moved(moved),
            },
        )
    }

    fn step_file(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
    ) -> Result<Progress, Error> {
        let remaining = self.remaining_of_file();
        if remaining == Some(0) {
            return Ok(Progress::Done);
        }
        if self.offset >= MAX_FILE_OFFSET {
            return self.engine.ended(self.mechanism().system_call());
        }
        let step = FileStep {
            source,
            sink,
            offset: self.offset,
            remaining,
        };
        let outcome = self.active.step(kernel, step);
        self.offset += outcome.moved;
        self.is_held_back &= outcome.moved == 0;
        let mechanism = self.mechanism();
        match self.engine.process(mechanism, outcome, &mut self.support)? {
            Next::Continue if self.remaining_of_file() == Some(0) => Ok(Progress::Done),
            Next::Continue => Ok(Progress::Moved(outcome.moved)),
            Next::Wait(side) => Ok(Progress::Blocked(side)),
            Next::Ended(call) => self.engine.ended(call),
            // File mechanisms never cause the last two, because they put no memory in flight and
            // have no temporary failures.
            Next::FellBack(_) | Next::WaitForMemory | Next::CopyOnce(_) => {
                self.active = ActiveMechanism::new(self.mechanism());
                Ok(Progress::Moved(0))
            }
        }
    }

    /// Returns how many bytes of the file are still to be moved, or `None` if it is sent up to its
    /// end, which has not been reached.
    pub(crate) fn remaining_of_file(&self) -> Option<u64> {
        if self.is_file_done {
            return Some(0);
        }
        let around = (self.header.len() + self.trailer.len()) as u64;
        Some(self.engine.remaining()?.saturating_sub(around))
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

    /// Returns the offset, in bytes from the start of the source, of the first byte that the socket
    /// has not accepted.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns how many bytes are still to be moved, with those of the header and the trailer.
    /// Returns `None` if the transfer goes up to the end of the file.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.engine.remaining()
    }

    /// Returns the report so far: how many bytes each mechanism has moved, and the fallbacks.
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
