//! The connection under hyper or axum: ordinary reads and writes, except that bytes in the arena
//! are sent from the file that they belong to, or by zero copy if they are pages.

mod file_send;
mod page_send;

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop;
use uncopied::arena::{FileMapping, Located, Pages, locate};
use uncopied::policy::Mechanism;
use uncopied::send_vectored;

use crate::activity::Activity;
use crate::body::passthrough::confirm_passthrough;
use crate::options::StreamOptions;
use file_send::FileSend;
use page_send::PageSender;

/// A TCP or Unix connection that hyper and axum accept unmodified, and that sends files by
/// `sendfile` and pages of the arena by zero copy.
///
/// Every slice to write is looked up in the [arena](uncopied::arena). Slices of a mapped file go
/// out from the file. Slices of 32 KiB or more of [frozen pages](Pages) go out by the
/// [plan](uncopied::policy::plan_memory) for such memory. Everything else, including shorter slices
/// of pages, is written as usual. The [`StreamOptions`] may force mechanisms. Bytes in front of a
/// file's bytes or pages, such as the head of a response, wait for these to share the first packet.
///
/// A file that is not in the page cache is loaded on tokio's blocking pool, while other connections
/// of the thread continue.
///
/// # Stability of the bytes
///
/// See [`uncopied`]: a file's bytes may change until the peer has them. Pages are frozen, and kept
/// for as long as the kernel reads them, even if the body, this stream, or the whole runtime is
/// dropped.
pub struct Stream {
    socket: ConnectionSocket,
    options: StreamOptions,
    activity: Option<Arc<Activity>>,
    file_send: Option<Box<FileSend>>,
    /// Created for the first pages. It belongs to the socket, and is dropped with it.
    page_sender: Option<Box<PageSender>>,
    /// Why bytes of a file, or pages, could not be sent. Anything written after such an error would
    /// take their place in the body, so every later write fails.
    failed: Option<io::Error>,
    protocol: ConnectionProtocol,
}

/// The protocol of the connection, as far as the bytes written so far show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionProtocol {
    Unknown,
    /// Each frame of a body is passed on as it is.
    Http1,
    /// HTTP/2 copies the first bytes of some frames next to their heads and passes others on as
    /// they are. One frame that was passed on proves nothing about the next.
    Other,
}

#[derive(Debug)]
enum ConnectionSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// How many bytes cost one unit of the task's budget. tokio gives a task 128 units for each poll,
/// and once they are used up every socket returns [`Poll::Pending`]. After 4 MiB the task therefore
/// yields to others, so that one fast peer cannot hold the thread.
///
/// This uses the budget of the task rather than a count in the stream, because hyper continues with
/// its next response when a write is pending, and would write again at once.
const BYTES_PER_BUDGET_UNIT: usize = 32 << 10;

/// The most slices that one `sendmsg` accepts (`IOV_MAX`).
const MAX_SLICES_PER_CALL: usize = 1024;

impl Stream {
    /// A stream over a connected TCP socket. `TCP_NODELAY` should be set: the stream itself tells
    /// the kernel when more follows.
    #[must_use]
    pub fn tcp(socket: TcpStream, options: StreamOptions) -> Self {
        Self::new(ConnectionSocket::Tcp(socket), options)
    }

    /// A stream over a connected Unix socket.
    #[must_use]
    pub fn unix(socket: UnixStream, options: StreamOptions) -> Self {
        Self::new(ConnectionSocket::Unix(socket), options)
    }

    fn new(socket: ConnectionSocket, options: StreamOptions) -> Self {
        Self {
            socket,
            options,
            activity: None,
            file_send: None,
            page_sender: None,
            failed: None,
            protocol: ConnectionProtocol::Unknown,
        }
    }

    /// What this connection is waiting for. The value is kept up to date from the first call on.
    pub fn activity(&mut self) -> Arc<Activity> {
        Arc::clone(
            self.activity
                .get_or_insert_with(|| Arc::new(Activity::new())),
        )
    }

    /// Ready when there is something to read, or the peer has closed. Use it to wait for a request
    /// without holding a buffer to read it into.
    ///
    /// # Errors
    ///
    /// Only if the runtime is shutting down.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            ConnectionSocket::Tcp(socket) => socket.poll_read_ready(cx),
            ConnectionSocket::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            ConnectionSocket::Tcp(socket) => socket.poll_write_ready(cx),
            ConnectionSocket::Unix(socket) => socket.poll_write_ready(cx),
        }
    }

    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.socket {
            ConnectionSocket::Tcp(socket) => socket.try_io(Interest::WRITABLE, write),
            ConnectionSocket::Unix(socket) => socket.try_io(Interest::WRITABLE, write),
        }
    }

    /// Calls `write` each time the socket is writable, until it returns something other than
    /// `WouldBlock` or `Interrupted`.
    fn poll_when_writable<T>(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(self.poll_write_ready(cx))?;
            match self.try_write(&mut write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Writes the slices up to the first that is not copied, and sends that one by itself.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            self.failed = Some(error.kind().into());
            return Poll::Ready(Err(error));
        }
        let slices = &slices[..slices.len().min(MAX_SLICES_PER_CALL)];
        let (plain, arena_slice) = self.split_at_arena_slice(slices);
        self.note_protocol(plain);
        // The body must learn it now: hyper may poll it for more before this call has written
        // anything.
        let before_body = self.protocol == ConnectionProtocol::Http1 && confirm_passthrough(plain);
        let mut written = 0;
        if plain.iter().any(|slice| !slice.is_empty()) {
            written =
                ready!(self.poll_send_plain(cx, plain, before_body || arena_slice.is_some()))?;
            self.count(cx, Mechanism::Copy, written);
            if written < plain.iter().map(|slice| slice.len()).sum() {
                return Poll::Ready(Ok(written));
            }
        }
        let Some(arena_slice) = arena_slice else {
            // The caller no longer writes the bytes of the send in progress.
            self.abandon_file_send();
            return Poll::Ready(Ok(written));
        };
        let sent = match arena_slice {
            ArenaSlice::File(slice) => self.poll_send_file(cx, slice),
            ArenaSlice::Pages(pages) => {
                self.abandon_file_send();
                self.poll_send_pages(cx, &pages)
            }
        };
        match sent {
            Poll::Ready(Ok(sent)) => Poll::Ready(Ok(written + sent)),
            // The bytes already written must be reported first. The next call gets the rest again.
            Poll::Pending if written > 0 => Poll::Ready(Ok(written)),
            Poll::Pending => Poll::Pending,
            Poll::Ready(Err(error)) if written > 0 => {
                self.failed = Some(error);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) => {
                self.failed = Some(error.kind().into());
                Poll::Ready(Err(error))
            }
        }
    }

    /// The slices before the first that is not copied, and that one.
    fn split_at_arena_slice<'a, 'b>(
        &self,
        slices: &'a [IoSlice<'b>],
    ) -> (&'a [IoSlice<'b>], Option<ArenaSlice>) {
        for (at, slice) in slices.iter().enumerate() {
            let arena_slice = match locate(slice) {
                Some(Located::File { mapping, offset }) => ArenaSlice::File(FileSlice {
                    mapping,
                    offset,
                    len: slice.len(),
                }),
                Some(Located::Pages(pages)) if self.sends_separately(&pages) => {
                    ArenaSlice::Pages(pages)
                }
                _ => continue,
            };
            return (&slices[..at], Some(arena_slice));
        }
        (slices, None)
    }

    fn poll_send_plain(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        more: bool,
    ) -> Poll<io::Result<usize>> {
        let socket = self.as_fd();
        self.poll_when_writable(cx, || Ok(send_vectored(socket, slices, more)?))
    }

    fn note_protocol(&mut self, slices: &[IoSlice<'_>]) {
        let Some(first) = slices.iter().find(|slice| !slice.is_empty()) else {
            return;
        };
        let switching = first.starts_with(b"HTTP/1.1 101");
        if switching || self.protocol == ConnectionProtocol::Unknown {
            self.protocol = if first.starts_with(b"HTTP/1.") && !switching {
                ConnectionProtocol::Http1
            } else {
                ConnectionProtocol::Other
            };
        }
    }

    fn count(&self, cx: &mut Context<'_>, mechanism: Mechanism, bytes: usize) {
        self.options.totals.add(mechanism, bytes as u64);
        for _ in 0..bytes / BYTES_PER_BUDGET_UNIT {
            // Requesting a unit when none is left would wake the task, which may have nothing to
            // do.
            if coop::has_budget_remaining()
                && let Poll::Ready(unit) = coop::poll_proceed(cx)
            {
                unit.made_progress();
            }
        }
    }

    fn note_write(&self, write: &Poll<io::Result<usize>>) {
        let Some(activity) = &self.activity else {
            return;
        };
        match write {
            Poll::Ready(Ok(_)) => activity.note_sent(),
            Poll::Pending if self.is_waiting_for_peer() => activity.note_blocked(),
            Poll::Pending => activity.note_loading(),
            Poll::Ready(Err(_)) => {}
        }
    }

    fn is_waiting_for_peer(&self) -> bool {
        self.file_send
            .as_ref()
            .is_none_or(|send| !send.is_loading())
    }
}

/// A slice of the arena, which is not copied.
enum ArenaSlice {
    File(FileSlice),
    Pages(Pages),
}

/// A slice of a mapped file.
struct FileSlice {
    mapping: FileMapping,
    /// Where the slice begins, in bytes from the start of the file.
    offset: u64,
    len: usize,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            ConnectionSocket::Tcp(socket) => socket.as_fd(),
            ConnectionSocket::Unix(socket) => socket.as_fd(),
        }
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Stream").field(&self.socket).finish()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = match &mut self.socket {
            ConnectionSocket::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            ConnectionSocket::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        };
        if buffer.filled().len() > before
            && let Some(activity) = &self.activity
        {
            activity.note_received();
        }
        read
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let write = self.poll_send(cx, slices);
        self.note_write(&write);
        write
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Some(activity) = &self.activity {
            activity.note_flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            ConnectionSocket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            ConnectionSocket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
