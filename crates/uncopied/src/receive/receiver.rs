//! The simple API for receiving: chunks of bytes that were not copied, where that is possible.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use super::obstacle::{self, MapObstacle};
use super::{Chunk, ReceiveOptions};
use crate::driver;
use crate::endpoint::{self, IpAddresses, StreamSocket};
use crate::error::Error;
use crate::mechanism::socket_to_memory::MemorySource;
use crate::policy::{Plan, plan_receive, zero_copy_receive_enabled};
use crate::report::Report;
use crate::sys::set_low_water_mark;
use crate::transfer::{ReceiveProgress, ReceiveTransfer};

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
        let mut transfer = ReceiveTransfer::new(self.core.plan());
        let socket = self.socket.as_fd();
        let has_chunk = driver::blocking::receive(&mut transfer, &mut self.core.source, socket)?;
        Ok(has_chunk.then(|| self.core.take_chunk()))
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
        &self.core.source.report
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
    /// receives from that one.
    pub fn get_mut(&mut self) -> &mut S {
        self.core.source.expects_another_socket = true;
        &mut self.socket
    }

    /// Returns the socket.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.socket
    }
}

impl<S: AsFd> fmt::Debug for Receiver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("socket", &self.socket.as_fd())
            .field("report", &self.core.source.report)
            .finish_non_exhaustive()
    }
}

/// What the receivers of blocking code and of tokio have in common.
pub(super) struct Core {
    forced: Option<Plan>,
    pub(super) source: MemorySource,
}

impl Core {
    pub(super) fn new(socket: BorrowedFd<'_>, options: ReceiveOptions) -> Self {
        if let Some(bytes) = options.low_water_mark {
            // If it fails, for a descriptor that is not a socket, receiving fails, too.
            let _ = set_low_water_mark(socket, bytes);
        }
        let mut source = MemorySource::new(
            IpAddresses::of(socket).is_connected(),
            options.chunk_bytes,
            options.max_windows,
            options.low_water_mark.unwrap_or(0),
        );
        source.not_a_stream = endpoint::check_stream_socket(socket).err();
        Self {
            forced: options.forced,
            source,
        }
    }

    /// Returns the plan for the next chunk.
    pub(super) fn plan(&self) -> Plan {
        match self.forced {
            Some(forced) if zero_copy_receive_enabled() => forced,
            _ => plan_receive(&self.source.plan_input(), &self.source.support),
        }
    }

    /// Returns the bytes that were received.
    pub(super) fn take_chunk(&mut self) -> Chunk {
        Chunk::new(self.source.take_chunk())
    }

    pub(super) fn try_receive(&mut self, socket: BorrowedFd<'_>) -> Result<Option<Chunk>, Error> {
        let mut transfer = ReceiveTransfer::new(self.plan());
        loop {
            match transfer.step(&mut self.source, socket, false)? {
                ReceiveProgress::Moved | ReceiveProgress::FellBack => {}
                ReceiveProgress::Done => return Ok(Some(self.take_chunk())),
                ReceiveProgress::Ended => return Ok(None),
                ReceiveProgress::Blocked => return Err(transfer.would_block()),
            }
        }
    }

    pub(super) fn map_obstacle(&self, socket: BorrowedFd<'_>) -> Option<MapObstacle> {
        obstacle::find(&self.source, self.forced, socket)
    }
}
