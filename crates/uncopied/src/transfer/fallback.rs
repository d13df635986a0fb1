//! The engine that all directions share. It follows a plan, counts the bytes that each mechanism
//! moves, falls back to the next mechanism if one is unsupported, and builds the errors.

use std::io;

use rustix::io::Errno;

use super::Progress;
use crate::error::{Error, ErrorKind};
use crate::mechanism::{Outcome, Side, Status};
use crate::policy::{Direction, Length, Mechanism, Plan, Support};
use crate::report::{Fallback, Report};
use crate::sys;

/// A plan that a transfer is following.
#[derive(Debug)]
pub(super) struct FallbackEngine {
    direction: Direction,
    plan: Plan,
    /// The index of the current mechanism in the plan.
    current: usize,
    /// The number of bytes that the transfer must move, if it is known exactly.
    promised: Option<u64>,
    report: Report,
}

/// What a transfer does after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// There may be more to move: step again.
    Continue,
    /// Wait until this side is ready.
    Wait(Side),
    /// Wait until some of the memory in flight can be reused.
    WaitForMemory,
    /// The source has ended. The string is the name of the system call that found its end.
    Ended(&'static str),
    /// Repeat this step with `copy`. The steps after it follow the plan again.
    CopyOnce(Fallback),
    /// Step again: the next mechanism has taken over.
    FellBack(Fallback),
}

impl FallbackEngine {
    /// Starts with the first mechanism of `plan`. If the plan is empty, every byte is copied.
    pub(super) fn new(direction: Direction, plan: Plan, length: Length) -> Self {
        let promised = match length {
            Length::Exact(bytes) => Some(bytes),
            Length::UntilEof => None,
        };
        Self::with_promise(direction, plan, promised)
    }

    fn with_promise(direction: Direction, plan: Plan, promised: Option<u64>) -> Self {
        let plan = if plan.mechanisms().is_empty() {
            Plan::copying()
        } else {
            plan
        };
        Self {
            direction,
            plan,
            current: 0,
            promised,
            report: Report::default(),
        }
    }

    /// Starts again with the first mechanism of `plan`. The report goes on.
    pub(super) fn restart(&mut self, plan: Plan) {
        let report = std::mem::take(&mut self.report);
        *self = Self {
            report,
            ..Self::with_promise(self.direction, plan, self.promised)
        };
    }

    /// Records that every byte is copied because zero copy is switched off.
    pub(super) fn set_switched_off(&mut self) {
        self.report.set_switched_off(self.direction);
    }

    /// Adds to the number of bytes that the transfer must move, if that is known exactly.
    pub(super) fn promise_more(&mut self, bytes: u64) {
        self.promised = self.promised.map(|promised| promised.saturating_add(bytes));
    }

    /// Returns the mechanism that the next step uses.
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

    /// Returns how many of the promised bytes have not been moved, or `None` if no exact number was
    /// promised.
    pub(super) fn remaining(&self) -> Option<u64> {
        let promised = self.promised?;
        Some(promised.saturating_sub(self.report.bytes()))
    }

    /// Counts the bytes that a step with `mechanism` has moved, and returns what follows from its
    /// outcome. If the mechanism is unsupported, this is recorded in `support`.
    ///
    /// # Errors
    ///
    /// If the step failed, or if the mechanism is unsupported and is the last one of the plan.
    pub(super) fn process(
        &mut self,
        mechanism: Mechanism,
        outcome: Outcome,
        support: &mut Support,
    ) -> Result<Next, Error> {
        self.report.count(mechanism, outcome.moved);
        let call = outcome.call.unwrap_or(mechanism.system_call());
        match outcome.status {
            Status::Continue => Ok(Next::Continue),
            Status::Blocked(side) => Ok(Next::Wait(side)),
            Status::AtLimit => Ok(Next::WaitForMemory),
            Status::Ended => Ok(Next::Ended(call)),
            Status::CopyOnce(errno) => {
                let fallback = self.record(mechanism, Mechanism::Copy, errno);
                Ok(Next::CopyOnce(fallback))
            }
            Status::Unsupported(errno) => self.fall_back(mechanism, call, errno, support),
            Status::Failed(side, errno) => Err(self.failed(mechanism, call, side, errno)),
        }
    }

    /// Returns the result of a step of a transfer between two descriptors, which has moved `moved`
    /// bytes and after which `next` follows.
    ///
    /// # Errors
    ///
    /// If the source has ended before the promised number of bytes.
    pub(super) fn progress(&self, next: Next, moved: u64) -> Result<Progress, Error> {
        match next {
            Next::Continue if self.remaining() == Some(0) => Ok(Progress::Done),
            Next::Wait(side) => Ok(Progress::Blocked(side)),
            Next::Ended(call) => self.ended(call),
            // The last two never get here: `copy` is not to be replaced by itself, and no memory is
            // in flight.
            Next::Continue | Next::FellBack(_) | Next::CopyOnce(_) | Next::WaitForMemory => {
                Ok(Progress::Moved(moved))
            }
        }
    }

    /// Returns the result of a step that has reached the end of the source. `call` is the system
    /// call that found the end.
    ///
    /// # Errors
    ///
    /// If more bytes were promised.
    pub(super) fn ended(&self, call: &'static str) -> Result<Progress, Error> {
        match self.promised {
            None => Ok(Progress::Done),
            Some(_) => Err(self.too_short(call)),
        }
    }

    fn fall_back(
        &mut self,
        from: Mechanism,
        call: &'static str,
        errno: Errno,
        support: &mut Support,
    ) -> Result<Next, Error> {
        support.record_refusal(from, sys::Errno::of(errno));
        let Some(&to) = self.plan.mechanisms().get(self.current + 1) else {
            let cause = Some(errno.into());
            return Err(self.error(ErrorKind::Unsupported, from, call, cause));
        };
        self.current += 1;
        Ok(Next::FellBack(self.record(from, to, errno)))
    }

    fn record(&mut self, from: Mechanism, to: Mechanism, errno: Errno) -> Fallback {
        let fallback = Fallback {
            from,
            to,
            errno: sys::Errno::of(errno),
            at: self.report.bytes(),
        };
        if self.report.record_fallback_once(fallback) {
            emit(&fallback);
        }
        fallback
    }

    fn failed(&self, mechanism: Mechanism, call: &'static str, side: Side, errno: Errno) -> Error {
        let kind = match (side, self.promised) {
            // Whether the sink is a socket is not known here.
            (Side::Sink, _)
                if matches!(
                    self.direction,
                    Direction::SocketToFile | Direction::DescriptorToDescriptor
                ) =>
            {
                ErrorKind::Sink
            }
            (Side::Source, _) if self.direction == Direction::DescriptorToDescriptor => {
                ErrorKind::Source
            }
            (Side::Sink, _) => ErrorKind::of_sink(errno),
            // The kind depends on the errno: see `Error::in_direction`.
            (Side::Source, _) if self.direction.receives() => ErrorKind::Source,
            (Side::Source, Some(promised)) if errno == Errno::NODATA => {
                ErrorKind::SourceTooShort { promised }
            }
            (Side::Source, _) if errno == Errno::SPIPE => ErrorKind::SourceNotSeekable,
            (Side::Source, _) => ErrorKind::Source,
        };
        self.error(kind, mechanism, call, Some(errno.into()))
            .at_side(side)
    }

    /// Returns the error for a source that ended before the promised number of bytes. `call` is the
    /// system call that found the end.
    fn too_short(&self, call: &'static str) -> Error {
        let promised = self.promised.unwrap_or(0);
        let kind = ErrorKind::SourceTooShort { promised };
        self.error(kind, self.mechanism(), call, None)
            .at_side(Side::Source)
    }

    /// Returns the error for a driver that failed to wait for a side, or to tell it that the stream
    /// has ended.
    pub(super) fn driver_error(&self, side: Side, call: &'static str, cause: io::Error) -> Error {
        let kind = match (side, cause.kind()) {
            (_, io::ErrorKind::TimedOut) => ErrorKind::TimedOut,
            (Side::Source, _) => ErrorKind::Source,
            (Side::Sink, _) => ErrorKind::Sink,
        };
        self.error(kind, self.mechanism(), call, Some(cause))
            .at_side(side)
    }

    /// Returns an error that contains the report so far.
    pub(super) fn error(
        &self,
        kind: ErrorKind,
        mechanism: Mechanism,
        call: &'static str,
        cause: Option<io::Error>,
    ) -> Error {
        Error::of_transfer(kind, mechanism, call, self.report.clone(), cause)
            .in_direction(self.direction)
    }
}

/// Emits a tracing event for a fallback, if the feature `tracing` is on.
#[cfg_attr(not(feature = "tracing"), allow(unused_variables))]
fn emit(fallback: &Fallback) {
    #[cfg(feature = "tracing")]
    tracing::debug!(
        target: "uncopied",
        from = fallback.from.name(),
        to = fallback.to.name(),
        errno = fallback.errno.raw_os_error(),
        at = fallback.at,
        "a transfer fell back to another mechanism"
    );
}

#[cfg(all(test, feature = "tracing"))]
mod tests {
    use std::fmt;
    use std::sync::{Arc, Mutex};

    use tracing::field::{Field, Visit};
    use tracing::span::{Attributes, Id, Record};
    use tracing::{Event, Metadata, Subscriber};

    use super::*;

    /// Collects the fields of all events of this library.
    #[derive(Clone, Default)]
    struct Collector(Arc<Mutex<Vec<String>>>);

    impl Subscriber for Collector {
        fn enabled(&self, metadata: &Metadata<'_>) -> bool {
            metadata.target() == "uncopied"
        }
        fn new_span(&self, _: &Attributes<'_>) -> Id {
            Id::from_u64(1)
        }
        fn record(&self, _: &Id, _: &Record<'_>) {}
        fn record_follows_from(&self, _: &Id, _: &Id) {}
        fn event(&self, event: &Event<'_>) {
            event.record(&mut self.clone());
        }
        fn enter(&self, _: &Id) {}
        fn exit(&self, _: &Id) {}
    }

    impl Visit for Collector {
        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            let field = format!("{field}={value:?}");
            self.0.lock().expect("no panic").push(field);
        }
    }

    #[test]
    fn a_fallback_is_an_event_once() {
        let collector = Collector::default();
        let seen = Arc::clone(&collector.0);
        tracing::subscriber::with_default(collector, || {
            let mut engine =
                FallbackEngine::new(Direction::FileToSocket, Plan::copying(), Length::UntilEof);
            engine.record(Mechanism::Splice, Mechanism::Copy, Errno::INVAL);
            engine.record(Mechanism::Splice, Mechanism::Copy, Errno::INVAL);
        });
        assert_eq!(
            *seen.lock().expect("no panic"),
            [
                "message=a transfer fell back to another mechanism",
                r#"from="splice""#,
                r#"to="copy""#,
                "errno=22",
                "at=0",
            ]
        );
    }
}
