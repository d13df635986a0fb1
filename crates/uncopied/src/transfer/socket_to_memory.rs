//! The transfer from a stream socket to memory. It is one transfer for as long as the socket is
//! received from, with a plan for each chunk.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::fallback::{FallbackEngine, Next};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Outcome;
use crate::mechanism::socket_to_memory::{MemorySource, Waiting};
use crate::policy::{Direction, Length, Mechanism, Plan, zero_copy_receive_enabled};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// The receiving of chunks, one step at a time.
#[derive(Debug)]
pub(crate) struct ChunkTransfer {
    engine: FallbackEngine,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ChunkProgress {
    /// The chunk has bytes, and more may be had without waiting: step again.
    Moved,
    /// Another mechanism has taken over: step again.
    FellBack,
    /// The socket has no bytes, or too few (`SO_RCVLOWAT`).
    Blocked,
    /// The chunk is complete.
    Done,
    /// The stream has ended, and the chunk is empty.
    Ended,
}

impl ChunkTransfer {
    /// Creates a transfer. Nothing is received yet.
    pub(crate) fn new() -> Self {
        Self {
            engine: FallbackEngine::new(
                Direction::SocketToMemory,
                Plan::copying(),
                Length::UntilEof,
            ),
        }
    }

    /// Begins a chunk, which is to be received according to `plan`.
    pub(crate) fn begin(&mut self, plan: Plan) {
        self.engine.restart(plan);
        if !zero_copy_receive_enabled() {
            self.engine.set_switched_off();
        }
    }

    /// Returns the mechanism that the next step uses.
    pub(crate) fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// Returns the report of all chunks.
    pub(crate) fn report(&self) -> &Report {
        self.engine.report()
    }

    /// Tries once to receive: see [`MemorySource::step`]. Every step of a chunk must be given the
    /// same source and socket.
    pub(crate) fn step(
        &mut self,
        source: &mut MemorySource,
        socket: BorrowedFd<'_>,
        waiting: Waiting,
    ) -> Result<ChunkProgress, Error> {
        self.step_with(&Linux, source, socket, waiting)
    }

    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        source: &mut MemorySource,
        socket: BorrowedFd<'_>,
        waiting: Waiting,
    ) -> Result<ChunkProgress, Error> {
        if let Some(errno) = source.not_a_stream {
            let kind = ErrorKind::NotAStreamSocket;
            let cause = Some(errno.into());
            let error = Error::before_transfer(kind, Some("getsockopt"), cause);
            return Err(error.in_direction(Direction::SocketToMemory));
        }
        let mechanism = self.engine.mechanism();
        let (outcome, copied) = source.step(kernel, mechanism, socket, waiting);
        self.engine.report_mut().count(Mechanism::Copy, copied);
        let next = match self.process(mechanism, outcome, source) {
            Ok(Next::CopyOnce(_)) => {
                let (outcome, _) = source.step(kernel, Mechanism::Copy, socket, Waiting::Done);
                self.process(Mechanism::Copy, outcome, source)
            }
            next => next,
        };
        match next {
            // What was received before is returned first.
            Err(error) if source.has_bytes() => {
                source.report_later(&error);
                Ok(ChunkProgress::Done)
            }
            Err(error) => Err(error),
            Ok(next) => Ok(self.progress(next, source)),
        }
    }

    fn process(
        &mut self,
        mechanism: Mechanism,
        outcome: Outcome,
        source: &mut MemorySource,
    ) -> Result<Next, Error> {
        self.engine.process(mechanism, outcome, &mut source.support)
    }

    fn progress(&self, next: Next, source: &MemorySource) -> ChunkProgress {
        match next {
            Next::FellBack(_) => ChunkProgress::FellBack,
            Next::Continue if source.can_add(self.engine.mechanism()) => ChunkProgress::Moved,
            _ if source.has_bytes() => ChunkProgress::Done,
            Next::Ended(_) => ChunkProgress::Ended,
            _ => ChunkProgress::Blocked,
        }
    }

    /// Returns the error for a driver that failed to wait.
    pub(crate) fn driver_error(&self, kind: ErrorKind, cause: io::Error) -> Error {
        let mechanism = self.engine.mechanism();
        self.engine.error(kind, mechanism, "poll", Some(cause))
    }

    /// Returns the error of a call that must not wait and would have to.
    pub(crate) fn would_block(&self) -> Error {
        self.driver_error(ErrorKind::WouldBlock, Errno::AGAIN.into())
    }
}
