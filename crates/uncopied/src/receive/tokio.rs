//! Receiving on tokio.

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use super::receiver::Core;
use super::{Chunk, MapObstacle, ReceiveFile, ReceiveOptions};
use crate::driver;
use crate::driver::tokio::ReadSocket;
use crate::error::{Error, ErrorKind};
use crate::mechanism::MAX_STEP_BYTES;
use crate::policy::{Direction, Length};
use crate::report::Report;

/// Receives from a tokio socket into a file, a pipe or a device with the best mechanism that works.
///
/// A file is written from its start, and is not truncated. Its own position is neither used nor
/// changed. With [`Length::Exact`], bytes of the stream after the length stay in the socket.
///
/// ```no_run
/// use std::fs::File;
/// use tokio::net::TcpStream;
/// use uncopied::policy::Length;
///
/// # async fn receive() -> Result<(), Box<dyn std::error::Error>> {
/// let socket = TcpStream::connect("192.0.2.1:9000").await?;
/// let file = File::create("video.mp4")?;
/// let report = uncopied::tokio::receive_file(&socket, &file, Length::UntilEof).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// See [`ErrorKind`]. The error says how many bytes are in the sink.
///
/// # Cancellation
///
/// See [`ReceiveFile::from_tokio`].
pub async fn receive_file(
    socket: &impl ReadSocket,
    file: &impl AsFd,
    length: Length,
) -> Result<Report, Error> {
    let receive = ReceiveFile::new(file).length(length);
    receive.from_tokio(socket).await
}

/// Receives from a tokio socket, without copying the bytes where that is possible. This is
/// [`uncopied::Receiver`](crate::Receiver) for tokio: what its documentation says about the socket
/// and about dropping the receiver applies here, too.
///
/// ```
/// use tokio::net::{TcpListener, TcpStream};
/// use uncopied::tokio::Receiver;
///
/// # use tokio::io::AsyncWriteExt;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # TcpStream::connect(listener.local_addr()?).await?.write_all(b"hello").await?;
/// let mut receiver = Receiver::new(listener.accept().await?.0);
/// while let Some(chunk) = receiver.receive().await? {
///     println!("{} bytes mapped, {} copied", chunk.mapped_bytes(), chunk.copied_bytes());
/// }
/// # Ok(())
/// # }
/// ```
pub struct Receiver<S> {
    core: Core,
    socket: S,
    /// How many bytes were returned since this task last let others run.
    since_yield: usize,
}

impl<S: ReadSocket> Receiver<S> {
    /// Creates a receiver for this socket, with the default [options](ReceiveOptions).
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self::with(socket, ReceiveOptions::default())
    }

    /// Creates a receiver for this socket, with these options.
    #[must_use]
    pub fn with(socket: S, options: ReceiveOptions) -> Self {
        let core = Core::new(socket.read_fd(), options);
        Self {
            core,
            socket,
            since_yield: 0,
        }
    }

    /// Waits until bytes have arrived, and returns them. Returns `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. Bytes that arrived before an error are returned first.
    ///
    /// # Cancellation
    ///
    /// If the future is dropped, nothing has been received: no byte is lost.
    pub async fn receive(&mut self) -> Result<Option<Chunk>, Error> {
        if self.since_yield >= MAX_STEP_BYTES {
            self.since_yield = 0;
            tokio::task::yield_now().await;
        }
        let core = &mut self.core;
        core.begin(self.socket.read_fd());
        if !driver::tokio::receive(&mut core.transfer, &mut core.source, &self.socket).await? {
            return Ok(None);
        }
        let chunk = core.take_chunk();
        self.since_yield += chunk.len();
        Ok(Some(chunk))
    }

    /// Tries once to receive, without waiting. Returns `None` at the end of the stream.
    ///
    /// # Errors
    ///
    /// The errors of [`receive`](Self::receive), and [`ErrorKind::WouldBlock`] if no bytes have
    /// arrived.
    pub fn try_receive(&mut self) -> Result<Option<Chunk>, Error> {
        let (core, descriptor) = (&mut self.core, self.socket.read_fd());
        let received = self
            .socket
            .if_readable(|| match core.try_receive(descriptor) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                other => Ok(other),
            });
        // tokio returns `WouldBlock` itself while it knows that the socket has no bytes.
        received.unwrap_or_else(|cause| {
            let kind = ErrorKind::WouldBlock;
            let error = Error::before_transfer(kind, None, Some(cause));
            Err(error.in_direction(Direction::SocketToMemory))
        })
    }

    /// Returns how many bytes were received in total, by mechanism. The bytes of `map_receive` are
    /// those that were mapped. If a mechanism fell back several times with the same errno, only the
    /// first time is listed.
    #[must_use]
    pub fn report(&self) -> &Report {
        self.core.transfer.report()
    }

    /// Returns why bytes were copied that could have been mapped otherwise: see
    /// [`uncopied::Receiver::map_obstacle`](crate::Receiver::map_obstacle).
    #[must_use]
    pub fn map_obstacle(&self) -> Option<MapObstacle> {
        self.core.map_obstacle(self.socket.read_fd())
    }

    /// Returns a reference to the socket.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.socket
    }

    /// Returns a mutable reference to the socket, for example to write to it: see
    /// [`uncopied::Receiver::get_mut`](crate::Receiver::get_mut).
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

impl<S: ReadSocket> fmt::Debug for Receiver<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver")
            .field("socket", &self.socket.read_fd())
            .field("report", self.report())
            .finish_non_exhaustive()
    }
}
