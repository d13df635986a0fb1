//! Copying on tokio through the `poll_read` or the `poll_write` of an end that is no descriptor,
//! from memory, and between descriptors that may make the event loop wait.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use rustix::io::Errno;
use tokio::io::{AsyncWrite, ReadBuf};
use tokio::task::spawn_blocking;

use super::ends::{Sink, Source};
use crate::copy::through::{BUFFER_BYTES, Count, give_back};
use crate::driver::tokio::any::{PolledSink, PolledSource};
use crate::endpoint;
use crate::error::Error;
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// Copies until the end of the source.
pub(super) async fn copy(source: Source<'_>, sink: Sink<'_>) -> Result<Report, Error> {
    let mut copying = Copying {
        count: Count::new(source.descriptor(), sink.descriptor()),
        sink,
        buffer: Vec::new(),
        is_unflushed: false,
    };
    match source {
        Source::Memory(memory) => copying.copy_memory(memory).await?,
        Source::File(file) => copying.copy_file(file).await?,
        Source::Polled(source) => {
            let poll =
                |context: &mut Context<'_>, buffer: &mut [u8]| poll_read(source, context, buffer);
            copying.copy_polled(poll).await?;
        }
        Source::Reader(reader) => {
            let poll = |context: &mut Context<'_>, buffer: &mut [u8]| {
                let mut buffer = ReadBuf::new(buffer);
                let read = Pin::new(&mut *reader).poll_read(context, &mut buffer);
                read.map_ok(|()| buffer.filled().len())
            };
            copying.copy_polled(poll).await?;
        }
    }
    copying.flush().await?;
    Ok(copying.count.report)
}

struct Copying<'a> {
    count: Count,
    sink: Sink<'a>,
    buffer: Vec<u8>,
    /// Whether bytes were written that were not flushed.
    is_unflushed: bool,
}

/// An error of the sink, and how many bytes of the buffer it has not accepted.
struct Unwritten {
    bytes: usize,
    error: Error,
}

impl Copying<'_> {
    async fn copy_memory(&mut self, memory: &mut (dyn Buf + Send)) -> Result<(), Error> {
        while memory.has_remaining() {
            let chunk = memory.chunk();
            let written = write(&mut self.sink, chunk).await;
            let written = self.count.written(written, chunk.len())?;
            memory.advance(written);
        }
        Ok(())
    }

    /// Copies from a file, which is read on the blocking pool.
    async fn copy_file(&mut self, file: BorrowedFd<'_>) -> Result<(), Error> {
        loop {
            if self.is_unflushed && !endpoint::is_always_ready(file) {
                // The next read may wait for somebody who waits for what was written.
                self.flush().await?;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = on_blocking_pool(file, move |file| {
                buffer.resize(BUFFER_BYTES, 0);
                let read = retry_on_intr(|| Linux.read(file, &mut buffer));
                (buffer, read)
            });
            let (buffer, read) = read.await.map_err(|cause| self.count.read_error(cause))?;
            self.buffer = buffer;
            match read {
                Ok(0) => return Ok(()),
                Ok(read) => {
                    if let Err(Unwritten { bytes, error }) = self.write_all(read).await {
                        give_back(file, bytes);
                        return Err(error);
                    }
                }
                Err(cause) => return Err(self.count.read_error(cause)),
            }
        }
    }

    /// Copies what `poll_read` puts into the buffer.
    async fn copy_polled(
        &mut self,
        mut poll_read: impl FnMut(&mut Context<'_>, &mut [u8]) -> Poll<io::Result<usize>>,
    ) -> Result<(), Error> {
        self.buffer.resize(BUFFER_BYTES, 0);
        loop {
            let read = poll_fn(|context| match poll_read(context, &mut self.buffer) {
                Poll::Ready(read) => {
                    Poll::Ready(read.map_err(|cause| self.count.read_error(cause)))
                }
                // The source may wait for what the writer has not passed on.
                Poll::Pending if self.is_unflushed => match self.poll_flush(context) {
                    Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                    _ => Poll::Pending,
                },
                Poll::Pending => Poll::Pending,
            });
            match read.await? {
                0 => return Ok(()),
                read => self.write_all(read).await.map_err(|it| it.error)?,
            }
        }
    }

    /// Writes the first `read` bytes of the buffer.
    async fn write_all(&mut self, read: usize) -> Result<(), Unwritten> {
        self.is_unflushed = true;
        let mut rest = &self.buffer[..read];
        while !rest.is_empty() {
            let written = write(&mut self.sink, rest).await;
            let unwritten = |error| Unwritten {
                bytes: rest.len(),
                error,
            };
            let written = self.count.written(written, rest.len()).map_err(unwritten)?;
            rest = &rest[written..];
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), Error> {
        poll_fn(|context| self.poll_flush(context)).await
    }

    fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if let Sink::Writer(writer) = &mut self.sink {
            ready!(Pin::new(writer).poll_flush(context))
                .map_err(|cause| self.count.write_error(cause))?;
        }
        self.is_unflushed = false;
        Poll::Ready(Ok(()))
    }
}

impl Source<'_> {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Polled(source) => Some(source.descriptor()),
            Self::File(file) => Some(*file),
            Self::Memory(_) | Self::Reader(_) => None,
        }
    }
}

impl Sink<'_> {
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Polled(sink) => Some(sink.descriptor()),
            Self::File(file) => Some(*file),
            Self::Writer(_) => None,
        }
    }
}

/// Writes some of these bytes, and returns their number. A file is written to on the blocking pool,
/// with a copy of the bytes, which the thread owns if the future is dropped.
async fn write(sink: &mut Sink<'_>, bytes: &[u8]) -> io::Result<usize> {
    match sink {
        Sink::Polled(sink) => poll_fn(|context| poll_write(*sink, context, bytes)).await,
        Sink::Writer(writer) => {
            poll_fn(|context| Pin::new(&mut *writer).poll_write(context, bytes)).await
        }
        Sink::File(file) => {
            let bytes = bytes[..bytes.len().min(BUFFER_BYTES)].to_vec();
            let write =
                move |file: BorrowedFd<'_>| retry_on_intr(|| Linux.write(file, &bytes, None));
            on_blocking_pool(*file, write).await?
        }
    }
}

fn poll_read(
    source: &dyn PolledSource,
    context: &mut Context<'_>,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(source.poll_ready(context))?;
        let mut result = None;
        let is_ready = source.if_ready(&mut || {
            let read = retry_on_intr(|| Linux.read(source.descriptor(), buffer));
            keep_unless_blocked(&mut result, read)
        });
        match (result, is_ready) {
            (Some(read), _) => return Poll::Ready(read),
            (None, Err(cause)) if cause.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(cause));
            }
            (None, _) => {}
        }
    }
}

fn poll_write(
    sink: &dyn PolledSink,
    context: &mut Context<'_>,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    loop {
        ready!(sink.poll_ready(context))?;
        let mut result = None;
        let is_ready = sink.if_ready(&mut || {
            let written = retry_on_intr(|| Linux.write(sink.descriptor(), bytes, None));
            keep_unless_blocked(&mut result, written)
        });
        match (result, is_ready) {
            (Some(written), _) => return Poll::Ready(written),
            (None, Err(cause)) if cause.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(cause));
            }
            (None, _) => {}
        }
    }
}

/// Keeps the result of a call, unless the call would have had to wait, and returns what tells tokio
/// which of the two it is.
fn keep_unless_blocked(
    kept: &mut Option<io::Result<usize>>,
    result: io::Result<usize>,
) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        result => {
            *kept = Some(result);
            Ok(())
        }
    }
}

/// Repeats `call` as long as a signal interrupts it.
fn retry_on_intr(mut call: impl FnMut() -> rustix::io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

/// Runs `work` with a duplicate of `file` on a thread that may wait.
async fn on_blocking_pool<T: Send + 'static>(
    file: BorrowedFd<'_>,
    work: impl FnOnce(BorrowedFd<'_>) -> T + Send + 'static,
) -> io::Result<T> {
    let duplicate = file.try_clone_to_owned()?;
    Ok(spawn_blocking(move || work(duplicate.as_fd())).await?)
}
