//! The simple API for receiving: chunks of bytes that were not copied, where that is possible.

use std::fmt;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::ipproto;
use rustix::net::sockopt::{socket_cookie, socket_protocol};

use super::obstacle::{self, MapObstacle};
use super::{Chunk, ReceiveOptions};
use crate::driver;
use crate::endpoint::{self, StreamSocket};
use crate::error::Error;
use crate::mechanism::socket_to_memory::{MemorySource, Waiting};
use crate::policy::{plan_receive, zero_copy_receive_enabled};
use crate::report::Report;
use crate::sys::{has_upper_protocol, set_low_water_mark};
use crate::transfer::{ChunkProgress, ChunkTransfer};

/// Receives from a stream socket, without copying the bytes where that is possible.
///
/// A TCP socket's bytes can be mapped into this process (`map_receive`), page by page, if the
/// network card puts the payload of packets into whole pages: see [`PagePayload`] and
/// [`interface`]. All others are copied, as by `recv(2)`. The receiver learns from each chunk which
/// part of the bytes the kernel can map, and copies all of them if it is small.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use uncopied::Receiver;
///
/// # use std::io::Write;
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # TcpStream::connect(listener.local_addr()?)?.write_all(b"hello")?;
/// let mut receiver = Receiver::new(listener.accept()?.0);
/// let mut received = Vec::new();
/// while let Some(chunk) = receiver.receive()? {
///     received.extend(chunk.to_vec());
/// }
/// assert_eq!(received, b"hello");
/// println!("{}", receiver.report());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What else may use the socket
///
/// The socket can be written to at any time, and be read from between two calls, through
/// [`get_ref`](Self::get_ref) or [`get_mut`](Self::get_mut).
///
/// # Dropping it
///
/// Bytes that the socket has received but this receiver has not returned are lost with the socket,
/// as with any socket. Chunks stay valid. As long as a part of a chunk with mapped bytes exists,
/// the kernel keeps the connection open, even if all descriptors of the socket are closed: shut the
/// socket down to tell the peer that the stream has ended.
///
/// [`PagePayload`]: crate::PagePayload
/// [`interface`]: crate::interface
pub struct Receiver<S> {
    core: Core,
    socket: S,
}

impl<S: StreamSocket> Receiver<S> {
    /// Creates a receiver for this socket, with the default [options](ReceiveOptions).
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self::with(socket, ReceiveOptions::default())
    }

    /// Creates a receiver for this socket, with these options.
    #[must_use]
    pub fn with(socket: S, options: ReceiveOptions) -> Self {
        let core = Core::new(socket.as_fd(), options);
        Self { core, socket }
    }

    /// Waits until bytes have arrived, and returns them. Returns `None` at the end of the stream.
    /// The socket may be blocking or non-blocking. The receive timeout of the socket
    /// (`SO_RCVTIMEO`) applies.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). Bytes that arrived before an error are returned first.
    pub fn receive(&mut self) -> Result<Option<Chunk>, Error> {
        let (core, socket) = (&mut self.core, self.socket.as_fd());
        core.begin(socket);
        let (transfer, source) = (&mut core.transfer, &mut core.source);
        let has_chunk = driver::blocking::receive(transfer, source, socket, core.is_blocking)?;
        Ok(has_chunk.then(|| core.take_chunk()))
    }

    /// Tries once to receive, without waiting, for event loops of your own. Returns `None` at the
    /// end of the stream.
    ///
    /// # Errors
    ///
    /// The errors of [`receive`](Self::receive), and
    /// [`ErrorKind::WouldBlock`](crate::ErrorKind::WouldBlock) if no bytes have arrived.
    pub fn try_receive(&mut self) -> Result<Option<Chunk>, Error> {
        self.core.try_receive(self.socket.as_fd())
    }

    /// Returns how many bytes were received in total, by mechanism. The bytes of `map_receive` are
    /// those that were mapped. If a mechanism fell back several times with the same errno, only the
    /// first time is listed.
    #[must_use]
    pub fn report(&self) -> &Report {
        self.core.transfer.report()
    }

    /// Returns why bytes were copied that could have been mapped otherwise, as far as it can be
    /// found out, and what would help. Returns `None` if nearly all bytes were mapped, or if
    /// nothing was received.
    #[must_use]
    pub fn map_obstacle(&self) -> Option<MapObstacle> {
        self.core.map_obstacle(self.socket.as_fd())
    }

    /// Returns a reference to the socket.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.socket
    }

    /// Returns a mutable reference to the socket. If it is replaced by another socket, the receiver
    /// receives from that one, with the same options. The old socket stays open until then, if
    /// bytes of it were mapped.
    ///
    /// Also call this after you have switched kernel TLS on: the receiver then stops mapping.
    pub fn get_mut(&mut self) -> &mut S {
        self.core.expects_another_socket = true;
        &mut self.socket
    }

    /// Returns the socket. All bytes that the receiver has not returned are still in it.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.socket
    }
}

impl<S: AsFd> fmt::Debug for Receiver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("socket", &self.socket.as_fd())
            .field("report", self.core.transfer.report())
            .finish_non_exhaustive()
    }
}

/// What the receivers of blocking code and of tokio have in common.
pub(super) struct Core {
    options: ReceiveOptions,
    pub(super) source: MemorySource,
    pub(super) transfer: ChunkTransfer,
    /// The `SO_COOKIE` of the socket that `source` was created for.
    cookie: Option<u64>,
    /// Whether the socket may have been replaced by another one.
    pub(super) expects_another_socket: bool,
    /// Whether the socket was blocking when `source` was created.
    is_blocking: bool,
}

impl Core {
    pub(super) fn new(socket: BorrowedFd<'_>, options: ReceiveOptions) -> Self {
        Self {
            source: source_for(socket, &options),
            options,
            transfer: ChunkTransfer::new(),
            cookie: socket_cookie(socket).ok(),
            expects_another_socket: false,
            is_blocking: endpoint::is_blocking(socket),
        }
    }

    /// Begins to receive a chunk.
    pub(super) fn begin(&mut self, socket: BorrowedFd<'_>) {
        if mem::take(&mut self.expects_another_socket) {
            let cookie = socket_cookie(socket).ok();
            let is_same = cookie.is_some() && cookie == self.cookie;
            if !is_same || has_upper_protocol(socket).unwrap_or(true) {
                self.source = source_for(socket, &self.options);
            }
            self.cookie = cookie;
            self.is_blocking = endpoint::is_blocking(socket);
        }
        let plan = match self.options.forced {
            Some(forced) if zero_copy_receive_enabled() => forced,
            _ => plan_receive(&self.source.plan_input(), &self.source.support),
        };
        self.transfer.begin(plan);
    }

    /// Returns the bytes that were received.
    pub(super) fn take_chunk(&mut self) -> Chunk {
        Chunk::new(self.source.take_chunk())
    }

    pub(super) fn try_receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Chunk>, Error> {
        self.begin(socket);
        loop {
            match self.transfer.step(&mut self.source, socket, Waiting::Not)? {
                ChunkProgress::Moved | ChunkProgress::FellBack => {}
                ChunkProgress::Done => return Ok(Some(self.take_chunk())),
                ChunkProgress::Ended => return Ok(None),
                ChunkProgress::Blocked => return Err(self.transfer.would_block()),
            }
        }
    }

    pub(super) fn map_obstacle(&self, socket: BorrowedFd<'_>) -> Option<MapObstacle> {
        let (report, forced) = (self.transfer.report(), self.options.forced);
        obstacle::find(report, &self.source, forced, socket)
    }
}

/// Returns a source for a socket that nothing has been received from.
fn source_for(socket: BorrowedFd<'_>, options: &ReceiveOptions) -> MemorySource {
    // While fewer bytes than a chunk can have are in the queue, a receiver must not wait for more.
    let mark = options.low_water_mark.unwrap_or(0).min(options.chunk_bytes);
    if mark > 0 {
        // If it fails, for a descriptor that is not a socket, receiving fails, too.
        let _ = set_low_water_mark(socket, mark);
    }
    let is_tcp = socket_protocol(socket).is_ok_and(|it| it == Some(ipproto::TCP));
    let mut source = MemorySource::new(is_tcp, options.chunk_bytes, options.max_windows, mark);
    source.not_a_stream = endpoint::check_stream_socket(socket).err();
    source
}
