//! The engine that all directions share: it follows a plan, counts what each mechanism moves, falls
//! back to the next one from the byte that was reached, and builds the errors.

use std::io;

use rustix::io::Errno;

use crate::error::{Error, ErrorKind};
use crate::mechanism::{Outcome, Side, Status};
use crate::policy::{Mechanism, Plan, Support};
use crate::report::{Fallback, Report};

/// A plan in progress.
#[derive(Debug)]
pub(super) struct FallbackEngine {
    plan: Plan,
    /// The index of the current mechanism in the plan.
    current: usize,
    /// How many bytes were promised, if their number is exact.
    promised: Option<u64>,
    report: Report,
}

/// What a state machine does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There may be more to move: step again.
    Continue,
    /// Wait for this side.
    Wait(Side),
    /// Wait until some of the memory in flight is free.
    WaitForMemory,
    /// The source has ended.
    Ended,
    /// Make this step by `copy`, and the next one by the plan.
    CopyOnce(Fallback),
    /// Step again: the next mechanism has taken over.
    FellBack(Fallback),
}

impl FallbackEngine {
    /// Starts with the first mechanism of `plan`. An empty plan copies.
    pub(super) fn new(plan: Plan, promised: Option<u64>) -> Self {
        let plan = if plan.mechanisms().is_empty() {
            Plan::copying()
        } else {
            plan
        };
        Self {
            plan,
            current: 0,
            promised,
            report: Report::default(),
        }
    }

    pub(super) fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The mechanism that the next step uses.
    pub(super) fn mechanism(&self) -> Mechanism {
        self.plan.mechanisms()[self.current]
    }

    pub(super) fn report(&self) -> &Report {
        &self.report
    }

    pub(super) fn report_mut(&mut self) -> &mut Report {
        &mut self.report
    }

    pub(super) fn into_report(self) -> Report {
        self.report
    }

    /// How many bytes remain of those promised.
    pub(super) fn remaining(&self) -> Option<u64> {
        let promised = self.promised?;
        Some(promised.saturating_sub(self.report.bytes()))
    }

    /// Counts the outcome of a step by `mechanism`, and decides what follows. What the step found
    /// out is recorded in `support`.
    ///
    /// # Errors
    ///
    /// If the step failed, or the last mechanism of the plan is unsupported.
    pub(super) fn process(
        &mut self,
        mechanism: Mechanism,
        outcome: Outcome,
        support: &mut Support,
    ) -> Result<Next, Error> {
        self.report.count(mechanism, outcome.moved);
        match outcome.status {
            Status::Continue => Ok(Next::Continue),
            Status::Blocked(side) => Ok(Next::Wait(side)),
            Status::AtLimit => Ok(Next::WaitForMemory),
            Status::Ended => Ok(Next::Ended),
            Status::CopyOnce(errno) => {
                let fallback = self.record(mechanism, Mechanism::Copy, errno);
                Ok(Next::CopyOnce(fallback))
            }
            Status::Unsupported(errno) => self.fall_back(mechanism, errno, support),
            Status::Failed(side, errno) => Err(self.failed(mechanism, side, errno)),
        }
    }

    fn fall_back(
        &mut self,
        from: Mechanism,
        errno: Errno,
        support: &mut Support,
    ) -> Result<Next, Error> {
        support.record_refusal(from, errno);
        let Some(&to) = self.plan.mechanisms().get(self.current + 1) else {
            let cause = Some(errno.into());
            return Err(self.error(ErrorKind::Unsupported, from.name(), cause));
        };
        self.current += 1;
        Ok(Next::FellBack(self.record(from, to, errno)))
    }

    fn record(&mut self, from: Mechanism, to: Mechanism, errno: Errno) -> Fallback {
        let fallback = Fallback {
            from,
            to,
            errno,
            at: self.report.bytes(),
        };
        self.report.record_fallback_once(fallback);
        fallback
    }

    fn failed(&self, mechanism: Mechanism, side: Side, errno: Errno) -> Error {
        let kind = match (side, self.promised) {
            (Side::Sink, _) => ErrorKind::of_sink(errno),
            (Side::Source, Some(promised)) if errno == Errno::NODATA => {
                ErrorKind::SourceTooShort { promised }
            }
            (Side::Source, _) if errno == Errno::SPIPE => ErrorKind::SourceNotSeekable,
            (Side::Source, _) => ErrorKind::Source,
        };
        self.error(kind, mechanism.name(), Some(errno.into()))
    }

    /// The error of a source that ended although more bytes were promised.
    pub(super) fn too_short(&self, promised: u64) -> Error {
        let kind = ErrorKind::SourceTooShort { promised };
        self.error(kind, self.mechanism().name(), None)
    }

    /// An error with the report so far.
    pub(super) fn error(
        &self,
        kind: ErrorKind,
        call: &'static str,
        cause: Option<io::Error>,
    ) -> Error {
        Error::new(kind, call, self.report.clone(), cause)
    }
}
