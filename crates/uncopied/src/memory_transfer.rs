//! The state machine of one send of memory: offset, stepping down, accounting.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::channel::Channel;
use crate::completion::Sending;
use crate::error::{Error, ErrorKind};
use crate::lease::Memory;
use crate::mechanism::MemoryOutcome;
use crate::plan::{Mechanism, Plan};
use crate::report::{Report, StepDown};
use crate::sender::{OverQuota, Sent};
use crate::sys::{Kernel, Linux};

/// The most that one step moves, in bytes: a fast peer cannot hold an event loop, and no notice holds
/// back more than that.
const STEP: usize = crate::mechanism::STEP;

/// The most parts that one step moves.
const PARTS: usize = 64;

/// A send of memory to a socket, one non-blocking step at a time. Dropping it leaves what has been sent
/// as it is.
#[derive(Debug)]
pub(crate) struct MemoryTransfer {
    /// What the socket has not taken: parts of at least one byte each.
    rest: VecDeque<Memory>,
    plan: Plan,
    at: usize,
    sending: Sending,
    report: Report,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryProgress {
    /// The socket took bytes. There are more.
    Moved,
    /// Another mechanism takes over.
    SteppedDown,
    /// Nothing moves until the socket is writable.
    Blocked,
    /// Nothing moves until some of what is lent has come back.
    OverQuota,
    /// The socket has taken every byte.
    Done,
}

impl MemoryTransfer {
    /// A send of `parts`, in their order, by `plan`, which has at least one mechanism. Nothing happens
    /// yet.
    pub(crate) fn new(parts: impl IntoIterator<Item = Memory>, plan: Plan) -> Self {
        let parts = parts.into_iter().filter(|part| part.len() > 0);
        Self {
            rest: parts.collect(),
            plan,
            at: 0,
            sending: Sending::new(),
            report: Report::default(),
        }
    }

    /// Makes one try to move bytes, at most 2 MiB, without waiting. Every step must be given the same
    /// channel and sink.
    pub(crate) fn step(
        &mut self,
        channel: &mut Channel,
        sink: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        self.step_by(&Linux, channel, sink)
    }

    pub(crate) fn step_by(
        &mut self,
        kernel: &impl Kernel,
        channel: &mut Channel,
        sink: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        let share = self.share();
        if share.is_empty() {
            return Ok(MemoryProgress::Done);
        }
        let outcome = channel.step(kernel, self.mechanism(), sink, &share, &self.sending);
        self.take_in(outcome, kernel, channel, sink, &share)
    }

    /// Whether the next step can be [gathered](Self::gather).
    #[cfg(feature = "tokio")]
    pub(crate) fn can_be_gathered(&self) -> bool {
        self.mechanism() == Mechanism::SendZc
            && !self.rest.is_empty()
            && self
                .rest
                .iter()
                .all(|part| matches!(part, Memory::Pages(_)))
    }

    /// As [`step`](Self::step), in one call of the kernel with what other connections of this thread have
    /// to send. It gives way to other tasks.
    ///
    /// # Cancellation
    ///
    /// Dropped before it is ready it has not sent, or nobody learns how many bytes it has.
    #[cfg(feature = "tokio")]
    pub(crate) async fn gather(
        &mut self,
        channel: &mut Channel,
        sink: BorrowedFd<'_>,
    ) -> Result<MemoryProgress, Error> {
        let share = self.share();
        let outcome = channel.gather(sink, &share, &self.sending).await;
        self.take_in(outcome, &Linux, channel, sink, &share)
    }

    fn take_in(
        &mut self,
        outcome: MemoryOutcome,
        kernel: &impl Kernel,
        channel: &mut Channel,
        sink: BorrowedFd<'_>,
        share: &[Memory],
    ) -> Result<MemoryProgress, Error> {
        let mechanism = self.mechanism();
        match outcome {
            MemoryOutcome::Moved(moved) => Ok(self.moved(channel, mechanism, moved)),
            MemoryOutcome::Blocked => Ok(MemoryProgress::Blocked),
            MemoryOutcome::OverQuota if channel.over_quota() == OverQuota::Wait => {
                Ok(MemoryProgress::OverQuota)
            }
            MemoryOutcome::OverQuota => self.copy(kernel, channel, sink, share),
            MemoryOutcome::CopyThis(errno) => {
                self.note(channel, mechanism, Mechanism::Copy, errno);
                self.copy(kernel, channel, sink, share)
            }
            MemoryOutcome::Unsupported(errno) => self.step_down(channel, errno),
            MemoryOutcome::Failed(errno) => Err(self.failed(mechanism, errno)),
        }
    }

    /// What a step is to move: several parts, or the beginning of one.
    fn share(&self) -> Vec<Memory> {
        let mut room = STEP;
        let mut share = Vec::new();
        for part in self.rest.iter().take(PARTS) {
            share.push(part.first(room));
            room = room.saturating_sub(part.len());
            if room == 0 {
                break;
            }
        }
        share
    }

    /// Copies one share, in place of a mechanism that has the next one again.
    fn copy(
        &mut self,
        kernel: &impl Kernel,
        channel: &mut Channel,
        sink: BorrowedFd<'_>,
        share: &[Memory],
    ) -> Result<MemoryProgress, Error> {
        match channel.step(kernel, Mechanism::Copy, sink, share, &self.sending) {
            MemoryOutcome::Moved(moved) => Ok(self.moved(channel, Mechanism::Copy, moved)),
            MemoryOutcome::Failed(errno) => Err(self.failed(Mechanism::Copy, errno)),
            _ => Ok(MemoryProgress::Blocked),
        }
    }

    fn moved(
        &mut self,
        channel: &mut Channel,
        mechanism: Mechanism,
        bytes: usize,
    ) -> MemoryProgress {
        self.report.count(mechanism, bytes as u64);
        channel.count(mechanism, bytes as u64);
        let mut left = bytes;
        while let Some(part) = self.rest.front_mut() {
            if left < part.len() {
                *part = part.after(left);
                break;
            }
            left -= part.len();
            self.rest.pop_front();
        }
        if self.rest.is_empty() {
            channel.rest();
            MemoryProgress::Done
        } else {
            MemoryProgress::Moved
        }
    }

    fn step_down(&mut self, channel: &mut Channel, errno: Errno) -> Result<MemoryProgress, Error> {
        let from = self.mechanism();
        channel.refuse(from, errno);
        let Some(&to) = self.plan.mechanisms().get(self.at + 1) else {
            return Err(self.error(ErrorKind::Unsupported, from.name(), Some(errno.into())));
        };
        self.at += 1;
        self.note(channel, from, to, errno);
        Ok(MemoryProgress::SteppedDown)
    }

    fn note(&mut self, channel: &mut Channel, from: Mechanism, to: Mechanism, errno: Errno) {
        let step = StepDown {
            from,
            to,
            errno,
            at: self.report.bytes(),
        };
        self.report.step_down_once(step);
        channel.note(step);
    }

    fn failed(&self, mechanism: Mechanism, errno: Errno) -> Error {
        let kind = ErrorKind::of_sink(errno);
        self.error(kind, mechanism.name(), Some(errno.into()))
    }

    /// An error of this send, with its report.
    pub(crate) fn error(
        &self,
        kind: ErrorKind,
        call: &'static str,
        cause: Option<io::Error>,
    ) -> Error {
        Error::new(kind, call, self.report.clone(), cause)
    }

    fn mechanism(&self) -> Mechanism {
        self.plan.mechanisms()[self.at]
    }

    /// How many bytes the socket has taken.
    #[cfg(feature = "tokio")]
    pub(crate) fn bytes(&self) -> u64 {
        self.report.bytes()
    }

    /// What was sent until now.
    pub(crate) fn into_sent(mut self) -> Sent {
        if !crate::send_is_on() {
            self.report.set_switched_off();
        }
        Sent::new(self.report, self.sending.completion())
    }
}
