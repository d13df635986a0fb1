//! The connection under hyper or axum: ordinary reads and writes, except that bytes which live in the
//! arena are sent from the file that they belong to, or lent as the pages that they are.

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
use crate::body::passthrough::recognise;
use crate::options::Options;
use file_send::Sending;
use page_send::Lender;

/// A TCP or Unix connection that hyper and axum take as it is, and that sends files by `sendfile`, and
/// pages of the arena by lending them.
///
/// Every slice that it is given to write is looked up in the [arena](uncopied::arena). What lies in
/// a mapped file goes out from the file; 32 KiB or more of [frozen pages](Pages) go out by
/// the [plan](uncopied::policy::plan_memory) for such memory; everything else, and shorter slices of
/// pages, are written as ever. The [`Options`] may force mechanisms. What stands before a file's
/// bytes or pages, such as the head of a response, waits for them to share the first packet.
///
/// A file that is not in the page cache is loaded on tokio's blocking pool; other connections of the
/// thread go on meanwhile.
///
/// # Stability of the bytes
///
/// See [`uncopied`]: a file's bytes may change until the peer has them. Pages are frozen, and kept for as
/// long as the kernel reads them, also if the body, this stream, or the whole runtime is dropped.
pub struct Stream {
    socket: Socket,
    options: Options,
    activity: Option<Arc<Activity>>,
    sending: Option<Box<Sending>>,
    /// Made for the first pages; it belongs to the socket, and is dropped with it.
    lender: Option<Box<Lender>>,
    /// Why bytes of a file, or pages, could not be sent. Whatever was written after that would land inside them.
    failed: Option<io::Error>,
    protocol: Protocol,
}

/// What is spoken on the connection, as far as what it writes has told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Unknown,
    /// Each frame of a body is passed on as it is.
    Http1,
    /// HTTP/2 copies the first bytes of some frames next to their heads and passes others on as they
    /// are: that one was seen proves nothing about the next.
    Other,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// So many bytes cost one unit of the task's budget. tokio gives a task 128 units each time that it is
/// polled, and has every socket answer [`Poll::Pending`] once they are used up: after 4 MiB the task
/// gives way to others, so that one fast peer cannot hold the thread.
///
/// The budget is the task's, and not a count of the stream's own, because hyper goes on to its next
/// response when a write is pending, and would write again at once.
const BYTES_PER_UNIT: usize = 32 << 10;

/// What one `sendmsg` takes (`IOV_MAX`).
const SLICES: usize = 1024;

impl Stream {
    /// A stream over a connected TCP socket. `TCP_NODELAY` should be set: the stream itself says when
    /// more follows.
    #[must_use]
    pub fn tcp(socket: TcpStream, options: Options) -> Self {
        Self::new(Socket::Tcp(socket), options)
    }

    /// A stream over a connected Unix socket.
    #[must_use]
    pub fn unix(socket: UnixStream, options: Options) -> Self {
        Self::new(Socket::Unix(socket), options)
    }

    fn new(socket: Socket, options: Options) -> Self {
        Self {
            socket,
            options,
            activity: None,
            sending: None,
            lender: None,
            failed: None,
            protocol: Protocol::Unknown,
        }
    }

    /// What this connection is waiting for, kept up to date from now on.
    pub fn activity(&mut self) -> Arc<Activity> {
        Arc::clone(
            self.activity
                .get_or_insert_with(|| Arc::new(Activity::new())),
        )
    }

    /// Ready when there is something to read, or the peer has closed: to wait for a request without a
    /// buffer to read it into.
    ///
    /// # Errors
    ///
    /// Only if the runtime is shutting down.
    pub fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            Socket::Tcp(socket) => socket.poll_read_ready(cx),
            Socket::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.socket {
            Socket::Tcp(socket) => socket.poll_write_ready(cx),
            Socket::Unix(socket) => socket.poll_write_ready(cx),
        }
    }

    fn try_write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.socket {
            Socket::Tcp(socket) => socket.try_io(Interest::WRITABLE, write),
            Socket::Unix(socket) => socket.try_io(Interest::WRITABLE, write),
        }
    }

    /// Repeats `write` whenever the socket is writable until it does something.
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

    /// Writes the slices up to the first that is not copied; that one's bytes go by themselves.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            self.failed = Some(error.kind().into());
            return Poll::Ready(Err(error));
        }
        let slices = &slices[..slices.len().min(SLICES)];
        let (plain, found) = self.split_at_found(slices);
        self.note_protocol(plain);
        // A body is told at once: hyper may ask it for more before this call has written anything.
        let before_body = self.protocol == Protocol::Http1 && recognise(plain);
        let mut written = 0;
        if plain.iter().any(|slice| !slice.is_empty()) {
            written = ready!(self.poll_send_plain(cx, plain, before_body || found.is_some()))?;
            self.count(cx, Mechanism::Copy, written);
            if written < plain.iter().map(|slice| slice.len()).sum() {
                return Poll::Ready(Ok(written));
            }
        }
        let Some(found) = found else {
            // Whoever writes has given up what was under way.
            self.end_sending();
            return Poll::Ready(Ok(written));
        };
        let sent = match found {
            Found::File(found) => self.poll_send_file(cx, found),
            Found::Pages(pages) => {
                self.end_sending();
                self.poll_send_pages(cx, &pages)
            }
        };
        match sent {
            Poll::Ready(Ok(sent)) => Poll::Ready(Ok(written + sent)),
            // What has been written must be told first; the next call meets the rest again.
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
    fn split_at_found<'a, 'b>(
        &self,
        slices: &'a [IoSlice<'b>],
    ) -> (&'a [IoSlice<'b>], Option<Found>) {
        for (at, slice) in slices.iter().enumerate() {
            let found = match locate(slice) {
                Some(Located::File { mapping, offset }) => Found::File(InFile {
                    mapping,
                    offset,
                    len: slice.len(),
                }),
                Some(Located::Pages(pages)) if self.sends_alone(&pages) => Found::Pages(pages),
                _ => continue,
            };
            return (&slices[..at], Some(found));
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
        if switching || self.protocol == Protocol::Unknown {
            self.protocol = if first.starts_with(b"HTTP/1.") && !switching {
                Protocol::Http1
            } else {
                Protocol::Other
            };
        }
    }

    fn count(&self, cx: &mut Context<'_>, mechanism: Mechanism, bytes: usize) {
        self.options.totals.add(mechanism, bytes as u64);
        for _ in 0..bytes / BYTES_PER_UNIT {
            // To ask for a unit that is not there would wake the task, which may have nothing to do.
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
            Poll::Ready(Ok(_)) => activity.sent(),
            Poll::Pending if self.is_waiting_for_peer() => activity.blocked(),
            Poll::Pending => activity.loading(),
            Poll::Ready(Err(_)) => {}
        }
    }

    fn is_waiting_for_peer(&self) -> bool {
        self.sending
            .as_ref()
            .is_none_or(|sending| !sending.is_loading())
    }
}

/// A slice that is not copied.
enum Found {
    File(InFile),
    Pages(Pages),
}

/// A slice of a mapped file.
struct InFile {
    mapping: FileMapping,
    /// Where it begins, in bytes of the file.
    offset: u64,
    len: usize,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.socket {
            Socket::Tcp(socket) => socket.as_fd(),
            Socket::Unix(socket) => socket.as_fd(),
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
            Socket::Tcp(socket) => Pin::new(socket).poll_read(cx, buffer),
            Socket::Unix(socket) => Pin::new(socket).poll_read(cx, buffer),
        };
        if buffer.filled().len() > before
            && let Some(activity) = &self.activity
        {
            activity.received();
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
            activity.flushed();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.socket {
            Socket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            Socket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
