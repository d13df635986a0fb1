//! The transfer between two descriptors of any kind, from and to where the descriptors themselves
//! stand.

use std::io;
use std::os::fd::BorrowedFd;

use super::Progress;
use super::fallback::{FallbackEngine, Next};
use crate::error::Error;
use crate::mechanism::Side;
use crate::mechanism::descriptor_to_descriptor::{CopyStep, ReadBytes};
use crate::policy::{DescriptorKind, Direction, Length, Mechanism, Plan, Support};
use crate::report::Report;
use crate::sys::Kernel;

/// A transfer between two descriptors of any kind, one step at a time. It goes on to the end of the
/// source.
///
/// The system calls advance the positions of the descriptors. If `copy` has read more than the sink
/// has accepted, [`give_back`](Self::give_back) moves the position of the source back.
#[derive(Debug)]
pub(crate) struct DescriptorTransfer {
    source_kind: DescriptorKind,
    sink_kind: DescriptorKind,
    /// The number of bytes to move at most, or `None` if there is no limit.
    limit: Option<u64>,
    read: ReadBytes,
    engine: FallbackEngine,
    support: Support,
}

impl DescriptorTransfer {
    /// Creates a transfer that follows `plan`. Nothing is moved yet.
    pub(crate) fn new(source_kind: DescriptorKind, sink_kind: DescriptorKind, plan: Plan) -> Self {
        Self {
            source_kind,
            sink_kind,
            limit: None,
            read: ReadBytes::default(),
            engine: FallbackEngine::new(Direction::DescriptorToDescriptor, plan, Length::UntilEof),
            support: Support::none_refused(),
        }
    }

    /// Ends the transfer after this many bytes, or at the end of the source if that comes first.
    pub(crate) fn at_most(mut self, bytes: u64) -> Self {
        self.limit = Some(bytes);
        self
    }

    /// Records that every byte is copied because zero copy is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.engine.set_switched_off();
    }

    /// Tries once to move bytes. With `may_wait`, the step waits for the two ends if they are
    /// blocking. Without it, `copy` still waits for an end that is. Neither SIGPIPE nor SIGXFSZ is
    /// ever raised.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        may_wait: bool,
    ) -> Result<Progress, Error> {
        let moved = self.report().bytes();
        let untaken = self
            .limit
            .map(|limit| limit.saturating_sub(moved + self.held_bytes()));
        if self.held_bytes() == 0 && untaken == Some(0) {
            return Ok(Progress::Done);
        }
        let step = CopyStep {
            source,
            sink,
            source_kind: self.source_kind,
            sink_kind: self.sink_kind,
            untaken,
            may_wait,
        };
        let next = match self.move_bytes(kernel, self.mechanism(), &step)? {
            // Only a mechanism that has moved nothing is to be replaced for once.
            Next::CopyOnce(_) => self.move_bytes(kernel, Mechanism::Copy, &step)?,
            next => next,
        };
        self.engine.progress(next, self.report().bytes() - moved)
    }

    /// Makes the step with `mechanism`, and counts the bytes that it has moved.
    fn move_bytes(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &CopyStep<'_>,
    ) -> Result<Next, Error> {
        let (mechanism, outcome) = self.read.step(kernel, mechanism, step);
        // Sockets and pipes keep references, and `/dev/null` drops them. Files copy.
        let is_copied = mechanism.is_zero_copy() && self.sink_kind == DescriptorKind::File;
        if is_copied {
            let report = self.engine.report_mut();
            report.count_kernel_copied(outcome.moved);
        }
        let next = self.engine.process(mechanism, outcome, &mut self.support);
        next.map_err(|error| match self.sink_kind {
            DescriptorKind::Socket => error.of_socket_sink().recognise_unconnected(step.sink),
            _ => error,
        })
    }

    /// If more was read than the sink has accepted, moves the position of the source back, so that
    /// the next read begins with the first byte that the sink has not accepted. Those bytes are
    /// lost if the source has no position.
    pub(crate) fn give_back(&self, source: BorrowedFd<'_>) {
        if let Ok(held @ 1..) = i64::try_from(self.held_bytes()) {
            // A source without a position fails, with `ESPIPE`.
            let _ = rustix::fs::seek(source, rustix::fs::SeekFrom::Current(-held));
        }
    }

    /// Returns the error for a driver that failed to wait for a side.
    pub(crate) fn driver_error(&self, side: Side, call: &'static str, cause: io::Error) -> Error {
        self.engine.driver_error(side, call, cause)
    }

    /// Returns the mechanism that the next step uses.
    pub(crate) fn mechanism(&self) -> Mechanism {
        self.engine.mechanism()
    }

    /// Returns the kind of the sink.
    pub(crate) fn sink_kind(&self) -> DescriptorKind {
        self.sink_kind
    }

    /// Returns how many bytes were read that the sink has not accepted.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.read.len()
    }

    /// Returns the report so far.
    pub(crate) fn report(&self) -> &Report {
        self.engine.report()
    }
}
