//! The I/O object under hyper or axum. It reads and writes like a socket, except that it sends
//! slices of mapped files from the file, and slices of pages without a copy.

mod file_send;
mod page_send;
mod socket;

use std::fmt;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::coop;
use uncopied::arena::{FileMapping, Located, Pages, locate};
use uncopied::policy::Mechanism;
use uncopied::send_vectored;

use crate::address::Address;
use crate::body::passthrough::confirm_passthrough;
use crate::frame_watch::FrameWatch;
use crate::options::StreamOptions;
use file_send::FileSend;
use page_send::PageSender;

pub use file_send::CORKED_FILE_MIN_BYTES;
pub use socket::ConnectionSocket;

/// A TCP or Unix connection for an unmodified hyper or axum. It sends files with `sendfile`, and
/// pages of the arena without a copy.
///
/// The stream looks up every slice that it is asked to write in the [arena](uncopied::arena). It
/// sends slices of a mapped file from the file. It sends slices of [frozen pages](Pages) of 32 KiB
/// or more according to the [plan](uncopied::policy::plan_memory) for such memory. It writes
/// everything else as usual, including shorter slices of pages. The [`StreamOptions`] may force
/// mechanisms. Bytes in front of file data or pages, such as the head of a response, are held back
/// so that they can share a packet with the data that follows.
///
/// A file that is not in the page cache is loaded on tokio's blocking pool, so that other
/// connections of the thread can continue.
///
/// # Stability of the bytes
///
/// A file's bytes may change until the peer has received them; see [`uncopied`]. Pages are frozen,
/// and are kept for as long as the kernel reads them, even if the body, this stream, or the whole
/// runtime is dropped. If the program replaces itself with another one while pages are sent, it
/// should call [`uncopied::exec()`], because `execve(2)` may wait for the peers.
pub struct Stream {
    socket: ConnectionSocket,
    options: StreamOptions,
    file_send: Option<Box<FileSend>>,
    /// Created when pages are first sent.
    page_sender: Option<Box<PageSender>>,
    /// The error with which sending file data or pages failed. Any bytes written after such an
    /// error would take the place of the missing bytes in the body, so every later write fails too.
    failed: Option<io::Error>,
    /// The slices of mapped files that were made for this stream. Created when the first one is.
    watch: Option<FrameWatch>,
    protocol: ConnectionProtocol,
}

/// The protocol of the connection, as recognised from the bytes written so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ConnectionProtocol {
    Unknown,
    /// HTTP/1, which passes on each frame of a body as it is.
    Http1,
    /// Anything else, such as HTTP/2. HTTP/2 copies the first bytes of some frames next to their
    /// frame heads, and passes other frames on as they are. So if one frame was passed on unread,
    /// that proves nothing about the next.
    Other,
}

/// The number of sent bytes that cost one unit of the task's cooperative budget
/// ([`tokio::task::coop`](coop)). tokio grants a task 128 units per poll. Once they are used up,
/// every socket returns [`Poll::Pending`]. So a task yields after 4 MiB, and one fast peer cannot
/// monopolise the thread.
///
/// A counter in this stream would not be enough: when a write returns [`Poll::Pending`], hyper
/// moves on to its next response and writes again within the same poll.
const BYTES_PER_BUDGET_UNIT: usize = 32 << 10;

/// The maximum number of slices that one `sendmsg` accepts (`IOV_MAX`).
const MAX_SLICES_PER_CALL: usize = 1024;

impl Stream {
    /// Creates a stream over a connected TCP socket. Sets `TCP_NODELAY`. Without this option, the
    /// kernel can delay the end of a response by 40 ms or more to wait for further bytes. The
    /// stream does not need that, because it tells the kernel when further bytes follow.
    #[must_use]
    pub fn tcp(socket: TcpStream, options: StreamOptions) -> Self {
        // Ignore an error: every TCP socket supports this option, and even without it, the
        // connection would work, only more slowly.
        let _ = socket.set_nodelay(true);
        Self::accepted(socket, options)
    }

    /// Creates a stream over a TCP socket that already has `TCP_NODELAY`.
    pub(crate) fn accepted(socket: TcpStream, options: StreamOptions) -> Self {
        Self::new(ConnectionSocket::Tcp(socket), options)
    }

    /// Creates a stream over a connected Unix socket.
    #[must_use]
    pub fn unix(socket: UnixStream, options: StreamOptions) -> Self {
        Self::new(ConnectionSocket::Unix(socket), options)
    }

    fn new(socket: ConnectionSocket, options: StreamOptions) -> Self {
        Self {
            socket,
            options,
            file_send: None,
            page_sender: None,
            failed: None,
            watch: None,
            protocol: ConnectionProtocol::Unknown,
        }
    }

    /// Returns the address of the peer.
    ///
    /// # Errors
    ///
    /// Any error from `getpeername(2)`, such as
    /// [`NotConnected`](io::ErrorKind::NotConnected) if the peer has reset the connection.
    pub fn peer_addr(&self) -> io::Result<Address> {
        match &self.socket {
            ConnectionSocket::Tcp(socket) => socket.peer_addr().map(Address::Tcp),
            ConnectionSocket::Unix(_) => Ok(Address::Unix),
        }
    }

    /// Returns the socket, for example to query or set its options. Bytes that are written to the
    /// socket itself can end up in the middle of a response.
    #[must_use]
    pub fn get_ref(&self) -> &ConnectionSocket {
        &self.socket
    }

    /// Returns the socket, which can then be used without the stream; `TCP_NODELAY` stays set.
    /// Bytes that the stream has accepted have been passed to the kernel, and pages among them are
    /// kept for as long as the kernel reads them.
    ///
    /// After an upgrade, such as to the WebSocket protocol, this gives tokio's socket back: see
    /// `hyper::upgrade::Upgraded::downcast`.
    #[must_use]
    pub fn into_inner(mut self) -> ConnectionSocket {
        self.abandon_file_send();
        self.socket
    }

    /// Calls `write` whenever the socket is writable, until `write` returns something other than
    /// `WouldBlock` or `Interrupted`.
    fn poll_when_writable<T>(
        &self,
        cx: &mut Context<'_>,
        mut write: impl FnMut() -> io::Result<T>,
    ) -> Poll<io::Result<T>> {
        loop {
            ready!(self.socket.poll_write_ready(cx))?;
            match self.socket.try_write(&mut write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return Poll::Ready(other),
            }
        }
    }

    /// Writes the slices in front of the first [`ArenaSlice`] together, and then sends that slice
    /// separately.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if let Some(error) = self.failed.take() {
            self.failed = Some(error.kind().into());
            return Poll::Ready(Err(error));
        }
        self.check_intact()?;
        let slices = &slices[..slices.len().min(MAX_SLICES_PER_CALL)];
        let (plain, arena_slice) = self.split_at_arena_slice(slices);
        self.note_protocol(plain);
        // Confirm the marked frame before writing. Even if this call writes nothing, hyper may poll
        // the body for its next frame, and the body must already know that its first frame has
        // arrived unread.
        let before_body = self.protocol == ConnectionProtocol::Http1
            && confirm_passthrough(plain, || self.watch.get_or_insert_default().clone());
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
            // The caller is no longer writing the bytes of an earlier file send, if there was one.
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
            // Report the bytes already written first. The caller will pass the rest again in its
            // next call.
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

    /// Fails if code has read missing bytes of a file that this stream sends: such bytes may be
    /// among those that it is asked to write.
    fn check_intact(&self) -> io::Result<()> {
        match &self.watch {
            Some(watch) if !watch.is_intact() => Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the file was truncated while it was sent",
            )),
            _ => Ok(()),
        }
    }

    /// Returns the slices in front of the first [`ArenaSlice`], and that slice.
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
        self.poll_when_writable(cx, || send_vectored(socket, slices, more))
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
            // If no unit is left, `poll_proceed` would schedule the task to run again at once, even
            // if it has nothing to do.
            if coop::has_budget_remaining()
                && let Poll::Ready(unit) = coop::poll_proceed(cx)
            {
                unit.made_progress();
            }
        }
    }
}

/// A slice of the arena that is sent separately, because it need not be copied.
enum ArenaSlice {
    File(FileSlice),
    Pages(Pages),
}

/// A slice of a mapped file.
struct FileSlice {
    mapping: FileMapping,
    /// The position of the slice, in bytes from the start of the file.
    offset: u64,
    len: usize,
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Sets `TCP_NODELAY`, like [`Stream::tcp`] with the default options.
impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self::tcp(socket, StreamOptions::default())
    }
}

/// The same as [`Stream::unix`] with the default options.
impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self::unix(socket, StreamOptions::default())
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
        Pin::new(&mut self.socket).poll_read(cx, buffer)
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
        self.poll_send(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check_intact()?;
        match &mut self.socket {
            ConnectionSocket::Tcp(socket) => Pin::new(socket).poll_shutdown(cx),
            ConnectionSocket::Unix(socket) => Pin::new(socket).poll_shutdown(cx),
        }
    }
}
