//! The transfer from a stream socket to memory. Each received chunk is one transfer.

use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::fallback::{FallbackEngine, Next};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Outcome;
use crate::mechanism::socket_to_memory::MemorySource;
use crate::policy::{Direction, Mechanism, Plan, zero_copy_receive_enabled};
use crate::sys::{Kernel, Linux};

/// The receiving of a chunk, one step at a time. If it is dropped, no byte is lost: the
/// [source](MemorySource) keeps what was received for the next chunk.
#[derive(Debug)]
pub(crate) struct ReceiveTransfer {
    engine: FallbackEngine,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReceiveProgress {
    /// The chunk has bytes, and more may be had without waiting: step again.
    Moved,
    /// Another mechanism has taken over: step again.
    FellBack,
    /// The socket has no bytes.
    Blocked,
    /// The chunk is complete.
    Done,
    /// The stream has ended, and the chunk is empty.
    Ended,
}

impl ReceiveTransfer {
    /// Creates a transfer that follows `plan`. Nothing is received yet.
    pub(crate) fn new(plan: Plan) -> Self {
        Self {
            engine: FallbackEngine::new(plan, None),
        }
    }

    /// Returns the mechanism that the next step uses.
    pub(crate) fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// Tries once to receive. With `may_wait`, a step of `copy` may wait if the socket is blocking.
    /// Every step must be given the same source and socket.
    pub(crate) fn step(
        &mut self,
        source: &mut MemorySource,
        socket: BorrowedFd<'_>,
        may_wait: bool,
    ) -> Result<ReceiveProgress, Error> {
        self.step_with(&Linux, source, socket, may_wait)
    }

    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        source: &mut MemorySource,
        socket: BorrowedFd<'_>,
        may_wait: bool,
    ) -> Result<ReceiveProgress, Error> {
        if let Some(errno) = source.not_a_stream {
            let kind = ErrorKind::NotAStreamSocket;
            let cause = Some(errno.into());
            return Err(Error::before_transfer(kind, Some("getsockopt"), cause).receiving());
        }
        let mechanism = self.mechanism();
        let (outcome, copied) = source.step(kernel, mechanism, socket, may_wait);
        if copied > 0 {
            source.report.count(Mechanism::Copy, copied);
            self.engine.report_mut().count(Mechanism::Copy, copied);
        }
        let progress = match self.advance(mechanism, outcome, source) {
            Ok(Next::CopyOnce(_)) => {
                let (outcome, _) = source.step(kernel, Mechanism::Copy, socket, may_wait);
                self.advance(Mechanism::Copy, outcome, source)
            }
            other => other,
        };
        match progress {
            // What was received before is returned first.
            Err(error) if source.has_bytes() => {
                source.report_later(&error);
                Ok(ReceiveProgress::Done)
            }
            Err(error) => Err(error.receiving().recognise_unconnected(socket)),
            Ok(next) => Ok(self.progress(next, source)),
        }
    }

    /// Counts the bytes that a step has received, for this chunk and for the socket, and returns
    /// what follows from the step's outcome.
    fn advance(
        &mut self,
        mechanism: Mechanism,
        outcome: Outcome,
        source: &mut MemorySource,
    ) -> Result<Next, Error> {
        source.report.count(mechanism, outcome.moved);
        if !zero_copy_receive_enabled() {
            source.report.set_switched_off(Direction::SocketToMemory);
        }
        let next = self
            .engine
            .process(mechanism, outcome, &mut source.support)?;
        if let Next::FellBack(fallback) | Next::CopyOnce(fallback) = next {
            source.report.record_fallback_once(fallback);
        }
        Ok(next)
    }

    fn progress(&self, next: Next, source: &MemorySource) -> ReceiveProgress {
        match next {
            Next::FellBack(_) => ReceiveProgress::FellBack,
            Next::Continue if source.can_add(self.mechanism()) => ReceiveProgress::Moved,
            // A step of `map_receive` may find fewer bytes than the kernel said there are.
            Next::Continue if !source.has_bytes() => ReceiveProgress::Moved,
            _ if source.has_bytes() => ReceiveProgress::Done,
            Next::Ended(_) => ReceiveProgress::Ended,
            _ => ReceiveProgress::Blocked,
        }
    }

    /// Returns the error for a driver that failed to wait.
    pub(crate) fn driver_error(&self, kind: ErrorKind, cause: io::Error) -> Error {
        let (mechanism, call) = (self.mechanism(), "poll");
        let error = self.engine.error(kind, mechanism, call, Some(cause));
        error.receiving()
    }

    /// Returns the error of a call that must not wait and would have to.
    pub(crate) fn would_block(&self) -> Error {
        self.driver_error(ErrorKind::WouldBlock, Errno::AGAIN.into())
    }
}
