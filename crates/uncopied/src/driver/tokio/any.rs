//! Moving bytes between any two ends that tokio waits for, or that are files.

use std::future::poll_fn;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::task::{Context, Poll, ready};

use rustix::fs::{SeekFrom, seek};
use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream};

use super::{MAX_STEP_BYTES, prefetch_if_uncached};
use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::sys::Linux;
use crate::transfer::{AnyTransfer, Progress};

/// A source that tokio waits for. A step that finds it without bytes must clear the readiness that
/// tokio has recorded for it, and only tokio's own types can do that.
pub trait PolledSource: Sync {
    /// Returns the descriptor.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Waits until bytes can be read.
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Calls `step` unless there are known to be no bytes. If `step` fails with
    /// [`io::ErrorKind::WouldBlock`], that is known from then on.
    fn if_ready(&self, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// A sink that tokio waits for. A step that finds it full must clear the readiness that tokio has
/// recorded for it, and only tokio's own types can do that.
pub trait PolledSink: Sync {
    /// Returns the descriptor.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Waits until bytes can be written.
    fn poll_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Calls `step` unless the sink is known to be full. If `step` fails with
    /// [`io::ErrorKind::WouldBlock`], it is known to be from then on.
    fn if_ready(&self, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

macro_rules! polled {
    ($($trait:ident for $type:ty: $poll:ident $(, $interest:expr)?;)*) => {
        $(
            impl $trait for $type {
                fn descriptor(&self) -> BorrowedFd<'_> {
                    self.as_fd()
                }

                fn poll_ready(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                    self.$poll(context)
                }

                fn if_ready(&self, step: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
                    self.try_io($($interest,)? step)
                }
            }
        )*
    };
}

polled! {
    PolledSource for TcpStream: poll_read_ready, Interest::READABLE;
    PolledSource for UnixStream: poll_read_ready, Interest::READABLE;
    PolledSource for pipe::Receiver: poll_read_ready;
    PolledSink for TcpStream: poll_write_ready, Interest::WRITABLE;
    PolledSink for UnixStream: poll_write_ready, Interest::WRITABLE;
    PolledSink for pipe::Sender: poll_write_ready;
}

/// The source of a transfer.
#[derive(Clone, Copy)]
pub(crate) enum AnySource<'a> {
    /// A socket or a pipe of tokio.
    Polled(&'a dyn PolledSource),
    /// A regular file or a block device, which is always ready.
    File(BorrowedFd<'a>),
}

/// The sink of a transfer.
#[derive(Clone, Copy)]
pub(crate) enum AnySink<'a> {
    /// A socket or a pipe of tokio.
    Polled(&'a dyn PolledSink),
    /// A regular file, a block device or `/dev/null`, which is always ready.
    File(BorrowedFd<'a>),
}

impl<'a> AnySource<'a> {
    pub(crate) fn descriptor(self) -> BorrowedFd<'a> {
        match self {
            Self::Polled(source) => source.descriptor(),
            Self::File(file) => file,
        }
    }

    fn poll_ready(self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Polled(source) => source.poll_ready(context),
            Self::File(_) => Poll::Ready(Ok(())),
        }
    }

    /// Makes a step, and records in tokio if it finds the source without bytes.
    fn step(self, step: &mut dyn FnMut() -> io::Result<()>) {
        // The step itself keeps its result.
        let _ = match self {
            Self::Polled(source) => source.if_ready(step),
            Self::File(_) => step(),
        };
    }
}

impl<'a> AnySink<'a> {
    pub(crate) fn descriptor(self) -> BorrowedFd<'a> {
        match self {
            Self::Polled(sink) => sink.descriptor(),
            Self::File(file) => file,
        }
    }

    fn poll_ready(self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Polled(sink) => sink.poll_ready(context),
            Self::File(_) => Poll::Ready(Ok(())),
        }
    }

    /// Makes a step, and records in tokio if it finds the sink full.
    fn step(self, step: &mut dyn FnMut() -> io::Result<()>) {
        // The step itself keeps its result.
        let _ = match self {
            Self::Polled(sink) => sink.if_ready(step),
            Self::File(_) => step(),
        };
    }
}

/// Runs `transfer` to its end, waiting while it is blocked, and yielding to other tasks after every
/// 2 MiB. Bytes of a file that are not in the page cache are first read on tokio's blocking pool.
///
/// # Cancellation
///
/// If the future is dropped, `transfer` keeps its position, and the bytes that it has taken from
/// the source.
pub(crate) async fn run_any(
    transfer: &mut AnyTransfer,
    source: AnySource<'_>,
    sink: AnySink<'_>,
) -> Result<(), Error> {
    let mut since_yield = 0;
    loop {
        if let AnySource::File(file) = source
            && let Some(offset) = source_offset(transfer, file)
        {
            prefetch_if_uncached(file, offset, MAX_STEP_BYTES).await;
        }
        match poll_fn(|context| poll_step(transfer, context, source, sink)).await? {
            Progress::Done => return Ok(()),
            Progress::Moved(bytes @ 1..) => since_yield += bytes,
            // A fallback, or a file that is not ready, for which tokio cannot wait.
            Progress::Moved(0) | Progress::Blocked(_) => since_yield = MAX_STEP_BYTES,
        }
        if since_yield >= MAX_STEP_BYTES {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Makes a step as soon as both ends are ready. The result is blocked only if the end is a file.
fn poll_step(
    transfer: &mut AnyTransfer,
    context: &mut Context<'_>,
    source: AnySource<'_>,
    sink: AnySink<'_>,
) -> Poll<Result<Progress, Error>> {
    loop {
        let needs_source = needs_source(transfer);
        if needs_source {
            ready!(source.poll_ready(context))
                .map_err(|cause| driver_error(transfer, Side::Source, cause))?;
        }
        // As long as the sink is full, nothing is taken from the source.
        ready!(sink.poll_ready(context))
            .map_err(|cause| driver_error(transfer, Side::Sink, cause))?;
        let mut result = None;
        let mut step = || {
            sink.step(&mut || {
                let step = step(transfer, source.descriptor(), sink.descriptor());
                unless(is_blocked_on(result.insert(step), Side::Sink))
            });
            let is_empty = result
                .as_ref()
                .is_some_and(|step| is_blocked_on(step, Side::Source));
            unless(is_empty)
        };
        match needs_source {
            true => source.step(&mut step),
            // The result is in `result`.
            false => drop(step()),
        }
        let waits = match result {
            // Another task has found the end not ready.
            None => true,
            Some(Ok(Progress::Blocked(Side::Source))) => matches!(source, AnySource::Polled(_)),
            Some(Ok(Progress::Blocked(Side::Sink))) => matches!(sink, AnySink::Polled(_)),
            Some(_) => false,
        };
        if let (false, Some(step)) = (waits, result) {
            return Poll::Ready(step);
        }
    }
}

fn is_blocked_on(step: &Result<Progress, Error>, side: Side) -> bool {
    matches!(step, Ok(Progress::Blocked(blocked)) if *blocked == side)
}

/// Returns what tells tokio whether an end is ready.
fn unless(is_blocked: bool) -> io::Result<()> {
    match is_blocked {
        true => Err(io::ErrorKind::WouldBlock.into()),
        false => Ok(()),
    }
}

/// Tries once to move bytes, without waiting.
fn step(
    transfer: &mut AnyTransfer,
    source: BorrowedFd<'_>,
    sink: BorrowedFd<'_>,
) -> Result<Progress, Error> {
    match transfer {
        AnyTransfer::Send(transfer) => transfer.step(source, sink),
        AnyTransfer::Receive(transfer) => transfer.step(source, sink),
        AnyTransfer::Relay(transfer) => transfer.step(source, sink),
        AnyTransfer::Descriptors(transfer) => transfer.step(&Linux, source, sink, false),
    }
}

/// Whether the next step takes bytes from the source.
fn needs_source(transfer: &AnyTransfer) -> bool {
    match transfer {
        AnyTransfer::Send(_) => true,
        AnyTransfer::Receive(transfer) => transfer.held_bytes() == 0,
        AnyTransfer::Relay(transfer) => transfer.held_bytes() == 0,
        AnyTransfer::Descriptors(transfer) => transfer.held_bytes() == 0,
    }
}

/// Returns the offset of the next byte of a source that is a file.
fn source_offset(transfer: &AnyTransfer, source: BorrowedFd<'_>) -> Option<u64> {
    match transfer {
        AnyTransfer::Send(transfer) => Some(transfer.offset()),
        _ => seek(source, SeekFrom::Current(0)).ok(),
    }
}

/// Returns the error for a side that tokio cannot wait for.
fn driver_error(transfer: &AnyTransfer, side: Side, cause: io::Error) -> Error {
    let call = "epoll_wait";
    let kind = match side {
        Side::Source => ErrorKind::Source,
        Side::Sink => ErrorKind::Sink,
    };
    match transfer {
        AnyTransfer::Send(transfer) => transfer.driver_error(kind, call, cause).at_side(side),
        AnyTransfer::Receive(transfer) => transfer.driver_error(kind, call, cause).at_side(side),
        AnyTransfer::Relay(transfer) => transfer.driver_error(side, call, cause),
        AnyTransfer::Descriptors(transfer) => transfer.driver_error(side, call, cause),
    }
}
