//! The driver for tokio. It waits for tokio to report that the socket is writable, or readable.
//! Requires the feature `tokio`.

pub(crate) mod any;
pub(crate) mod relay;

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::unix::pipe;
use tokio::net::{TcpStream, UnixStream, tcp, unix};

use crate::error::{Error, ErrorKind};
use crate::mechanism::Side;
use crate::mechanism::memory_to_socket::MemorySink;
use crate::mechanism::socket_to_memory::{MemorySource, Waiting};
use crate::residency;
use crate::transfer::{
    ChunkProgress, ChunkTransfer, MemoryProgress, MemoryTransfer, Progress, ReceiveTransfer,
    Transfer,
};

/// The most bytes that one step moves.
const MAX_STEP_BYTES: u64 = crate::mechanism::MAX_STEP_BYTES as u64;

/// A connected TCP or Unix socket of tokio, or the write half of one.
///
/// Implemented for tokio's `TcpStream` and `UnixStream`, for the owned and the borrowed write
/// halves into which they can be split, and for references, `Arc` and `Box` of these.
///
/// This trait is sealed because a step that finds the socket full must clear the readiness that
/// tokio has recorded for the socket, and only tokio's own socket types can do that.
pub trait Socket: Sync + sealed::Sealed {
    /// Returns the descriptor of the socket.
    #[doc(hidden)]
    fn socket_fd(&self) -> BorrowedFd<'_>;

    /// Calls `step` whenever the socket is writable, until it returns something other than
    /// [`io::ErrorKind::WouldBlock`].
    #[doc(hidden)]
    fn when_writable<T>(
        &self,
        step: impl FnMut() -> io::Result<T> + Send,
    ) -> impl Future<Output = io::Result<T>> + Send;

    /// Calls `step` if the socket is not known to be full. If `step` fails with
    /// [`io::ErrorKind::WouldBlock`], the socket is known to be full from then on.
    #[doc(hidden)]
    fn if_writable<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T>;
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for tokio::net::TcpStream {}
    impl Sealed for tokio::net::UnixStream {}
    impl Sealed for tokio::net::tcp::OwnedReadHalf {}
    impl Sealed for tokio::net::tcp::OwnedWriteHalf {}
    impl Sealed for tokio::net::tcp::ReadHalf<'_> {}
    impl Sealed for tokio::net::tcp::WriteHalf<'_> {}
    impl Sealed for tokio::net::unix::OwnedReadHalf {}
    impl Sealed for tokio::net::unix::OwnedWriteHalf {}
    impl Sealed for tokio::net::unix::ReadHalf<'_> {}
    impl Sealed for tokio::net::unix::WriteHalf<'_> {}
    impl<T: Sealed> Sealed for &T {}
    impl<T: Sealed> Sealed for std::sync::Arc<T> {}
    impl<T: Sealed> Sealed for Box<T> {}
}

macro_rules! sockets {
    ($($socket:ty),*) => {
        $(
            impl Socket for $socket {
                fn socket_fd(&self) -> BorrowedFd<'_> {
                    self.as_fd()
                }

                async fn when_writable<T>(
                    &self,
                    step: impl FnMut() -> io::Result<T> + Send,
                ) -> io::Result<T> {
                    self.async_io(Interest::WRITABLE, step).await
                }

                fn if_writable<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
                    self.try_io(Interest::WRITABLE, step)
                }
            }
        )*
    };
}

sockets!(TcpStream, UnixStream);

/// Implements [`Socket`] for a type by calling the methods of the socket that it refers to.
macro_rules! handles_of_sockets {
    ($([$($generics:tt)*] $handle:ty, $socket:ident => $inner:expr;)*) => {
        $(
            impl<$($generics)*> Socket for $handle {
                fn socket_fd(&self) -> BorrowedFd<'_> {
                    let $socket = self;
                    $inner.socket_fd()
                }

                async fn when_writable<R>(
                    &self,
                    step: impl FnMut() -> io::Result<R> + Send,
                ) -> io::Result<R> {
                    let $socket = self;
                    $inner.when_writable(step).await
                }

                fn if_writable<R>(&self, step: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
                    let $socket = self;
                    $inner.if_writable(step)
                }
            }
        )*
    };
}

handles_of_sockets! {
    [T: Socket] &T, socket => (**socket);
    [T: Socket + Send] Arc<T>, socket => (**socket);
    [T: Socket] Box<T>, socket => (**socket);
    [] tcp::OwnedWriteHalf, half => half.as_ref();
    [] unix::OwnedWriteHalf, half => half.as_ref();
    [] tcp::WriteHalf<'_>, half => half.as_ref();
    [] unix::WriteHalf<'_>, half => half.as_ref();
}

/// A connected TCP or Unix socket of tokio, or the read half of one.
///
/// Implemented for tokio's `TcpStream` and `UnixStream`, for the owned and the borrowed read halves
/// into which they can be split, and for references, `Arc` and `Box` of these.
///
/// This trait is sealed for the same reason as [`Socket`].
pub trait ReadSocket: Sync + sealed::Sealed {
    /// Returns the descriptor of the socket.
    #[doc(hidden)]
    fn read_fd(&self) -> BorrowedFd<'_>;

    /// Calls `step` whenever the socket is readable, until it returns something other than
    /// [`io::ErrorKind::WouldBlock`].
    #[doc(hidden)]
    fn when_readable<T>(
        &self,
        step: impl FnMut() -> io::Result<T> + Send,
    ) -> impl Future<Output = io::Result<T>> + Send;

    /// Calls `step` if the socket is not known to have no bytes. If `step` fails with
    /// [`io::ErrorKind::WouldBlock`], the socket is known to have none from then on.
    #[doc(hidden)]
    fn if_readable<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T>;
}

macro_rules! read_sockets {
    ($($socket:ty),*) => {
        $(
            impl ReadSocket for $socket {
                fn read_fd(&self) -> BorrowedFd<'_> {
                    self.as_fd()
                }

                async fn when_readable<T>(
                    &self,
                    step: impl FnMut() -> io::Result<T> + Send,
                ) -> io::Result<T> {
                    self.async_io(Interest::READABLE, step).await
                }

                fn if_readable<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
                    self.try_io(Interest::READABLE, step)
                }
            }
        )*
    };
}

read_sockets!(TcpStream, UnixStream);

/// Implements [`ReadSocket`] for a type by calling the methods of the socket that it refers to.
macro_rules! handles_of_read_sockets {
    ($([$($generics:tt)*] $handle:ty, $socket:ident => $inner:expr;)*) => {
        $(
            impl<$($generics)*> ReadSocket for $handle {
                fn read_fd(&self) -> BorrowedFd<'_> {
                    let $socket = self;
                    $inner.read_fd()
                }

                async fn when_readable<R>(
                    &self,
                    step: impl FnMut() -> io::Result<R> + Send,
                ) -> io::Result<R> {
                    let $socket = self;
                    $inner.when_readable(step).await
                }

                fn if_readable<R>(&self, step: impl FnOnce() -> io::Result<R>) -> io::Result<R> {
                    let $socket = self;
                    $inner.if_readable(step)
                }
            }
        )*
    };
}

handles_of_read_sockets! {
    [T: ReadSocket] &T, socket => (**socket);
    [T: ReadSocket + Send] Arc<T>, socket => (**socket);
    [T: ReadSocket] Box<T>, socket => (**socket);
    [] tcp::OwnedReadHalf, half => half.as_ref();
    [] unix::OwnedReadHalf, half => half.as_ref();
    [] tcp::ReadHalf<'_>, half => half.as_ref();
    [] unix::ReadHalf<'_>, half => half.as_ref();
}

/// Runs `transfer` to its end, waiting while it is blocked, and yielding to other tasks after every
/// 2 MiB. Bytes that are not in the page cache are first read on tokio's blocking pool.
///
/// # Errors
///
/// The errors of [`Transfer::step`], and [`ErrorKind::Sink`] if tokio cannot wait for the socket.
///
/// # Cancellation
///
/// If the future is dropped, `transfer` keeps its position. It can be run again, and no byte is
/// lost or sent twice. A read that is in progress on the blocking pool continues there until it is
/// done.
pub async fn run(
    transfer: &mut Transfer,
    source: impl AsFd,
    socket: &impl Socket,
) -> Result<(), Error> {
    let source = source.as_fd();
    let mut since_yield = 0;
    loop {
        let len = transfer.remaining_of_file().unwrap_or(MAX_STEP_BYTES);
        prefetch_if_uncached(source, transfer.offset(), len).await;
        let sink = socket.socket_fd();
        let step = socket.when_writable(|| match transfer.step(source, sink) {
            Ok(Progress::Blocked(Side::Sink)) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        });
        match step.await {
            Ok(Ok(Progress::Done)) => return Ok(()),
            Ok(Ok(Progress::Moved(bytes))) => since_yield += bytes,
            // The source is not ready. Let other tasks run, then retry, because tokio does not
            // watch the source and so cannot wait for it. Files in the page cache are always ready.
            Ok(Ok(Progress::Blocked(_))) => tokio::task::yield_now().await,
            Ok(Err(error)) => return Err(error),
            Err(cause) => return Err(transfer.driver_error(ErrorKind::Sink, "epoll_wait", cause)),
        }
        // Yield after every 2 MiB. tokio's own cooperative budget is not enough, because it counts
        // operations, not bytes: it would allow a fast peer more than a hundred steps of 2 MiB
        // before other tasks run.
        if since_yield >= MAX_STEP_BYTES {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Runs the send to its end, in the same way as [`run`].
pub(crate) async fn send(
    transfer: &mut MemoryTransfer,
    sink: &mut MemorySink,
    socket: &impl Socket,
) -> Result<(), Error> {
    let mut since_yield = 0;
    let mut is_full = false;
    loop {
        let before = transfer.bytes();
        if transfer.can_batch() && !is_full {
            match transfer.step_in_batch(sink, socket.socket_fd()).await? {
                MemoryProgress::Done => return Ok(()),
                MemoryProgress::AtLimit => sink.until_below_limit().await,
                MemoryProgress::Blocked => is_full = true,
                MemoryProgress::Moved | MemoryProgress::FellBack => {}
            }
            continue;
        }
        // Make the step outside a batch. If a step in a batch found the socket full, it has to be
        // repeated here, because tokio clears the readiness and waits only if this closure returns
        // `WouldBlock`.
        let descriptor = socket.socket_fd();
        let step = socket.when_writable(|| match transfer.step(sink, descriptor) {
            Ok(MemoryProgress::Blocked) => Err(io::ErrorKind::WouldBlock.into()),
            other => Ok(other),
        });
        match step.await {
            Ok(Ok(MemoryProgress::Done)) => return Ok(()),
            Ok(Ok(MemoryProgress::AtLimit)) => sink.until_below_limit().await,
            Ok(Ok(_)) => since_yield += transfer.bytes() - before,
            Ok(Err(error)) => return Err(error),
            Err(cause) => return Err(transfer.driver_error(ErrorKind::Sink, "epoll_wait", cause)),
        }
        is_full = false;
        if since_yield >= MAX_STEP_BYTES {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Receives until the chunk of `source` is complete. Returns false if the stream has ended.
///
/// # Cancellation
///
/// If the future is dropped, nothing has been received.
pub(crate) async fn receive(
    transfer: &mut ChunkTransfer,
    source: &mut MemorySource,
    socket: &impl ReadSocket,
) -> Result<bool, Error> {
    let descriptor = socket.read_fd();
    // A chunk takes several steps. If the future were dropped between two of them, the bytes would
    // be neither in the socket nor with the caller.
    let receive_chunk = || loop {
        match transfer.step(source, descriptor, Waiting::Not) {
            Ok(ChunkProgress::Moved | ChunkProgress::FellBack) => {}
            Ok(ChunkProgress::Blocked) => return Err(io::ErrorKind::WouldBlock.into()),
            other => return Ok(other),
        }
    };
    match socket.when_readable(receive_chunk).await {
        Ok(progress) => Ok(progress? == ChunkProgress::Done),
        Err(cause) => Err(transfer.driver_error(ErrorKind::Source, cause)),
    }
}

/// Runs `transfer` to its end, waiting while it is blocked, and yielding to other tasks after every
/// 2 MiB.
///
/// # Errors
///
/// The errors of [`ReceiveTransfer::step`], and [`ErrorKind::Source`] or [`ErrorKind::Sink`] if
/// tokio cannot wait for the socket or for the sink. After an error of the sink, the transfer can
/// be run again and continues where it stopped.
///
/// # Cancellation
///
/// If the future is dropped, `transfer` keeps its position, and the bytes that it has taken from
/// the socket. It can be run again, and no byte is lost or written twice.
pub async fn run_receive(
    transfer: &mut ReceiveTransfer,
    socket: &impl ReadSocket,
    sink: impl AsFd,
) -> Result<(), Error> {
    let (source, sink) = (socket.read_fd(), sink.as_fd());
    let mut since_yield = 0;
    loop {
        // Only a step that needs bytes of the socket may wait for them.
        let needs_socket = transfer.held_bytes() == 0 && transfer.remaining() != Some(0);
        let progress = match needs_socket {
            false => transfer.step(source, sink)?,
            true => {
                let step = socket.when_readable(|| match transfer.step(source, sink) {
                    Ok(Progress::Blocked(Side::Source)) => Err(io::ErrorKind::WouldBlock.into()),
                    other => Ok(other),
                });
                match step.await {
                    Ok(progress) => progress?,
                    Err(cause) => {
                        let kind = ErrorKind::Source;
                        return Err(transfer.driver_error(kind, "epoll_wait", cause));
                    }
                }
            }
        };
        match progress {
            Progress::Done => return Ok(()),
            Progress::Moved(bytes) => since_yield += bytes,
            Progress::Blocked(Side::Sink) => until_writable(sink)
                .await
                .map_err(|cause| transfer.driver_error(ErrorKind::Sink, "epoll_wait", cause))?,
            // The next step waits for the socket.
            Progress::Blocked(Side::Source) => {}
        }
        if since_yield >= MAX_STEP_BYTES {
            since_yield = 0;
            tokio::task::yield_now().await;
        }
    }
}

/// Waits until a sink that was full, such as a pipe, accepts bytes.
async fn until_writable(sink: BorrowedFd<'_>) -> io::Result<()> {
    // A duplicate, because the program may have registered the descriptor with tokio itself. tokio
    // only waits for it, so it need not be a pipe.
    let duplicate = sink.try_clone_to_owned()?;
    pipe::Sender::from_owned_fd_unchecked(duplicate)?
        .writable()
        .await
}

/// If the bytes of a file that the next step moves, the first `len` after `offset`, are not in the
/// page cache, has tokio's blocking pool read them.
async fn prefetch_if_uncached(source: BorrowedFd<'_>, offset: u64, len: u64) {
    let len = len.min(MAX_STEP_BYTES);
    if len == 0 || residency::is_resident(source, offset, len) {
        return;
    }
    // Duplicate the descriptor for the thread that reads. If that fails, skip the read: the step
    // itself then waits for the disk.
    if let Ok(file) = source.try_clone_to_owned() {
        let load = move || residency::prefetch_blocking(file, offset, len);
        let _ = tokio::task::spawn_blocking(load).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::future::poll_fn;
    use std::pin::pin;

    use super::*;
    use crate::policy::{Length, Mechanism, Plan};

    /// A socket that accepts every byte at once and never blocks, like one with the fastest
    /// possible peer.
    struct NullSocket(File);

    impl sealed::Sealed for NullSocket {}

    impl Socket for NullSocket {
        fn socket_fd(&self) -> BorrowedFd<'_> {
            self.0.as_fd()
        }

        fn if_writable<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
            step()
        }

        async fn when_writable<T>(
            &self,
            mut step: impl FnMut() -> io::Result<T> + Send,
        ) -> io::Result<T> {
            step()
        }
    }

    /// However fast the peer accepts bytes, the task yields after every step so that the thread's
    /// other tasks can run.
    #[tokio::test]
    async fn a_fast_peer_does_not_hold_the_event_loop() {
        const STEPS: u64 = 64;
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(STEPS * MAX_STEP_BYTES).expect("grown");
        residency::prefetch_blocking(&file, 0, STEPS * MAX_STEP_BYTES);
        let socket = NullSocket(File::create("/dev/null").expect("opened"));
        let plan = Plan::of(&[Mechanism::Sendfile]);
        let mut transfer = Transfer::new(0, Length::UntilEof, plan);

        let mut polls = 0;
        {
            let mut sending = pin!(run(&mut transfer, &file, &socket));
            let sent = poll_fn(|context| {
                polls += 1;
                sending.as_mut().poll(context)
            });
            sent.await.expect("sent");
        }
        assert!(polls > STEPS, "{polls} polls for {STEPS} steps");
        assert_eq!(transfer.report().bytes(), STEPS * MAX_STEP_BYTES);
    }
}
