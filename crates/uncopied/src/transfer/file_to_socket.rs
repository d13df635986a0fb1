//! The transfer of a file to a stream socket.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::fallback::{FallbackEngine, Next};
use crate::arena::FileMapping;
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::mechanism::file_to_socket::{ActiveMechanism, FileStep, MAX_FILE_OFFSET};
use crate::policy::{Length, Mechanism, Plan, Support};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// A transfer of a file to a stream socket, one non-blocking step at a time.
///
/// It owns no descriptor, waits for nothing and needs no runtime: a driver calls
/// [`step`](Self::step) and waits when the result says so. [`SendFile`](crate::SendFile) uses the
/// two drivers of this crate; a `Transfer` is for event loops of your own. It may be dropped, or
/// left alone for any time, between two steps: [`offset`](Self::offset) says where it stands.
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
    mapping: Option<FileMapping>,
    active: ActiveMechanism,
    engine: FallbackEngine,
    support: Support,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The socket accepted this many bytes, which may be none if a mechanism fell back to the next.
    /// There may be more: step again.
    Moved(u64),
    /// Nothing moves until this side is ready.
    Blocked(Side),
    /// Every byte has been accepted.
    Done,
}

impl Transfer {
    /// A transfer of `length` bytes of the source, from `offset` on, by `plan`. Nothing happens
    /// yet.
    ///
    /// An empty plan copies.
    #[must_use]
    pub fn new(offset: u64, length: Length, plan: Plan) -> Self {
        let promised = match length {
            Length::Exact(bytes) => Some(bytes),
            Length::UntilEof => None,
        };
        let engine = FallbackEngine::new(plan, promised);
        Self {
            offset,
            length,
            mapping: None,
            active: ActiveMechanism::new(engine.mechanism(), None),
            engine,
            support: Support::none_refused(),
        }
    }

    /// Declares that a part of the file is already mapped, so that `mmap_write` need not map it.
    #[must_use]
    pub fn with_mapping(mut self, mapping: &FileMapping) -> Self {
        // Most transfers never get to `mmap_write`, and then need no handle.
        if self
            .engine
            .plan()
            .mechanisms()
            .contains(&Mechanism::MmapWrite)
        {
            self.active = ActiveMechanism::new(self.mechanism(), Some(mapping));
            self.mapping = Some(mapping.clone());
        }
        self
    }

    /// Records that every byte is copied because zero-copy sending is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.engine.report_mut().set_switched_off();
    }

    /// Makes one try to move bytes, at most 2 MiB. If the socket is non-blocking, it does not wait
    /// for the socket. It waits for a file that is not in the page cache: see
    /// [`residency`](crate::residency).
    ///
    /// Every step must be given the same source and sink; another source would send other bytes.
    /// SIGPIPE is never raised.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error carries the report so far. After an error, further steps are
    /// meaningless but harmless.
    pub fn step(&mut self, source: impl AsFd, sink: impl AsFd) -> Result<Progress, Error> {
        self.step_with(&Linux, source.as_fd(), sink.as_fd())
    }

    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
    ) -> Result<Progress, Error> {
        let remaining = self.remaining();
        if remaining == Some(0) {
            return Ok(Progress::Done);
        }
        if self.offset >= MAX_FILE_OFFSET {
            return self.ended();
        }
        let step = FileStep {
            source,
            sink,
            offset: self.offset,
            remaining,
        };
        let outcome = self.active.step(kernel, step);
        self.offset += outcome.moved;
        let mechanism = self.mechanism();
        match self.engine.process(mechanism, outcome, &mut self.support)? {
            Next::Continue if self.remaining() == Some(0) => Ok(Progress::Done),
            Next::Continue => Ok(Progress::Moved(outcome.moved)),
            Next::Wait(side) => Ok(Progress::Blocked(side)),
            Next::Ended => self.ended(),
            // No mechanism for files makes the last two: nothing of a file is in flight or must be
            // copied for once.
            Next::FellBack(_) | Next::WaitForMemory | Next::CopyOnce(_) => {
                self.active = ActiveMechanism::new(self.mechanism(), self.mapping.as_ref());
                Ok(Progress::Moved(0))
            }
        }
    }

    fn ended(&self) -> Result<Progress, Error> {
        match self.length {
            Length::UntilEof => Ok(Progress::Done),
            Length::Exact(promised) => Err(self.engine.too_short(promised)),
        }
    }

    /// An error of a driver.
    pub(crate) fn driver_error(
        &self,
        kind: ErrorKind,
        call: &'static str,
        cause: io::Error,
    ) -> Error {
        self.engine.error(kind, call, Some(cause))
    }

    /// The mechanism that the next step uses.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// The first byte of the source that the socket has not accepted, in bytes from its start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes remain of an exact length; `None` if the transfer goes to the end of the
    /// file.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        self.engine.remaining()
    }

    /// What has been moved so far, and how.
    #[must_use]
    pub fn report(&self) -> &Report {
        self.engine.report()
    }

    /// What has been moved, and how.
    #[must_use]
    pub fn into_report(self) -> Report {
        self.engine.into_report()
    }

    /// What this transfer has found out about its pair of descriptors.
    #[must_use]
    pub fn support(&self) -> &Support {
        &self.support
    }
}
