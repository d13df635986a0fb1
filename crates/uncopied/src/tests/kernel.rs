//! The real kernel, except for what the rules say.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};

use crate::sys::{Acknowledged, ErrorQueueEntry, Kernel, Linux, Mapped, UnplacedMapping};

/// A call of [`Kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Sendfile,
    Pipe,
    ResizePipe,
    SpliceIn,
    SpliceOut,
    Size,
    Map,
    SendMapped,
    ReadAt,
    Send,
    SendMemory,
    AllowsZerocopy,
    AllowZerocopy,
    SendZerocopy,
    ReadErrorQueue,
    Vmsplice,
    Acknowledged,
}

/// What a call does instead of its work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails, and has moved nothing.
    Fails(Errno),
    /// It answers 0: no bytes, a size of 0.
    Zero,
    /// It does its work, but just before, somebody cuts the file to so many bytes.
    Cuts(u64),
}

/// Which calls do it.
#[derive(Clone, Debug)]
pub(super) struct FaultRule {
    call: Call,
    nth: Range<usize>,
    fault: Fault,
}

impl FaultRule {
    /// The `nth` call of this kind, counted from 0.
    pub(super) fn once(call: Call, nth: usize, fault: Fault) -> Self {
        Self::during(call, nth..nth + 1, fault)
    }

    /// The calls of this kind whose numbers lie in the range.
    pub(super) fn during(call: Call, nth: Range<usize>, fault: Fault) -> Self {
        Self { call, nth, fault }
    }
}

/// A call that was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct Made {
    pub(super) call: Call,
    /// How many bytes it was asked for; of a mapping its length.
    pub(super) count: usize,
    pub(super) offset: u64,
    /// What `splice_out` was told of more bytes.
    pub(super) more: bool,
}

/// The kernel of the tests.
#[derive(Debug)]
pub(super) struct Faulty {
    rules: Vec<FaultRule>,
    at_most: usize,
    pipe_bytes: Option<usize>,
    file: Option<File>,
    made: RefCell<Vec<Made>>,
}

impl Faulty {
    pub(super) fn new(rules: Vec<FaultRule>) -> Self {
        Self {
            rules,
            at_most: usize::MAX,
            pipe_bytes: None,
            file: None,
            made: RefCell::default(),
        }
    }

    /// Every call moves at most so many bytes, as after a signal or with a full buffer.
    pub(super) fn at_most(mut self, bytes: usize) -> Self {
        self.at_most = bytes;
        self
    }

    /// Every pipe has so many bytes and cannot be widened, as when the user's pipe pages are used up.
    pub(super) fn narrow_pipes(mut self, bytes: usize) -> Self {
        self.pipe_bytes = Some(bytes);
        self
    }

    /// The file that [`Fault::Cuts`] cuts.
    pub(super) fn cutting(mut self, file: &File) -> Self {
        self.file = file.try_clone().ok();
        self
    }

    /// The calls of this kind that were made, failed ones included.
    pub(super) fn made(&self, call: Call) -> Vec<Made> {
        let made = self.made.borrow();
        made.iter()
            .filter(|made| made.call == call)
            .copied()
            .collect()
    }

    /// Notes a call; answers what it does instead of its work.
    fn fault(&self, made: Made) -> Option<Fault> {
        let nth = self.made(made.call).len();
        self.made.borrow_mut().push(made);
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.call == made.call && rule.nth.contains(&nth));
        match rule?.fault {
            Fault::Cuts(len) => {
                let file = self.file.as_ref().expect("a file to cut");
                file.set_len(len).expect("cut");
                None
            }
            fault => Some(fault),
        }
    }

    /// A call that moves bytes.
    fn moves(&self, made: Made, work: impl FnOnce(usize) -> Result<usize>) -> Result<usize> {
        match self.fault(made) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Ok(0),
            None => work(made.count.min(self.at_most)),
        }
    }

    /// A call that does something else.
    fn does<T>(&self, made: Made, work: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.fault(made) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Err(Errno::IO),
            None => work(),
        }
    }
}

fn made(call: Call, count: usize, offset: u64) -> Made {
    let more = false;
    Made {
        call,
        count,
        offset,
        more,
    }
}

impl Kernel for Faulty {
    fn sendfile(
        &self,
        sink: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> Result<usize> {
        self.moves(made(Call::Sendfile, count, offset), |count| {
            Linux.sendfile(sink, source, offset, count)
        })
    }

    fn pipe(&self) -> Result<(OwnedFd, OwnedFd)> {
        let (reader, writer) = self.does(made(Call::Pipe, 0, 0), || Linux.pipe())?;
        if let Some(bytes) = self.pipe_bytes {
            rustix::pipe::fcntl_setpipe_size(&writer, bytes)?;
        }
        Ok((reader, writer))
    }

    fn resize_pipe(&self, pipe: BorrowedFd<'_>, bytes: usize) -> Result<()> {
        self.does(made(Call::ResizePipe, bytes, 0), || match self.pipe_bytes {
            Some(_) => Err(Errno::PERM),
            None => Linux.resize_pipe(pipe, bytes),
        })
    }

    fn splice_in(
        &self,
        source: BorrowedFd<'_>,
        offset: u64,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        self.moves(made(Call::SpliceIn, count, offset), |count| {
            Linux.splice_in(source, offset, pipe, count)
        })
    }

    fn splice_out(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        more: bool,
    ) -> Result<usize> {
        let call = Made {
            more,
            ..made(Call::SpliceOut, count, 0)
        };
        self.moves(call, |count| Linux.splice_out(pipe, sink, count, more))
    }

    fn size(&self, source: BorrowedFd<'_>) -> Result<u64> {
        match self.fault(made(Call::Size, 0, 0)) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Ok(0),
            None => Linux.size(source),
        }
    }

    fn map(&self, source: BorrowedFd<'_>, offset: u64, len: usize) -> Result<UnplacedMapping> {
        self.does(made(Call::Map, len, offset), || {
            Linux.map(source, offset, len)
        })
    }

    fn send_mapped(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moves(made(Call::SendMapped, bytes.len(), 0), |count| {
            Linux.send_mapped(sink, bytes.first(count))
        })
    }

    fn read_at(&self, source: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.moves(made(Call::ReadAt, buffer.len(), offset), |count| {
            Linux.read_at(source, &mut buffer[..count], offset)
        })
    }

    fn send(&self, sink: BorrowedFd<'_>, bytes: &[u8]) -> Result<usize> {
        self.moves(made(Call::Send, bytes.len(), 0), |count| {
            Linux.send(sink, &bytes[..count])
        })
    }

    fn send_memory(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moves(made(Call::SendMemory, bytes.len(), 0), |count| {
            Linux.send_memory(sink, bytes.first(count))
        })
    }

    fn allows_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<bool> {
        self.does(made(Call::AllowsZerocopy, 0, 0), || {
            Linux.allows_zerocopy(sink)
        })
    }

    fn allow_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<()> {
        self.does(made(Call::AllowZerocopy, 0, 0), || {
            Linux.allow_zerocopy(sink)
        })
    }

    fn send_zerocopy(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moves(made(Call::SendZerocopy, bytes.len(), 0), |_| {
            Linux.send_zerocopy(sink, bytes)
        })
    }

    fn read_error_queue(&self, sink: BorrowedFd<'_>) -> Result<Option<ErrorQueueEntry>> {
        self.does(made(Call::ReadErrorQueue, 0, 0), || {
            Linux.read_error_queue(sink)
        })
    }

    fn vmsplice(&self, pipe: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moves(made(Call::Vmsplice, bytes.len(), 0), |count| {
            Linux.vmsplice(pipe, bytes.first(count))
        })
    }

    fn acknowledged(&self, sink: BorrowedFd<'_>) -> Result<Acknowledged> {
        self.does(made(Call::Acknowledged, 0, 0), || Linux.acknowledged(sink))
    }
}
