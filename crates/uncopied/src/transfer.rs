//! The state machine that runs a plan: offsets, stepping down, accounting.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;

use crate::arena::FileMapping;
use crate::error::{Error, ErrorKind};
use crate::mechanism::{self, Job, MmapWrite, Outcome, Sendfile, Side, Splice, Then};
use crate::plan::{Length, Mechanism, Plan};
use crate::report::{Report, StepDown};
use crate::support::Support;
use crate::sys::{Kernel, Linux};

/// A transfer of a file to a stream socket, one non-blocking step at a time.
///
/// It owns no descriptor, waits for nothing and needs no runtime: a driver calls [`step`](Self::step)
/// and waits when it says so. [`SendFile`](crate::SendFile) brings two drivers; this is for event
/// loops of your own. It may be dropped, or left alone for as long as one likes, between any two
/// steps: [`offset`](Self::offset) tells where it stands.
///
/// ```
/// use std::{fs::File, os::unix::net::UnixStream};
/// use uncopied::plan::{Length, Mechanism, Plan};
/// use uncopied::{Progress, Transfer};
///
/// let file = File::open("Cargo.toml")?;
/// let (socket, _peer) = UnixStream::pair()?;
/// socket.set_nonblocking(true)?;
///
/// let plan = Plan::of(&[Mechanism::Sendfile, Mechanism::Copy]);
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
    plan: Plan,
    at: usize,
    tool: Tool,
    support: Support,
    report: Report,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The socket took so many bytes, perhaps none where a mechanism gave way to the next. There may
    /// be more: step again.
    Moved(u64),
    /// Nothing moves until this side is ready.
    Blocked(Side),
    /// Every byte has been taken.
    Done,
}

/// The mechanism at work, with what it keeps between steps.
#[derive(Debug)]
enum Tool {
    Sendfile(Sendfile),
    Splice(Splice),
    MmapWrite(MmapWrite),
    Copy(mechanism::Copy),
    /// A mechanism for memory, which cannot send a file.
    ForMemory,
}

impl Tool {
    fn of(mechanism: Mechanism) -> Self {
        match mechanism {
            Mechanism::Sendfile => Self::Sendfile(Sendfile),
            Mechanism::Splice => Self::Splice(Splice::default()),
            Mechanism::MmapWrite => Self::MmapWrite(MmapWrite::default()),
            Mechanism::Copy => Self::Copy(mechanism::Copy::default()),
            Mechanism::MsgZerocopy | Mechanism::SendZc | Mechanism::Vmsplice => Self::ForMemory,
        }
    }

    fn step(&mut self, kernel: &impl Kernel, job: Job<'_>) -> Outcome {
        match self {
            Self::Sendfile(tool) => tool.step(kernel, job),
            Self::Splice(tool) => tool.step(kernel, job),
            Self::MmapWrite(tool) => tool.step(kernel, job),
            Self::Copy(tool) => tool.step(kernel, job),
            Self::ForMemory => Outcome::nothing(Then::Unsupported(Errno::INVAL)),
        }
    }
}

impl Transfer {
    /// A transfer of `length` bytes of the source, from `offset` on, by `plan`. Nothing happens yet.
    ///
    /// An empty plan is taken as one that copies.
    #[must_use]
    pub fn new(offset: u64, length: Length, plan: Plan) -> Self {
        let plan = if plan.mechanisms().is_empty() {
            Plan::copying()
        } else {
            plan
        };
        Self {
            offset,
            length,
            plan,
            at: 0,
            tool: Tool::of(plan.mechanisms()[0]),
            support: Support::none_refused(),
            report: Report::default(),
        }
    }

    /// Tells that a part of the file is mapped already, so that `mmap_write` need not map it.
    #[must_use]
    pub fn with_mapping(mut self, mapping: &FileMapping) -> Self {
        if matches!(self.tool, Tool::MmapWrite(_)) {
            self.tool = Tool::MmapWrite(MmapWrite::within(mapping.clone()));
        }
        self
    }

    /// Notes that the plan is what it is because zero-copy sending is switched off.
    pub(crate) fn set_switched_off(&mut self) {
        self.report.set_switched_off();
    }

    /// Makes one try to move bytes, at most 2 MiB, without waiting for the socket if the socket is
    /// non-blocking. A file that is not in the page cache is waited for: see
    /// [`residency`](crate::residency).
    ///
    /// Every step must be given the same source and sink; a source of other bytes sends other bytes.
    /// SIGPIPE is never raised.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error carries the report so far. After one, further steps are
    /// meaningless but harmless.
    pub fn step(&mut self, source: impl AsFd, sink: impl AsFd) -> Result<Progress, Error> {
        self.step_by(&Linux, source.as_fd(), sink.as_fd())
    }

    pub(crate) fn step_by(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
    ) -> Result<Progress, Error> {
        let left = self.remaining();
        if left == Some(0) {
            return Ok(Progress::Done);
        }
        if self.offset >= mechanism::END_OF_FILES {
            return self.ended();
        }
        let job = Job {
            source,
            sink,
            offset: self.offset,
            left,
        };
        let outcome = self.tool.step(kernel, job);
        self.report.count(self.mechanism(), outcome.moved);
        self.offset += outcome.moved;
        match outcome.then {
            Then::Going if self.remaining() == Some(0) => Ok(Progress::Done),
            Then::Going => Ok(Progress::Moved(outcome.moved)),
            Then::Blocked(side) => Ok(Progress::Blocked(side)),
            Then::Ended => self.ended(),
            Then::Unsupported(errno) => self.step_down(errno),
            Then::Failed(side, errno) => Err(self.failed(side, errno)),
        }
    }

    fn ended(&self) -> Result<Progress, Error> {
        match self.length {
            Length::UntilEof => Ok(Progress::Done),
            Length::Exact(promised) => {
                Err(self.error(ErrorKind::SourceTooShort { promised }, None))
            }
        }
    }

    /// Goes over to the plan's next mechanism, from the first byte that the sink has not taken.
    fn step_down(&mut self, errno: Errno) -> Result<Progress, Error> {
        let from = self.mechanism();
        self.support.note(from, errno);
        let Some(&to) = self.plan.mechanisms().get(self.at + 1) else {
            return Err(self.error(ErrorKind::Unsupported, Some(errno)));
        };
        self.at += 1;
        self.tool = Tool::of(to);
        self.report.step_down(StepDown {
            from,
            to,
            errno,
            at: self.report.bytes(),
        });
        Ok(Progress::Moved(0))
    }

    fn failed(&self, side: Side, errno: Errno) -> Error {
        let kind = match (side, self.length) {
            (Side::Sink, _) => ErrorKind::of_sink(errno),
            (Side::Source, Length::Exact(promised)) if errno == Errno::NODATA => {
                ErrorKind::SourceTooShort { promised }
            }
            (Side::Source, _) if errno == Errno::SPIPE => ErrorKind::SourceNotSeekable,
            (Side::Source, _) => ErrorKind::Source,
        };
        self.error(kind, Some(errno))
    }

    fn error(&self, kind: ErrorKind, errno: Option<Errno>) -> Error {
        let cause = errno.map(io::Error::from);
        Error::new(kind, self.mechanism().name(), self.report.clone(), cause)
    }

    /// An error of a driver's.
    pub(crate) fn driver_error(
        &self,
        kind: ErrorKind,
        call: &'static str,
        cause: io::Error,
    ) -> Error {
        Error::new(kind, call, self.report.clone(), Some(cause))
    }

    /// The mechanism that the next step tries.
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        self.plan.mechanisms()[self.at]
    }

    /// The first byte of the source that the socket has not taken, in bytes from its start.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// How many bytes are left of an exact length; `None` until the end of the file.
    #[must_use]
    pub fn remaining(&self) -> Option<u64> {
        match self.length {
            Length::Exact(promised) => Some(promised.saturating_sub(self.report.bytes())),
            Length::UntilEof => None,
        }
    }

    /// What has been moved so far, and how.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// What has been moved, and how.
    #[must_use]
    pub fn into_report(self) -> Report {
        self.report
    }

    /// What this transfer has learned of its pair.
    #[must_use]
    pub fn support(&self) -> &Support {
        &self.support
    }
}
