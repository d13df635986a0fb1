//! The transfer of memory to a stream socket. Each send is one transfer.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use super::fallback::{FallbackEngine, Next};
use crate::arena::Memory;
use crate::error::{Error, ErrorKind};
use crate::in_flight::{Completion, LimitAction, SendTracker};
use crate::mechanism::memory_to_socket::{MemorySink, MemoryStep};
use crate::mechanism::{MAX_STEP_BYTES, Outcome};
use crate::policy::{Direction, Length, Mechanism, Plan, zero_copy_send_enabled};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// The most parts that one step moves.
const MAX_STEP_PARTS: usize = 64;

/// A send of memory to a socket, one non-blocking step at a time. If it is dropped, the bytes that
/// the socket has accepted still reach the peer.
#[derive(Debug)]
pub(crate) struct MemoryTransfer {
    /// The parts that the socket has not accepted. None of them is empty.
    rest: VecDeque<Memory>,
    /// Whether a part is one that the kernel cannot read.
    has_file_bytes: bool,
    engine: FallbackEngine,
    tracker: SendTracker,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryProgress {
    /// The socket accepted bytes, and more remain: step again.
    Moved,
    /// Another mechanism has taken over: step again.
    FellBack,
    /// No bytes can be moved until the socket is writable.
    Blocked,
    /// No bytes can be moved until some of the memory in flight can be reused.
    AtLimit,
    /// The socket has accepted every byte.
    Done,
}

impl MemoryTransfer {
    /// Creates a send of `parts`, in this order, that follows `plan`. Nothing is sent yet.
    pub(crate) fn new(parts: impl IntoIterator<Item = Memory>, plan: Plan) -> Self {
        let parts = parts.into_iter().filter(|part| part.len() > 0);
        let rest: VecDeque<_> = parts.collect();
        Self {
            has_file_bytes: rest.iter().any(Memory::is_of_a_file),
            rest,
            engine: FallbackEngine::new(Direction::MemoryToSocket, plan, Length::UntilEof),
            tracker: SendTracker::new(),
        }
    }

    /// Tries once to move bytes, at most 2 MiB, without waiting. Every step must be given the same
    /// sink and socket.
    pub(crate) fn step(
        &mut self,
        sink: &mut MemorySink,
        socket: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        self.step_with(&Linux, sink, socket)
    }

    pub(crate) fn step_with(
        &mut self,
        kernel: &impl Kernel,
        sink: &mut MemorySink,
        socket: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        self.check(sink)?;
        let parts = self.next_parts();
        if parts.is_empty() {
            return Ok(MemoryProgress::Done);
        }
        let outcome = sink.step(kernel, self.mechanism(), &self.request(socket, &parts));
        self.process(outcome, kernel, sink, socket, &parts)
            .map_err(|error| error.recognise_unconnected(socket))
    }

    /// Fails if the socket of `sink` is not a stream socket, or if the kernel cannot read the
    /// memory.
    fn check(&self, sink: &MemorySink) -> Result<(), Error> {
        if self.has_file_bytes {
            return Err(Error::before_transfer(ErrorKind::MappedFile, None, None));
        }
        match sink.not_a_stream {
            None => Ok(()),
            Some(errno) => {
                let error = Error::before_transfer(
                    ErrorKind::NotAStreamSocket,
                    Some("getsockopt"),
                    Some(errno.into()),
                );
                Err(error)
            }
        }
    }

    /// Whether the next step can be [batched](Self::step_in_batch).
    #[cfg(feature = "tokio")]
    pub(crate) fn can_batch(&self) -> bool {
        self.mechanism() == Mechanism::SendZc
            && !self.rest.is_empty()
            && !self.rest.iter().any(Memory::is_mutable)
    }

    /// Does the same as [`step`](Self::step), but in one system call together with the sends of
    /// other connections of this thread. It first yields, so that other tasks can add their sends
    /// to the batch.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped before it is ready, some or all of the bytes may have been sent,
    /// and their number is lost.
    #[cfg(feature = "tokio")]
    pub(crate) async fn step_in_batch(
        &mut self,
        sink: &mut MemorySink,
        socket: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        self.check(sink)?;
        let parts = self.next_parts();
        let outcome = sink.step_in_batch(&self.request(socket, &parts)).await;
        self.process(outcome, &Linux, sink, socket, &parts)
            .map_err(|error| error.recognise_unconnected(socket))
    }

    fn process(
        &mut self,
        outcome: Outcome,
        kernel: &impl Kernel,
        sink: &mut MemorySink,
        socket: BorrowedFd<'_>,
        parts: &[Memory],
    ) -> Result<MemoryProgress, Error> {
        match self.advance(self.mechanism(), outcome, sink)? {
            Next::CopyOnce(_) => {}
            Next::WaitForMemory if sink.at_limit == LimitAction::Copy => {}
            next => return Ok(self.progress(next)),
        }
        let outcome = sink.step(kernel, Mechanism::Copy, &self.request(socket, parts));
        let next = self.advance(Mechanism::Copy, outcome, sink)?;
        Ok(self.progress(next))
    }

    /// Removes the bytes that a step has moved from the parts to send, counts them for this send
    /// and for the socket, and returns what follows from the step's outcome.
    fn advance(
        &mut self,
        mechanism: Mechanism,
        outcome: Outcome,
        sink: &mut MemorySink,
    ) -> Result<Next, Error> {
        sink.report.count(mechanism, outcome.moved);
        self.remove_first(outcome.moved as usize);
        let next = self.engine.process(mechanism, outcome, &mut sink.support)?;
        if let Next::FellBack(fallback) | Next::CopyOnce(fallback) = next {
            sink.report.record_fallback_once(fallback);
        }
        Ok(next)
    }

    fn progress(&self, next: Next) -> MemoryProgress {
        match next {
            Next::FellBack(_) => MemoryProgress::FellBack,
            Next::WaitForMemory => MemoryProgress::AtLimit,
            Next::Continue if self.rest.is_empty() => MemoryProgress::Done,
            Next::Continue => MemoryProgress::Moved,
            // The socket is full. The other two never get here: no memory mechanism reports an end,
            // and a step of `copy` never has to be repeated with `copy`.
            Next::Wait(_) | Next::Ended(_) | Next::CopyOnce(_) => MemoryProgress::Blocked,
        }
    }

    fn request<'a>(&'a self, socket: BorrowedFd<'a>, parts: &'a [Memory]) -> MemoryStep<'a> {
        MemoryStep {
            sink: socket,
            parts,
            tracker: &self.tracker,
        }
    }

    /// Returns the parts that the next step moves. The last of them may be shortened, so that the
    /// step moves at most [`MAX_STEP_BYTES`].
    fn next_parts(&self) -> Vec<Memory> {
        let mut room = MAX_STEP_BYTES;
        let mut parts = Vec::new();
        for part in self.rest.iter().take(MAX_STEP_PARTS) {
            parts.push(part.first(room));
            room = room.saturating_sub(part.len());
            if room == 0 {
                break;
            }
        }
        parts
    }

    fn remove_first(&mut self, bytes: usize) {
        let mut left = bytes;
        while left > 0
            && let Some(part) = self.rest.front_mut()
        {
            if left < part.len() {
                *part = part.after(left);
                break;
            }
            left -= part.len();
            self.rest.pop_front();
        }
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

    fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// Returns the error of a send that would have to wait and must not. `kind` says what for.
    pub(crate) fn would_block(&self, kind: ErrorKind) -> Error {
        let mechanism = self.mechanism();
        let cause = Some(Errno::AGAIN.into());
        let call = mechanism.system_call();
        self.engine.error(kind, mechanism, call, cause)
    }

    /// Returns how many bytes the socket has accepted.
    pub(crate) fn bytes(&self) -> u64 {
        self.engine.report().bytes()
    }

    /// Ends the send. Returns its report and its completion.
    pub(crate) fn finish(mut self) -> (Report, Completion) {
        if !zero_copy_send_enabled() {
            self.engine.set_switched_off();
        }
        (self.engine.into_report(), self.tracker.completion())
    }
}
