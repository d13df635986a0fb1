//! Sending files and memory on tokio.

use std::fmt;
use std::future::Future;
use std::io;
use std::ops::RangeBounds;
use std::os::fd::AsFd;

use super::{Channel, SendFile, SendOptions, Sent};
use crate::arena::Memory;
use crate::driver;
use crate::error::{Error, ErrorKind};
use crate::policy::Driver;
use crate::report::Report;

use crate::driver::tokio::Socket;

/// Sends a range of a file to a stream socket with the best mechanism that works.
///
/// `..` sends up to the end of the file. A range with an end sends exactly as many bytes as it
/// contains. The file's own position is neither used nor changed. If the file is not in the page
/// cache, a thread of tokio's blocking pool reads it, so that the event loop does not wait for the
/// disk.
///
/// ```no_run
/// use std::fs::File;
/// use tokio::net::TcpStream;
///
/// # async fn send() -> Result<(), Box<dyn std::error::Error>> {
/// let file = File::open("video.mp4")?;
/// let socket = TcpStream::connect("192.0.2.1:9000").await?;
/// let report = uncopied::tokio::send_file(&file, .., &socket).await?;
/// println!("{report}");
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// See [`ErrorKind`](crate::ErrorKind). The error says how many bytes the socket had accepted.
///
/// # Cancellation and stability of the bytes
///
/// See [`SendFile::to_tokio`] and [`send_file`](crate::send_file()).
pub async fn send_file(
    file: &impl AsFd,
    range: impl RangeBounds<u64>,
    socket: &impl Socket,
) -> Result<Report, Error> {
    SendFile::new(file).range(range).to_tokio(socket).await
}

/// Adds a method that sends a file to every [`Socket`].
pub trait SocketExt: Socket + Sized {
    /// Does the same as [`send_file`] with this socket.
    ///
    /// ```
    /// use std::fs::File;
    /// use tokio::net::UnixStream;
    /// use uncopied::tokio::SocketExt;
    ///
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let report = socket.send_file(&File::open("Cargo.toml")?, ..100).await?;
    /// assert_eq!(report.bytes(), 100);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). The error says how many bytes the socket had accepted.
    fn send_file(
        &self,
        file: &(impl AsFd + Sync),
        range: impl RangeBounds<u64>,
    ) -> impl Future<Output = Result<Report, Error>> {
        let send = SendFile::new(file).range(range);
        async move { send.to_tokio(self).await }
    }
}

impl<S: Socket> SocketExt for S {}

/// Sends memory to a tokio socket without copying it. This is [`uncopied::Sender`](crate::Sender)
/// for tokio: what its documentation says about the socket and about dropping the sender applies
/// here, too.
///
/// Since tokio mistakes a notification in the error queue of a socket for a broken connection,
/// `MSG_ZEROCOPY` is never used. Instead, all senders of a thread share an io_uring ring, and send
/// with `send_zc`.
///
/// ```
/// use tokio::net::{TcpListener, TcpStream};
/// use uncopied::arena::PageBuffer;
/// use uncopied::tokio::Sender;
///
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let listener = TcpListener::bind("127.0.0.1:0").await?;
/// # let address = listener.local_addr()?;
/// let mut sender = Sender::new(TcpStream::connect(address).await?);
/// # let _peer = listener.accept().await?;
/// let sent = sender.send(PageBuffer::copy_from_slice(b"hello")?.freeze()).await?;
/// let outcome = sent.into_completion().await;
/// println!("free after {:?}, {} bytes copied", outcome.elapsed, outcome.copied);
/// # Ok(())
/// # }
/// ```
pub struct Sender<S> {
    channel: Channel,
    socket: S,
}

impl<S: Socket> Sender<S> {
    /// Creates a sender for this socket, with the default [options](SendOptions).
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self::with(socket, SendOptions::default())
    }

    /// Creates a sender for this socket, with these options.
    #[must_use]
    pub fn with(socket: S, options: SendOptions) -> Self {
        let channel = Channel::of_owned(socket.socket_fd(), Driver::Tokio, options);
        Self { channel, socket }
    }

    /// Sends all of these bytes, and waits until the socket has accepted them. The peer may receive
    /// them later.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). The error says how many bytes the socket had accepted.
    /// Their memory is kept for as long as the kernel reads it.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the send. The bytes that the socket has accepted still reach the
    /// peer, which cannot know that more were to come, so close the connection. Their memory is
    /// kept for as long as the kernel reads it. [`report`](Self::report) counts these bytes, except
    /// for up to 2 MiB that were accepted last.
    pub async fn send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.send_parts([memory]).await
    }

    /// Sends several parts, one after the other, in one send. The mechanism `send_zc` sends up to
    /// 64 parts per call.
    ///
    /// # Errors and cancellation
    ///
    /// See [`send`](Self::send).
    pub async fn send_parts(
        &mut self,
        parts: impl IntoIterator<Item = impl Into<Memory>>,
    ) -> Result<Sent, Error> {
        let parts = parts.into_iter().map(Into::into).collect();
        let (mut transfer, sink) = self.channel.transfer(parts);
        driver::tokio::send(&mut transfer, sink, &self.socket).await?;
        Ok(transfer.into())
    }

    /// Tries once to send these bytes, at most 2 MiB, without waiting. The result says how many
    /// bytes the socket accepted, counted from the first. If these are not all, call this again at
    /// once with exactly the rest, which is then sent according to the same plan. Only the error
    /// [`WouldBlock`](ErrorKind::WouldBlock) means that the socket is full: to wait until it is
    /// writable, call `writable` of the [socket](Self::get_ref).
    ///
    /// # Errors
    ///
    /// The errors of [`send`](Self::send), and if the socket accepted no byte:
    ///
    /// - [`ErrorKind::WouldBlock`](crate::ErrorKind::WouldBlock): the socket is full.
    /// - [`ErrorKind::InFlightLimit`](crate::ErrorKind::InFlightLimit): no more bytes may be in
    ///   flight. This happens only with [`LimitAction::Wait`](crate::LimitAction::Wait).
    pub fn try_send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        let socket = self.socket.socket_fd();
        let channel = &mut self.channel;
        let sent = self
            .socket
            .if_writable(|| match channel.try_send(memory, socket) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    Err(io::ErrorKind::WouldBlock.into())
                }
                other => Ok(other),
            });
        // tokio returns `WouldBlock` itself while it knows that the socket is full.
        sent.unwrap_or_else(|cause| {
            let kind = ErrorKind::WouldBlock;
            Err(Error::before_transfer(kind, None, Some(cause)))
        })
    }

    /// Returns how many bytes are in flight. A page that is partly in flight counts as a whole
    /// page.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.channel.in_flight_bytes()
    }

    /// Returns how many bytes this sender has sent in total, by mechanism, and how many of them the
    /// kernel is known to have copied. If a mechanism fell back several times with the same errno,
    /// only the first time is listed.
    #[must_use]
    pub fn report(&self) -> Report {
        self.channel.report()
    }

    /// Returns a reference to the socket.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.socket
    }

    /// Returns a mutable reference to the socket, for example to read from it. If it is replaced by
    /// another socket, the sender sends to that one.
    pub fn get_mut(&mut self) -> &mut S {
        self.channel.expect_another_socket();
        &mut self.socket
    }

    /// Returns the socket. The same applies to memory in flight as if the sender were
    /// [dropped](crate::Sender#dropping-it).
    #[must_use]
    pub fn into_inner(self) -> S {
        self.socket
    }
}

impl<S: Socket> fmt::Debug for Sender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("socket", &self.socket.socket_fd())
            .field("in_flight_bytes", &self.channel.in_flight_bytes())
            .finish_non_exhaustive()
    }
}
