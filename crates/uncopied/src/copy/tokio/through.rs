//! Copying on tokio through the `poll_read` or the `poll_write` of an end that is no descriptor,
//! from memory, and between descriptors that may make the event loop wait.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Buf;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::spawn_blocking;

use super::ends::{Sink, Source};
use crate::copy::through::{BUFFER_BYTES, Count, give_back};
use crate::driver::tokio::any::{PolledSink, PolledSource};
use crate::endpoint;
use crate::error::Error;
use crate::report::Report;
use crate::sys::{Kernel, Linux};

/// Copies until the end of the source.
pub(super) async fn copy<'a>(source: Source<'a>, sink: Sink<'a>) -> Result<Report, Error> {
    let mut copying = Copying {
        count: Count::new(source.descriptor(), sink.descriptor()),
        source,
        sink,
        buffer: Vec::new(),
        is_unflushed: false,
    };
    copying.run().await?;
    Ok(copying.count.report)
}

struct Copying<'a> {
    count: Count,
    source: Source<'a>,
    sink: Sink<'a>,
    buffer: Vec<u8>,
    /// Whether bytes were written to a writer that were not flushed.
    is_unflushed: bool,
}

impl Copying<'_> {
    async fn run(&mut self) -> Result<(), Error> {
        if !matches!(self.sink, Sink::File(_)) && self.write_memory().await? {
            return self.flush().await;
        }
        loop {
            self.buffer.resize(BUFFER_BYTES, 0);
            let read = self.fill().await?;
            if read == 0 {
                return self.flush().await;
            }
            let mut start = 0;
            while start < read {
                let written = self.write(start, read).await;
                match self.count.written(written) {
                    Ok(written) => start += written,
                    Err(error) => {
                        if let Some(source) = self.source.descriptor() {
                            give_back(source, read - start);
                        }
                        return Err(error);
                    }
                }
            }
        }
    }

    /// If the source is memory, writes it from where it is. Returns whether it is.
    async fn write_memory(&mut self) -> Result<bool, Error> {
        let Source::Memory(memory) = &mut self.source else {
            return Ok(false);
        };
        while memory.has_remaining() {
            let sink = &mut self.sink;
            let chunk = memory.chunk();
            let written = poll_fn(|context| sink.poll_write(context, chunk)).await;
            memory.advance(self.count.written(written)?);
        }
        Ok(true)
    }

    /// Reads bytes into the buffer. Returns their number.
    async fn fill(&mut self) -> Result<usize, Error> {
        if let Source::File(file) = self.source {
            if self.is_unflushed && !endpoint::is_always_ready(file) {
                // The next read may wait for somebody who waits for what was written.
                self.flush().await?;
            }
            let mut buffer = std::mem::take(&mut self.buffer);
            let read = on_blocking_pool(file, move |file| {
                let read = retry_on_intr(|| Linux.read(file, &mut buffer));
                (buffer, read)
            });
            let (buffer, read) = read.await.map_err(|cause| self.count.read_error(cause))?;
            self.buffer = buffer;
            return read.map_err(|cause| self.count.read_error(cause));
        }
        poll_fn(|context| self.poll_fill(context)).await
    }

    fn poll_fill(&mut self, context: &mut Context<'_>) -> Poll<Result<usize, Error>> {
        match self.source.poll_read(context, &mut self.buffer) {
            Poll::Ready(read) => Poll::Ready(read.map_err(|cause| self.count.read_error(cause))),
            // The source may wait for what the writer has not passed on.
            Poll::Pending if self.is_unflushed => match self.poll_flush(context) {
                Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
                _ => Poll::Pending,
            },
            Poll::Pending => Poll::Pending,
        }
    }

    /// Writes bytes of the buffer, from the index `start` up to `end`. Returns their number.
    async fn write(&mut self, start: usize, end: usize) -> io::Result<usize> {
        self.is_unflushed = true;
        if let Sink::File(file) = self.sink {
            let buffer = std::mem::take(&mut self.buffer);
            let written = on_blocking_pool(file, move |file| {
                let written = retry_on_intr(|| Linux.write(file, &buffer[start..end], None));
                (buffer, written)
            });
            let (buffer, written) = written.await?;
            self.buffer = buffer;
            return written;
        }
        let (sink, bytes) = (&mut self.sink, &self.buffer[start..end]);
        poll_fn(|context| sink.poll_write(context, bytes)).await
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

    /// Reads bytes. A file is not to be read here, but on the blocking pool.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        match self {
            Self::Polled(source) => poll_read(*source, context, buffer),
            Self::File(file) => Poll::Ready(retry_on_intr(|| Linux.read(*file, buffer))),
            Self::Memory(memory) => {
                let bytes = memory.remaining().min(buffer.len());
                memory.copy_to_slice(&mut buffer[..bytes]);
                Poll::Ready(Ok(bytes))
            }
            Self::Reader(reader) => {
                let mut buffer = ReadBuf::new(buffer);
                ready!(Pin::new(reader).poll_read(context, &mut buffer))?;
                Poll::Ready(Ok(buffer.filled().len()))
            }
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

    /// Writes bytes. A file is not to be written to here, but on the blocking pool.
    fn poll_write(&mut self, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self {
            Self::Polled(sink) => poll_write(*sink, context, bytes),
            Self::File(file) => Poll::Ready(retry_on_intr(|| Linux.write(*file, bytes, None))),
            Self::Writer(writer) => Pin::new(writer).poll_write(context, bytes),
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
