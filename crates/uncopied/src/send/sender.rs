//! The paved path for memory: these pages to that socket, and when are they free?

use std::fmt;
use std::os::fd::{AsFd, OwnedFd};

use super::{Channel, SendOptions, Sent};
use crate::arena::Memory;
use crate::driver;
use crate::error::Error;
use crate::policy::Driver;
use crate::report::Report;

/// A connected stream socket, TCP or Unix, that a [`Sender`] can be made of. It goes with the sender,
/// which therefore knows when it is closed.
pub trait StreamSocket: AsFd + 'static {
    /// Who waits for it.
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

/// A stream socket that memory is sent to by lending it.
///
/// What is sent is [pages](crate::arena::Pages), or a part of a [region](crate::arena::Region).
///
/// Each send answers as soon as the socket has taken the bytes, with a [`Completion`] that tells when the
/// pages are free. The pages are kept for as long as the kernel reads them, whatever becomes of the
/// completion, the sender, the socket, or the future that waited.
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
/// Reading, as ever, by [`get_ref`](Self::get_ref). Other writes go between two sends. Nobody else may
/// use `MSG_ZEROCOPY` on it, or read its error queue.
///
/// # Dropping it
///
/// What has been sent goes out. If memory is still lent, the connection is closed once the peer has
/// taken it, by a thread of the library's; a peer that takes nothing for a minute is cut off.
pub struct Sender<S> {
    channel: Channel,
    socket: S,
}

impl<S: StreamSocket> Sender<S> {
    /// A sender to this socket, with the usual [options](SendOptions).
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

    /// Sends all of these bytes, and waits until the socket has taken them; not until they have arrived.
    /// The socket may be blocking or not, and its send time-out is obeyed.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). The error tells how many bytes the socket had taken; their
    /// pages are kept for as long as they must be.
    pub fn send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.send_parts([memory])
    }

    /// Sends all of several parts, one after the other, as if they were one. `send_zc` takes up to 64 of
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

    /// As [`send`](Self::send), on tokio. The socket can be read from and written to as ever between two
    /// sends.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the send. The bytes that the socket has taken go out, and their pages are
    /// kept for as long as they must be; the peer cannot tell that there were to be more: close the
    /// connection. [`report`](Self::report) counts them, except for at most the last 2 MiB.
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

    /// Makes one try to send these bytes, without waiting: for event loops of your own. The answer tells
    /// how many the socket took, from the first on; 0 if it is full, or nothing more may be
    /// [lent](crate::LimitAction::Wait).
    ///
    /// The socket must be non-blocking: by `vmsplice` a blocking one is waited for.
    ///
    /// An event loop calls [`reap`](Self::reap) when the socket reports an error (`EPOLLERR`): that is
    /// what a notice looks like.
    ///
    /// # Errors
    ///
    /// As [`send`](Self::send).
    pub fn try_send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.channel.try_send(memory, &self.socket)
    }

    /// Takes in the notices that have come, which settles their completions. Completions that are asked
    /// or waited for do this by themselves. Those of `send_zc` come by a ring instead: they are taken in
    /// by its completions, and by tokio.
    ///
    /// Answers how many sends on the socket's error queue they settled.
    pub fn reap(&self) -> usize {
        self.channel.reap()
    }

    /// How many bytes are lent, counted by whole pages.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.channel.in_flight_bytes()
    }

    /// What this sender has sent in all, by mechanism, and how much of it the kernel is known to have
    /// copied after all. Of its steps down, the first of each kind.
    #[must_use]
    pub fn report(&self) -> Report {
        self.channel.report()
    }

    /// The socket.
    #[must_use]
    pub fn get_ref(&self) -> &S {
        &self.socket
    }

    /// The socket back. What is still lent is looked after, by a descriptor of the library's own: if the
    /// socket is closed before it has come back, the peer sees that only then.
    ///
    /// If something was sent by `MSG_ZEROCOPY`, no other sender can send by it on this socket again:
    /// the kernel's numbers go on where this one stopped.
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
