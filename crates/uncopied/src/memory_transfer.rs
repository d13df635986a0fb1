//! The state machine of one send of memory: offset, stepping down, accounting.

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

/// A send of memory to a socket, one non-blocking step at a time. Dropping it leaves what has been sent
/// as it is.
#[derive(Debug)]
pub(crate) struct MemoryTransfer {
    /// What the socket has not taken.
    rest: Memory,
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
    /// A send of `memory` by `plan`, which has at least one mechanism. Nothing happens yet.
    pub(crate) fn new(memory: Memory, plan: Plan) -> Self {
        Self {
            rest: memory,
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
        if self.rest.len() == 0 {
            return Ok(MemoryProgress::Done);
        }
        let share = self.rest.first(STEP);
        let mechanism = self.mechanism();
        match channel.step(kernel, mechanism, sink, &share, &self.sending) {
            MemoryOutcome::Moved(moved) => Ok(self.moved(channel, mechanism, moved)),
            MemoryOutcome::Blocked => Ok(MemoryProgress::Blocked),
            MemoryOutcome::OverQuota if channel.over_quota() == OverQuota::Wait => {
                Ok(MemoryProgress::OverQuota)
            }
            MemoryOutcome::OverQuota => self.copy(kernel, channel, sink, &share),
            MemoryOutcome::CopyThis(errno) => {
                self.note(channel, mechanism, Mechanism::Copy, errno);
                self.copy(kernel, channel, sink, &share)
            }
            MemoryOutcome::Unsupported(errno) => self.step_down(channel, errno),
            MemoryOutcome::Failed(errno) => Err(self.failed(errno)),
        }
    }

    /// Copies one share, in place of a mechanism that has the next one again.
    fn copy(
        &mut self,
        kernel: &impl Kernel,
        channel: &mut Channel,
        sink: BorrowedFd<'_>,
        share: &Memory,
    ) -> Result<MemoryProgress, Error> {
        match channel.step(kernel, Mechanism::Copy, sink, share, &self.sending) {
            MemoryOutcome::Moved(moved) => Ok(self.moved(channel, Mechanism::Copy, moved)),
            MemoryOutcome::Failed(errno) => Err(self.failed(errno)),
            _ => Ok(MemoryProgress::Blocked),
        }
    }

    fn moved(
        &mut self,
        channel: &mut Channel,
        mechanism: Mechanism,
        bytes: usize,
    ) -> MemoryProgress {
        self.rest = self.rest.after(bytes);
        self.report.count(mechanism, bytes as u64);
        channel.count(mechanism, bytes as u64);
        if self.rest.len() == 0 {
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

    fn failed(&self, errno: Errno) -> Error {
        let kind = ErrorKind::of_sink(errno);
        self.error(kind, self.mechanism().name(), Some(errno.into()))
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

    /// What was sent until now.
    pub(crate) fn into_sent(mut self) -> Sent {
        if !crate::send_is_on() {
            self.report.set_switched_off();
        }
        Sent::new(self.report, self.sending.completion())
    }
}
