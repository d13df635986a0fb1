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
use crate::policy::{Mechanism, ReceivePlanInput, Support, zero_copy_receive_enabled};
use crate::report::Report;
use crate::sys::Kernel;
use chunk::ChunkBuffer;
use map_receive::MapStep;
use mapped_share::MappedShare;

/// What is known about a socket that is received from, and the bytes that were received but not yet
/// returned to the caller.
#[derive(Debug)]
pub(crate) struct MemorySource {
    is_tcp: bool,
    /// `None` if the source was created for a stream socket, otherwise the errno with which
    /// [`check_stream_socket`](crate::endpoint::check_stream_socket) failed.
    pub(crate) not_a_stream: Option<Errno>,
    pub(crate) support: Support,
    /// The report of all that was received from this socket. Each step adds to it.
    pub(crate) report: Report,
    /// How many windows the program may hold.
    max_windows: usize,
    /// The number of bytes that must have arrived before a chunk is begun (`SO_RCVLOWAT`).
    low_water_mark: usize,
    windows: Arc<FreeWindows>,
    chunk: ChunkBuffer,
    share: MappedShare,
    /// The number of bytes in the socket's queue after the last step, if it is known.
    queued: Option<usize>,
    /// The length of the last chunk.
    last_len: usize,
    /// An error of the socket that has not been reported.
    pending: Option<Errno>,
    /// The `SO_COOKIE` of the socket that the windows belong to, as far as it was needed.
    cookie: Option<u64>,
    /// Whether the socket may have been replaced by another one since the last step.
    pub(crate) expects_another_socket: bool,
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
            report: Report::default(),
            max_windows,
            low_water_mark,
            windows: Arc::default(),
            chunk: ChunkBuffer::new(chunk_bytes),
            share: MappedShare::default(),
            queued: None,
            last_len: low_water_mark,
            pending: None,
            cookie: None,
            expects_another_socket: false,
        }
    }

    /// Keeps the errno of an error, to be reported by the next step.
    pub(crate) fn report_later(&mut self, error: &Error) {
        let errno = error.raw_os_error().map(Errno::from_raw_os_error);
        self.pending = errno.or(self.pending);
    }

    /// Returns the properties of the next chunk that its plan depends on.
    pub(crate) fn plan_input(&self) -> ReceivePlanInput {
        ReceivePlanInput {
            expected_bytes: self.last_len,
            mapped_percent: self.share.percent(),
            is_tcp: self.is_tcp,
            zero_copy_enabled: zero_copy_receive_enabled(),
        }
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    /// Whether enough was received with `map_receive` to know which part of it the kernel maps.
    pub(crate) fn has_measured(&self) -> bool {
        self.share.has_measured()
    }

    /// Whether a step of `map_receive`, which never waits, should be made only once the socket is
    /// readable: it would find nothing, or too few bytes.
    pub(crate) fn must_wait(&self) -> bool {
        let too_few = match self.queued {
            Some(queued) => queued < self.low_water_mark.max(1),
            None => self.low_water_mark > 1,
        };
        too_few && !self.has_bytes() && self.pending.is_none()
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
            && self.pending.is_none()
            && self.queued.is_some_and(|queued| queued >= page)
            && self.chunk.has_room()
    }

    /// Returns the bytes that were received since the last call.
    pub(crate) fn take_chunk(&mut self) -> Vec<ChunkPart> {
        let parts = self.chunk.take(&self.windows);
        self.last_len = parts.iter().map(ChunkPart::len).sum();
        parts
    }

    /// Tries once to receive with `mechanism`. The outcome counts the bytes that the mechanism has
    /// received. Those that had to be copied although it is another mechanism than `copy` are
    /// counted in the report, and returned. With `may_wait`, a step of `copy` may wait if the
    /// socket is blocking, and the caller has waited before a step of `map_receive` if it
    /// [must](Self::must_wait).
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        source: BorrowedFd<'_>,
        may_wait: bool,
    ) -> (Outcome, u64) {
        if let Some(errno) = self.pending.take() {
            return (Status::Failed(Side::Source, errno).into(), 0);
        }
        // A call that does not wait also ignores the option.
        let is_early = !may_wait && self.low_water_mark > 1 && self.must_wait();
        if is_early && !kernel.is_readable(source) {
            return (Status::Blocked(Side::Source).in_call("poll"), 0);
        }
        if self.chunk.allocate().is_err() {
            let outcome = Status::Failed(Side::Source, Errno::NOMEM).in_call("mmap");
            return (outcome, 0);
        }
        match mechanism {
            Mechanism::MapReceive => self.map_step(kernel, source),
            Mechanism::Copy => {
                let outcome = copy::step(kernel, source, self.chunk.spare(), may_wait);
                self.chunk.add_copied(outcome.moved as usize);
                self.share.record_copied(outcome.moved);
                self.queued = None;
                (outcome, 0)
            }
            // A mechanism that does not receive.
            _ => (Status::Unsupported(Errno::INVAL).into(), 0),
        }
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
        self.pending = pending;
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
        self.check_socket(kernel, source)?;
        if self.chunk.has_window() {
            return Ok(());
        }
        let window = match self.windows.take() {
            Some(window) => window,
            None if self.windows.leased() >= self.max_windows => {
                return Err(Status::CopyOnce(Errno::NOBUFS).into());
            }
            None => map_receive::create_window(kernel, source, self.chunk.capacity())?,
        };
        self.chunk.set_window(window);
        Ok(())
    }

    /// Forgets the windows if they belong to another socket. They would keep it open.
    fn check_socket(
        &mut self,
        kernel: &impl Kernel,
        source: BorrowedFd<'_>,
    ) -> Result<(), Outcome> {
        if self.cookie.is_some() && !self.expects_another_socket {
            return Ok(());
        }
        let cookie = match kernel.socket_cookie(source) {
            Ok(cookie) => cookie,
            Err(errno) => return Err(Status::CopyOnce(errno).in_call("getsockopt")),
        };
        if self.cookie.is_some_and(|known| known != cookie) {
            self.windows.clear();
            self.chunk.drop_empty_window();
            self.queued = None;
        }
        map_receive::check(kernel, source)?;
        self.cookie = Some(cookie);
        self.expects_another_socket = false;
        Ok(())
    }
}
