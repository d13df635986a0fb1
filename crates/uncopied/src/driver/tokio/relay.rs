//! Moving bytes between two sockets of tokio.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::net::{TcpStream, UnixStream};

use super::{ReadSocket, Socket};
use crate::endpoint::Side;
use crate::error::Error;
use crate::transfer::{Progress, RelayTransfer};

/// A connected TCP or Unix socket of tokio, whose bytes go both ways.
///
/// Implemented for tokio's `TcpStream` and `UnixStream`, and for references, `Arc` and `Box` of
/// these. This trait is sealed for the same reason as [`Socket`].
pub trait DuplexSocket: Socket + ReadSocket + AsFd {
    /// Waits until the socket is readable.
    #[doc(hidden)]
    fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Waits until the socket is writable.
    #[doc(hidden)]
    fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

macro_rules! duplex_sockets {
    ($($socket:ty),*) => {
        $(
            impl DuplexSocket for $socket {
                fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                    self.poll_read_ready(context)
                }

                fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                    self.poll_write_ready(context)
                }
            }
        )*
    };
}

duplex_sockets!(TcpStream, UnixStream);

macro_rules! handles_of_duplex_sockets {
    ($([$($generics:tt)*] $handle:ty;)*) => {
        $(
            impl<$($generics)*> DuplexSocket for $handle {
                fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                    (**self).poll_readable(context)
                }

                fn poll_writable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
                    (**self).poll_writable(context)
                }
            }
        )*
    };
}

handles_of_duplex_sockets! {
    [T: DuplexSocket] &T;
    [T: DuplexSocket + Send] Arc<T>;
    [T: DuplexSocket] Box<T>;
}

/// Moves bytes until the transfer is done, or has to wait. After `max_bytes`, lets other tasks run
/// first.
pub(crate) fn poll(
    transfer: &mut RelayTransfer,
    context: &mut Context<'_>,
    source: &impl DuplexSocket,
    sink: &impl DuplexSocket,
    max_bytes: u64,
) -> Poll<Result<(), Error>> {
    let mut moved = 0;
    loop {
        let needs_source = transfer.held_bytes() == 0;
        if needs_source {
            ready!(source.poll_readable(context))
                .map_err(|cause| transfer.driver_error(Side::Source, "epoll_wait", cause))?;
        }
        // As long as the sink is full, nothing is taken from the source.
        ready!(sink.poll_writable(context))
            .map_err(|cause| transfer.driver_error(Side::Sink, "epoll_wait", cause))?;
        let step = match needs_source {
            true => step_if_readable(transfer, source, sink),
            false => step_if_writable(transfer, source, sink),
        };
        match step {
            // Another task has found the socket not ready: wait for it.
            None => {}
            Some(progress) => match progress? {
                Progress::Done => return Poll::Ready(Ok(())),
                Progress::Moved(bytes) => moved += bytes,
                Progress::Blocked(_) => {}
            },
        }
        if moved >= max_bytes {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
    }
}

/// Makes a step that takes bytes from the source. If the step finds it without bytes, tokio records
/// that. Returns `None` if a socket is known not to be ready.
fn step_if_readable(
    transfer: &mut RelayTransfer,
    source: &impl DuplexSocket,
    sink: &impl DuplexSocket,
) -> Option<Result<Progress, Error>> {
    let mut step = None;
    // The result is in `step`.
    let _ = source.if_readable(|| {
        step = step_if_writable(transfer, source, sink);
        unless(match step {
            Some(Ok(Progress::Blocked(side))) => side == Side::Source,
            Some(Ok(Progress::Moved(_))) => transfer.has_emptied_source(source),
            _ => false,
        })
    });
    step
}

/// Makes a step. If the step finds the sink full, tokio records that. Returns `None` if the sink is
/// known to be full.
fn step_if_writable(
    transfer: &mut RelayTransfer,
    source: &impl DuplexSocket,
    sink: &impl DuplexSocket,
) -> Option<Result<Progress, Error>> {
    let mut step = None;
    // The result is in `step`.
    let _ = sink.if_writable(|| {
        let progress = transfer.step(source, sink);
        let is_full = matches!(progress, Ok(Progress::Blocked(Side::Sink)));
        step = Some(progress);
        unless(is_full)
    });
    step
}

/// Returns what tells tokio whether a socket is ready.
fn unless(is_blocked: bool) -> io::Result<()> {
    match is_blocked {
        true => Err(io::ErrorKind::WouldBlock.into()),
        false => Ok(()),
    }
}
