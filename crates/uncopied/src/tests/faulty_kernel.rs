//! A [`Kernel`] that makes the real system calls, except where a test injects a fault.

use std::cell::RefCell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::{Errno, Result};

use crate::sys::{
    Acknowledged, ErrorQueueEntry, Kernel, Linux, MapReceived, Mapped, MappedWindow, PipeWriter,
    SocketWindow,
};

/// The kinds of calls that [`Kernel`] makes.
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
    SocketCookie,
    LockSocket,
    AllowsZerocopy,
    AllowZerocopy,
    SendZerocopy,
    ReadErrorQueue,
    Vmsplice,
    QueuedBytes,
    Acknowledged,
    Recv,
    Discard,
    Peek,
    SpliceReceive,
    SpliceToFile,
    ReadHere,
    CopyFileRange,
    SendfileHere,
    Splice,
    Write,
    Reserve,
    Reopen,
    IsReadable,
    IsWritable,
    HasUpperProtocol,
    MapWindow,
    MapReceive,
}

impl Call {
    /// Returns the name of the system call that this call of [`Kernel`] makes.
    pub(super) fn system_call(self) -> &'static str {
        match self {
            Self::Sendfile | Self::SendfileHere => "sendfile",
            Self::CopyFileRange => "copy_file_range",
            Self::Pipe => "pipe2",
            Self::ResizePipe | Self::LockSocket => "fcntl",
            Self::SpliceIn
            | Self::SpliceOut
            | Self::SpliceReceive
            | Self::SpliceToFile
            | Self::Splice => "splice",
            Self::Size => "fstat",
            Self::Map | Self::MapWindow => "mmap",
            Self::SendMapped | Self::Send | Self::SendMemory | Self::SendZerocopy => "send",
            Self::ReadAt => "pread",
            Self::AllowsZerocopy
            | Self::SocketCookie
            | Self::HasUpperProtocol
            | Self::MapReceive => "getsockopt",
            Self::AllowZerocopy => "setsockopt",
            Self::ReadErrorQueue => "recvmsg",
            Self::Vmsplice => "vmsplice",
            Self::QueuedBytes | Self::Acknowledged => "ioctl",
            Self::Recv | Self::Discard | Self::Peek => "recv",
            Self::ReadHere => "read",
            Self::Write => "pwrite",
            Self::Reserve => "fallocate",
            Self::Reopen => "open",
            Self::IsReadable | Self::IsWritable => "poll",
        }
    }
}

/// What goes wrong with a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The call fails and moves nothing.
    Fails(Errno),
    /// The call does nothing and returns 0, which means that no bytes were moved or that the file
    /// size is 0.
    ReturnsZero,
    /// The file is truncated to this many bytes just before the call, which then proceeds.
    TruncatesFile(u64),
}

/// A fault, and the calls that it affects.
#[derive(Clone, Debug)]
pub(super) struct FaultRule {
    call: Call,
    nth: Range<usize>,
    fault: Fault,
}

impl FaultRule {
    /// Creates a rule by which the fault affects the `nth` call of this kind, counted from 0.
    pub(super) fn once(call: Call, nth: usize, fault: Fault) -> Self {
        Self::during(call, nth..nth + 1, fault)
    }

    /// Creates a rule by which the fault affects the calls of this kind whose numbers, counted from
    /// 0, are in `nth`.
    pub(super) fn during(call: Call, nth: Range<usize>, fault: Fault) -> Self {
        Self { call, nth, fault }
    }
}

/// A call that was made.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallRecord {
    pub(super) call: Call,
    /// The number of bytes that the call asked for, or the length of the mapping.
    pub(super) count: usize,
    pub(super) offset: u64,
    /// The argument `more` of `splice_out`.
    pub(super) more: bool,
}

impl CallRecord {
    fn new(call: Call, count: usize, offset: u64) -> Self {
        Self {
            call,
            count,
            offset,
            more: false,
        }
    }
}

/// The real kernel, except for the calls that a [`FaultRule`] applies to. Records every call.
pub(super) struct FaultyKernel {
    rules: Vec<FaultRule>,
    max_bytes_per_call: usize,
    pipe_capacity: Option<usize>,
    file: Option<File>,
    calls: RefCell<Vec<CallRecord>>,
    before: Option<(Call, Box<dyn Fn()>)>,
}

impl FaultyKernel {
    pub(super) fn new(rules: Vec<FaultRule>) -> Self {
        Self {
            rules,
            max_bytes_per_call: usize::MAX,
            pipe_capacity: None,
            file: None,
            calls: RefCell::default(),
            before: None,
        }
    }

    /// Runs `action` before each call of this kind, for example to let another thread run first.
    pub(super) fn before(mut self, call: Call, action: impl Fn() + 'static) -> Self {
        self.before = Some((call, Box::new(action)));
        self
    }

    /// Limits how many bytes one call moves, as a signal or a full buffer does.
    pub(super) fn max_bytes_per_call(mut self, bytes: usize) -> Self {
        self.max_bytes_per_call = bytes;
        self
    }

    /// Gives every pipe this capacity, and makes resizing fail, as it does once the user's limit on
    /// pipe pages is reached.
    pub(super) fn pipe_capacity(mut self, bytes: usize) -> Self {
        self.pipe_capacity = Some(bytes);
        self
    }

    /// Sets the file that [`Fault::TruncatesFile`] truncates.
    pub(super) fn truncating(mut self, file: &File) -> Self {
        self.file = file.try_clone().ok();
        self
    }

    /// Returns the calls of this kind that were made, including those that failed.
    pub(super) fn calls(&self, call: Call) -> Vec<CallRecord> {
        let calls = self.calls.borrow();
        calls
            .iter()
            .filter(|made| made.call == call)
            .copied()
            .collect()
    }

    /// Records a call, and returns the fault that replaces it, if there is one. If the rule says
    /// that the file is truncated before the call, truncates it and returns `None`.
    fn record(&self, made: CallRecord) -> Option<Fault> {
        let nth = self.calls(made.call).len();
        self.calls.borrow_mut().push(made);
        if let Some((call, action)) = &self.before
            && *call == made.call
        {
            action();
        }
        let rule = self
            .rules
            .iter()
            .find(|rule| rule.call == made.call && rule.nth.contains(&nth));
        match rule?.fault {
            Fault::TruncatesFile(len) => {
                let file = self.file.as_ref().expect("a file to truncate");
                file.set_len(len).expect("truncated");
                None
            }
            fault => Some(fault),
        }
    }

    /// Makes a call that moves bytes. The argument of `call` is the maximum number of bytes to
    /// move.
    fn moving(&self, made: CallRecord, call: impl FnOnce(usize) -> Result<usize>) -> Result<usize> {
        match self.record(made) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Ok(0),
            None => call(made.count.min(self.max_bytes_per_call)),
        }
    }

    /// Makes a call that moves no bytes.
    fn other<T>(&self, made: CallRecord, call: impl FnOnce() -> Result<T>) -> Result<T> {
        match self.record(made) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Err(Errno::IO),
            None => call(),
        }
    }
}

impl Kernel for FaultyKernel {
    fn sendfile(
        &self,
        sink: BorrowedFd<'_>,
        source: BorrowedFd<'_>,
        offset: u64,
        count: usize,
    ) -> Result<usize> {
        self.moving(CallRecord::new(Call::Sendfile, count, offset), |count| {
            Linux.sendfile(sink, source, offset, count)
        })
    }

    fn pipe(&self) -> Result<(OwnedFd, PipeWriter)> {
        let (reader, writer) = self.other(CallRecord::new(Call::Pipe, 0, 0), || Linux.pipe())?;
        if let Some(bytes) = self.pipe_capacity {
            rustix::pipe::fcntl_setpipe_size(&writer, bytes)?;
        }
        Ok((reader, writer))
    }

    fn resize_pipe(&self, pipe: BorrowedFd<'_>, bytes: usize) -> Result<()> {
        self.other(CallRecord::new(Call::ResizePipe, bytes, 0), || {
            match self.pipe_capacity {
                Some(_) => Err(Errno::PERM),
                None => Linux.resize_pipe(pipe, bytes),
            }
        })
    }

    fn splice_in(
        &self,
        source: BorrowedFd<'_>,
        offset: u64,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        self.moving(CallRecord::new(Call::SpliceIn, count, offset), |count| {
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
        let call = CallRecord {
            more,
            ..CallRecord::new(Call::SpliceOut, count, 0)
        };
        self.moving(call, |count| Linux.splice_out(pipe, sink, count, more))
    }

    fn file_size(&self, source: BorrowedFd<'_>) -> Result<u64> {
        match self.record(CallRecord::new(Call::Size, 0, 0)) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Ok(0),
            None => Linux.file_size(source),
        }
    }

    fn map_file(&self, source: BorrowedFd<'_>, offset: u64, len: usize) -> Result<MappedWindow> {
        self.other(CallRecord::new(Call::Map, len, offset), || {
            Linux.map_file(source, offset, len)
        })
    }

    fn send_mapped(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moving(CallRecord::new(Call::SendMapped, bytes.len(), 0), |count| {
            Linux.send_mapped(sink, bytes.first(count))
        })
    }

    fn read_at(&self, source: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> Result<usize> {
        self.moving(
            CallRecord::new(Call::ReadAt, buffer.len(), offset),
            |count| Linux.read_at(source, &mut buffer[..count], offset),
        )
    }

    fn send(&self, sink: BorrowedFd<'_>, bytes: &[u8], more: bool) -> Result<usize> {
        self.moving(CallRecord::new(Call::Send, bytes.len(), 0), |count| {
            Linux.send(sink, &bytes[..count], more)
        })
    }

    fn push(&self, sink: BorrowedFd<'_>) -> Result<()> {
        Linux.push(sink)
    }

    fn send_memory(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moving(CallRecord::new(Call::SendMemory, bytes.len(), 0), |count| {
            Linux.send_memory(sink, bytes.first(count))
        })
    }

    fn socket_cookie(&self, sink: BorrowedFd<'_>) -> Result<u64> {
        self.other(CallRecord::new(Call::SocketCookie, 0, 0), || {
            Linux.socket_cookie(sink)
        })
    }

    fn lock_socket(&self, sink: BorrowedFd<'_>) -> Result<()> {
        self.other(CallRecord::new(Call::LockSocket, 0, 0), || {
            Linux.lock_socket(sink)
        })
    }

    fn allows_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<bool> {
        self.other(CallRecord::new(Call::AllowsZerocopy, 0, 0), || {
            Linux.allows_zerocopy(sink)
        })
    }

    fn allow_zerocopy(&self, sink: BorrowedFd<'_>) -> Result<()> {
        self.other(CallRecord::new(Call::AllowZerocopy, 0, 0), || {
            Linux.allow_zerocopy(sink)
        })
    }

    fn send_zerocopy(&self, sink: BorrowedFd<'_>, bytes: Mapped<'_>) -> Result<usize> {
        self.moving(CallRecord::new(Call::SendZerocopy, bytes.len(), 0), |_| {
            Linux.send_zerocopy(sink, bytes)
        })
    }

    fn read_error_queue(&self, sink: BorrowedFd<'_>) -> Result<Option<ErrorQueueEntry>> {
        self.other(CallRecord::new(Call::ReadErrorQueue, 0, 0), || {
            Linux.read_error_queue(sink)
        })
    }

    fn vmsplice(&self, pipe: &PipeWriter, bytes: Mapped<'_>) -> Result<usize> {
        self.moving(CallRecord::new(Call::Vmsplice, bytes.len(), 0), |count| {
            Linux.vmsplice(pipe, bytes.first(count))
        })
    }

    fn queued_bytes(&self, sink: BorrowedFd<'_>) -> Result<u64> {
        self.other(CallRecord::new(Call::QueuedBytes, 0, 0), || {
            Linux.queued_bytes(sink)
        })
    }

    fn acknowledged(&self, sink: BorrowedFd<'_>) -> Result<Acknowledged> {
        self.other(CallRecord::new(Call::Acknowledged, 0, 0), || {
            Linux.acknowledged(sink)
        })
    }

    fn is_readable(&self, source: BorrowedFd<'_>) -> bool {
        match self.record(CallRecord::new(Call::IsReadable, 0, 0)) {
            Some(Fault::Fails(_)) => true,
            Some(_) => false,
            None => Linux.is_readable(source),
        }
    }

    fn recv(&self, source: BorrowedFd<'_>, buffer: &mut [u8], may_wait: bool) -> Result<usize> {
        self.moving(CallRecord::new(Call::Recv, buffer.len(), 0), |count| {
            Linux.recv(source, &mut buffer[..count], may_wait)
        })
    }

    fn discard(&self, source: BorrowedFd<'_>, count: usize, may_wait: bool) -> Result<usize> {
        self.moving(CallRecord::new(Call::Discard, count, 0), |count| {
            Linux.discard(source, count, may_wait)
        })
    }

    fn peek(&self, source: BorrowedFd<'_>) -> Result<usize> {
        self.moving(CallRecord::new(Call::Peek, 1, 0), |_| Linux.peek(source))
    }

    fn splice_receive(
        &self,
        source: BorrowedFd<'_>,
        pipe: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        self.moving(CallRecord::new(Call::SpliceReceive, count, 0), |count| {
            Linux.splice_receive(source, pipe, count)
        })
    }

    fn splice_to_file(
        &self,
        pipe: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        offset: Option<u64>,
        count: usize,
    ) -> Result<usize> {
        let made = CallRecord::new(Call::SpliceToFile, count, offset.unwrap_or(0));
        self.moving(made, |count| {
            Linux.splice_to_file(pipe, sink, offset, count)
        })
    }

    fn read(&self, source: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<usize> {
        self.moving(CallRecord::new(Call::ReadHere, buffer.len(), 0), |count| {
            Linux.read(source, &mut buffer[..count])
        })
    }

    fn copy_file_range(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        self.moving(CallRecord::new(Call::CopyFileRange, count, 0), |count| {
            Linux.copy_file_range(source, sink, count)
        })
    }

    fn sendfile_here(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
    ) -> Result<usize> {
        self.moving(CallRecord::new(Call::SendfileHere, count, 0), |count| {
            Linux.sendfile_here(source, sink, count)
        })
    }

    fn splice(
        &self,
        source: BorrowedFd<'_>,
        sink: BorrowedFd<'_>,
        count: usize,
        may_wait: bool,
        to_file: bool,
    ) -> Result<usize> {
        self.moving(CallRecord::new(Call::Splice, count, 0), |count| {
            Linux.splice(source, sink, count, may_wait, to_file)
        })
    }

    fn write(&self, sink: BorrowedFd<'_>, bytes: &[u8], offset: Option<u64>) -> Result<usize> {
        let made = CallRecord::new(Call::Write, bytes.len(), offset.unwrap_or(0));
        self.moving(made, |count| Linux.write(sink, &bytes[..count], offset))
    }

    fn reopen_buffered(&self, sink: BorrowedFd<'_>) -> Result<OwnedFd> {
        self.other(CallRecord::new(Call::Reopen, 0, 0), || {
            Linux.reopen_buffered(sink)
        })
    }

    fn reserve(&self, sink: BorrowedFd<'_>, offset: u64, len: u64) -> Result<()> {
        let made = CallRecord::new(Call::Reserve, len as usize, offset);
        self.other(made, || Linux.reserve(sink, offset, len))
    }

    fn is_writable(&self, sink: BorrowedFd<'_>) -> bool {
        match self.record(CallRecord::new(Call::IsWritable, 0, 0)) {
            Some(Fault::Fails(_)) => true,
            Some(_) => false,
            None => Linux.is_writable(sink),
        }
    }

    fn has_upper_protocol(&self, source: BorrowedFd<'_>) -> Result<bool> {
        match self.record(CallRecord::new(Call::HasUpperProtocol, 0, 0)) {
            Some(Fault::Fails(errno)) => Err(errno),
            Some(_) => Ok(true),
            None => Linux.has_upper_protocol(source),
        }
    }

    fn is_at_mark(&self, source: BorrowedFd<'_>) -> Result<bool> {
        Linux.is_at_mark(source)
    }

    fn map_window(&self, source: BorrowedFd<'_>, len: usize) -> Result<SocketWindow> {
        self.other(CallRecord::new(Call::MapWindow, len, 0), || {
            Linux.map_window(source, len)
        })
    }

    fn map_receive(
        &self,
        source: BorrowedFd<'_>,
        window: &mut SocketWindow,
    ) -> Result<MapReceived> {
        self.other(CallRecord::new(Call::MapReceive, window.room(), 0), || {
            Linux.map_receive(source, window)
        })
    }
}
