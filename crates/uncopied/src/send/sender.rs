//! The simple API for memory: send it to a socket, and learn when it is free again.

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use super::{Channel, SendOptions, Sent};
use crate::arena::Memory;
use crate::driver;
use crate::error::Error;
use crate::policy::Driver;
use crate::report::Report;

/// A connected stream socket, TCP or Unix, that a [`Sender`] can own. Because the sender owns it,
/// it knows when the socket is closed.
pub trait StreamSocket: AsFd + 'static {
    /// What waits for the socket.
    const DRIVER: Driver = Driver::Caller;
}

impl StreamSocket for std::net::TcpStream {}
impl StreamSocket for std::os::unix::net::UnixStream {}
impl StreamSocket for OwnedFd {}

#[cfg(feature = "tokio")]
impl StreamSocket for tokio::net::TcpStream {
    const DRIVER: Driver = Driver::Tokio;
}

#[cfg(feature = "tokio")]
impl StreamSocket for tokio::net::UnixStream {
    const DRIVER: Driver = Driver::Tokio;
}

/// Sends memory to a stream socket without copying it: [pages](crate::arena::Pages), or a part of a
/// [region](crate::arena::Region).
///
/// Each send returns as soon as the socket has accepted the bytes. Its
/// [`Completion`](crate::Completion) reports when the pages are free. The pages are kept for as
/// long as the kernel reads them, even if the completion, the sender, the socket or a waiting
/// future is dropped.
///
/// ```
/// use std::net::{TcpListener, TcpStream};
/// use uncopied::Sender;
/// use uncopied::arena::PageBuffer;
///
/// # let listener = TcpListener::bind("127.0.0.1:0")?;
/// # let address = listener.local_addr()?;
/// let mut sender = Sender::new(TcpStream::connect(address)?);
/// # let _peer = listener.accept()?;
/// let pages = PageBuffer::copy_from_slice(b"hello")?.freeze();
/// let sent = sender.send(pages)?;
/// println!("{}", sent.report());
/// let outcome = sent.completion().wait(None)?;
/// println!("free after {:?}, {} bytes copied", outcome.elapsed, outcome.copied);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # What else may use the socket
///
/// It can be read from as usual, by [`get_ref`](Self::get_ref), and written to between two sends.
/// No other code may use `MSG_ZEROCOPY` on it, or read its error queue.
///
/// # Dropping it
///
/// What has been sent still reaches the peer. If memory is in flight, a thread of this library
/// closes the connection once the peer has received it; if the peer receives nothing for a minute,
/// the connection is reset.
pub struct Sender<S> {
    channel: Channel,
    socket: S,
}

impl<S: StreamSocket> Sender<S> {
    /// A sender to this socket, with the default [options](SendOptions).
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self::with(socket, SendOptions::default())
    }

    /// A sender to this socket.
    #[must_use]
    pub fn with(socket: S, options: SendOptions) -> Self {
        let channel = Channel::new(&socket, S::DRIVER, options);
        Self { channel, socket }
    }

    /// Sends all of these bytes, and waits until the socket has accepted them, which is before the
    /// peer has received them. The socket may be blocking or not. Its send timeout (`SO_SNDTIMEO`)
    /// applies.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). The error says how many bytes the socket had accepted;
    /// their pages are kept for as long as the kernel reads them.
    pub fn send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.send_parts([memory])
    }

    /// Sends several parts, one after the other, as if they were one. `send_zc` sends up to 64 of
    /// them in one call.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn send_parts(
        &mut self,
        parts: impl IntoIterator<Item = impl Into<Memory>>,
    ) -> Result<Sent, Error> {
        let parts = parts.into_iter().map(Into::into).collect();
        let (mut transfer, sink) = self.channel.transfer(parts);
        driver::blocking::send(&mut transfer, sink, self.socket.as_fd())?;
        Ok(transfer.into())
    }

    /// As [`send`](Self::send), on tokio. The socket can be read from and written to as usual
    /// between two sends.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the send. The bytes that the socket has accepted still reach the
    /// peer, which cannot tell that more were to come: close the connection. Their pages are kept
    /// for as long as the kernel reads them. [`report`](Self::report) counts them, except for at
    /// most the last 2 MiB.
    #[cfg(feature = "tokio")]
    pub async fn send_tokio(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error>
    where
        S: driver::tokio::Socket,
    {
        let parts = vec![memory.into()];
        let (mut transfer, sink) = self.channel.transfer(parts);
        driver::tokio::send(&mut transfer, sink, &self.socket).await?;
        Ok(transfer.into())
    }

    /// Makes one try to send these bytes, without waiting: for event loops of your own. The result
    /// says how many of them the socket accepted, from the first on; 0 if it is full, or if nothing
    /// more may be [in flight](crate::LimitAction::Wait).
    ///
    /// The socket must be non-blocking: `vmsplice` waits for a blocking one.
    ///
    /// An event loop calls [`reap`](Self::reap) when the socket reports an error (`EPOLLERR`): a
    /// notification looks like that.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn try_send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.channel.try_send(memory, &self.socket)
    }

    /// Processes the notifications that have arrived, which completes their sends. A
    /// [`Completion`](crate::Completion) does this itself when it is polled or waited for.
    /// Notifications of `send_zc` arrive by a ring instead: its completions and tokio process them.
    ///
    /// Returns how many sends the socket's error queue completed.
    pub fn reap(&self) -> usize {
        self.channel.reap()
    }

    /// How many bytes are in flight, counted by whole pages.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.channel.in_flight_bytes()
    }

    /// What this sender has sent in total, by mechanism, and how much of it the kernel is known to
    /// have copied. Of the fallbacks, the first of each kind.
    #[must_use]
    pub fn report(&self) -> Report {
        self.channel.report()
    }

    /// The socket.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.socket
    }

    /// Returns the socket. This library tracks what is still in flight, by a descriptor of its own.
    /// If the socket is closed before all of it is free, the peer sees the close only then.
    ///
    /// If something was sent by `MSG_ZEROCOPY`, no other sender can use it on this socket: the
    /// kernel's numbering of sends continues where this sender stopped.
    #[must_use]
    pub fn into_inner(self) -> S {
        let Self { channel, socket } = self;
        channel.leave_open();
        socket
    }
}

impl<S: AsFd> fmt::Debug for Sender<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender")
            .field("socket", &self.socket.as_fd())
            .field("in_flight_bytes", &self.channel.in_flight_bytes())
            .finish_non_exhaustive()
    }
}
