//! The mechanisms that move bytes from a stream socket to memory.

mod chunk;
mod copy;
mod map_receive;
mod mapped_share;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{Outcome, Side, Status};
use crate::arena::{ChunkPart, FreeWindows};
use crate::error::Error;
use crate::policy::{Mechanism, ReceivePlanInput, Support};
use crate::sys::Kernel;
use chunk::ChunkBuffer;
use map_receive::MapStep;
use mapped_share::MappedShare;

/// Who waits until the socket has bytes, or as many as `SO_RCVLOWAT` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Nobody has waited. A step that would have to is blocked.
    Not,
    /// The caller has waited, or wants what is there.
    Done,
    /// The system call may wait, if it can and the socket is blocking.
    InCall,
}

/// What is known about a socket that is received from, and the chunk that is being received.
#[derive(Debug)]
pub(crate) struct MemorySource {
    is_tcp: bool,
    /// `None` if the source was created for a stream socket, otherwise the errno with which
    /// [`check_stream_socket`](crate::endpoint::check_stream_socket) failed.
    pub(crate) not_a_stream: Option<Errno>,
    pub(crate) support: Support,
    /// How many windows the program may hold.
    max_windows: usize,
    /// The number of bytes that must have arrived before a chunk is begun (`SO_RCVLOWAT`).
    low_water_mark: usize,
    windows: Arc<FreeWindows>,
    /// Whether the last attempt to map found no window, because the program held all of them.
    lacks_window: bool,
    chunk: ChunkBuffer,
    share: MappedShare,
    /// The number of bytes in the socket's queue after the last step, if it is known.
    queued: Option<usize>,
    /// The length of the last chunk.
    last_len: usize,
    /// An error of the socket that is to be reported after the last byte.
    pending: Option<Errno>,
}

impl MemorySource {
    /// Creates a source for a socket. `low_water_mark` is what the option of the socket was set to,
    /// or 0 if it was not.
    pub(crate) fn new(
        is_tcp: bool,
        chunk_bytes: usize,
        max_windows: usize,
        low_water_mark: usize,
    ) -> Self {
        Self {
            is_tcp,
            not_a_stream: None,
            support: Support::of_process(),
            max_windows,
            low_water_mark,
            windows: Arc::default(),
            lacks_window: false,
            chunk: ChunkBuffer::new(chunk_bytes),
            share: MappedShare::default(),
            queued: None,
            last_len: low_water_mark,
            pending: None,
        }
    }

    /// Keeps the errno of an error, to be reported after the last byte.
    pub(crate) fn report_later(&mut self, error: &Error) {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        self.pending = self.pending.or(errno);
    }

    /// Returns the properties of the next chunk that its plan depends on.
    pub(crate) fn plan_input(&self) -> ReceivePlanInput {
        ReceivePlanInput {
            mapped_percent: self.share.percent(),
            is_tcp: self.is_tcp,
            ..ReceivePlanInput::new(self.last_len)
        }
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    pub(crate) fn lacks_window(&self) -> bool {
        self.lacks_window
    }

    /// Whether enough was received with `map_receive` to know which part of it the kernel maps.
    pub(crate) fn has_measured(&self) -> bool {
        self.share.has_measured()
    }

    /// Whether the next step should be made only once the socket is readable: it would find
    /// nothing, or too few bytes.
    pub(crate) fn must_wait(&self) -> bool {
        let too_few = match self.queued {
            Some(queued) => queued < self.low_water_mark.max(1),
            None => self.low_water_mark > 1,
        };
        too_few && self.pending.is_none()
    }

    /// Whether bytes of the next chunk have been received.
    pub(crate) fn has_bytes(&self) -> bool {
        !self.chunk.is_empty()
    }

    /// Whether the next step with `mechanism` may add to the chunk without waiting, and has enough
    /// room for it.
    pub(crate) fn can_add(&self, mechanism: Mechanism) -> bool {
        let page = rustix::param::page_size();
        mechanism == Mechanism::MapReceive
            && self.queued.is_some_and(|queued| queued >= page)
            && self.chunk.has_room()
    }

    /// Returns the bytes that were received since the last call.
    pub(crate) fn take_chunk(&mut self) -> Vec<ChunkPart> {
        let parts = self.chunk.take(&self.windows);
        self.last_len = parts.iter().map(ChunkPart::len).sum();
        parts
    }

    /// Tries once to receive with `mechanism`. Waits only if `waiting` says so. The outcome counts
    /// the bytes that the mechanism has received. Those that had to be copied although it is
    /// another mechanism than `copy` are returned.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        source: BorrowedFd<'_>,
        waiting: Waiting,
    ) -> (Outcome, u64) {
        let is_early = waiting == Waiting::Not && !self.has_bytes() && self.low_water_mark > 1;
        if is_early && self.must_wait() && !kernel.is_readable(source) {
            return (Status::Blocked(Side::Source).in_call("poll"), 0);
        }
        if self.chunk.allocate().is_err() {
            let outcome = Status::Failed(Side::Source, Errno::NOMEM).in_call("mmap");
            return (outcome, 0);
        }
        let (outcome, copied) = match mechanism {
            Mechanism::MapReceive => self.map_step(kernel, source),
            Mechanism::Copy => {
                let may_wait = waiting == Waiting::InCall && self.pending.is_none();
                (self.copy_step(kernel, source, may_wait), 0)
            }
            // A mechanism that does not receive.
            _ => (Status::Unsupported(Errno::INVAL).into(), 0),
        };
        let is_last = matches!(outcome.status, Status::Ended | Status::Blocked(_));
        if is_last
            && !self.has_bytes()
            && let Some(errno) = self.pending.take()
        {
            let status = Status::Failed(Side::Source, errno);
            return (Outcome { status, ..outcome }, copied);
        }
        (outcome, copied)
    }

    fn copy_step(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
        may_wait: bool,
    ) -> Outcome {
        let spare = self.chunk.spare();
        let room = spare.len();
        let outcome = copy::step(kernel, source, spare, may_wait);
        let moved = outcome.moved as usize;
        self.chunk.add_copied(moved);
        self.share.record_copied(outcome.moved);
        self.queued = (moved < room).then_some(0);
        outcome
    }

    fn map_step(&mut self, kernel: &impl Kernel, source: BorrowedFd<'_>) -> (Outcome, u64) {
        if let Err(outcome) = self.prepare_window(kernel, source) {
            return (outcome, 0);
        }
        let MapStep {
            outcome,
            copied,
            queued,
            pending,
        } = map_receive::step(kernel, source, &mut self.chunk);
        self.queued = Some(queued);
        self.pending = self.pending.or(pending);
        let copied = copied as u64;
        self.share.record(outcome.moved, copied);
        (outcome, copied)
    }

    /// Gives the chunk a window, if it has none.
    fn prepare_window(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
    ) -> Result<(), Outcome> {
        self.lacks_window = false;
        if self.chunk.has_window() {
            return Ok(());
        }
        let window = match self.windows.take() {
            Some(window) => window,
            None if self.windows.leased() >= self.max_windows => {
                self.lacks_window = true;
                return Err(Status::CopyOnce(Errno::NOBUFS).into());
            }
            None => map_receive::create_window(kernel, source, self.chunk.capacity())?,
        };
        self.chunk.set_window(window);
        Ok(())
    }
}
