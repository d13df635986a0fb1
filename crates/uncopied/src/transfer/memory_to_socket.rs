//! The transfer of memory to a stream socket: one send.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use super::fallback::{FallbackEngine, Next};
use crate::arena::Memory;
use crate::error::{Error, ErrorKind};
use crate::in_flight::{Completion, LimitAction, SendTracker};
use crate::mechanism::memory_to_socket::{MemorySink, MemoryStep};
use crate::mechanism::{MAX_STEP_BYTES, Outcome};
use crate::policy::{Mechanism, Plan, zero_copy_send_enabled};
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// The most parts that one step moves.
const MAX_STEP_PARTS: usize = 64;

/// A send of memory to a socket, one non-blocking step at a time. Dropping it leaves what has been
/// sent as it is.
#[derive(Debug)]
pub(crate) struct MemoryTransfer {
    /// What the socket has not accepted: parts of at least one byte each.
    rest: VecDeque<Memory>,
    engine: FallbackEngine,
    tracker: SendTracker,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryProgress {
    /// The socket accepted bytes. There are more.
    Moved,
    /// Another mechanism has taken over.
    FellBack,
    /// Nothing moves until the socket is writable.
    Blocked,
    /// Nothing moves until some of the memory in flight is free.
    AtLimit,
    /// The socket has accepted every byte.
    Done,
}

impl MemoryTransfer {
    /// A send of `parts`, in their order, by `plan`. Nothing happens yet.
    pub(crate) fn new(parts: impl IntoIterator<Item = Memory>, plan: Plan) -> Self {
        let parts = parts.into_iter().filter(|part| part.len() > 0);
        Self {
            rest: parts.collect(),
            engine: FallbackEngine::new(plan, None),
            tracker: SendTracker::new(),
        }
    }

    /// Makes one try to move bytes, at most 2 MiB, without waiting. Every step must be given the
    /// same sink and socket.
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
        let parts = self.next_parts();
        if parts.is_empty() {
            return Ok(MemoryProgress::Done);
        }
        let outcome = sink.step(kernel, self.mechanism(), &self.request(socket, &parts));
        self.process(outcome, kernel, sink, socket, &parts)
    }

    /// Whether the next step can be made [in a batch](Self::step_in_batch).
    #[cfg(feature = "tokio")]
    pub(crate) fn can_batch(&self) -> bool {
        self.mechanism() == Mechanism::SendZc
            && !self.rest.is_empty()
            && self
                .rest
                .iter()
                .all(|part| matches!(part, Memory::Pages(_)))
    }

    /// As [`step`](Self::step), in one system call together with the sends of other connections of
    /// this thread. It lets other tasks run first.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped before it is ready, either nothing was sent, or the number of bytes
    /// that were sent is lost.
    #[cfg(feature = "tokio")]
    pub(crate) async fn step_in_batch(
        &mut self,
        sink: &mut MemorySink,
        socket: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        let parts = self.next_parts();
        let outcome = sink.step_in_batch(&self.request(socket, &parts)).await;
        self.process(outcome, &Linux, sink, socket, &parts)
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

    /// Counts what was moved, here and for the socket.
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
            // Memory has no end of its own, and `copy` is never replaced by itself.
            Next::Wait(_) | Next::Ended | Next::CopyOnce(_) => MemoryProgress::Blocked,
        }
    }

    fn request<'a>(&'a self, socket: BorrowedFd<'a>, parts: &'a [Memory]) -> MemoryStep<'a> {
        MemoryStep {
            sink: socket,
            parts,
            tracker: &self.tracker,
        }
    }

    /// What the next step is to move: several parts, or the beginning of one.
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

    /// An error of a driver.
    pub(crate) fn driver_error(
        &self,
        kind: ErrorKind,
        call: &'static str,
        cause: io::Error,
    ) -> Error {
        self.engine.error(kind, call, Some(cause))
    }

    fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// How many bytes the socket has accepted.
    #[cfg(feature = "tokio")]
    pub(crate) fn bytes(&self) -> u64 {
        self.engine.report().bytes()
    }

    /// Ends the send. Returns what was sent, and the completion of it.
    pub(crate) fn finish(mut self) -> (Report, Completion) {
        if !zero_copy_send_enabled() {
            self.engine.report_mut().set_switched_off();
        }
        (self.engine.into_report(), self.tracker.completion())
    }
}
