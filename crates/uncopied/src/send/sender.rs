//! The simple API for memory: send it to a socket, and learn when it can be reused.

use std::fmt;
use std::os::fd::AsFd;

use super::{Channel, SendOptions, Sent};
use crate::arena::Memory;
use crate::driver;
use crate::endpoint::StreamSocket;
use crate::error::Error;
use crate::policy::Driver;
use crate::report::Report;

/// Sends memory to a stream socket without copying it: `Bytes`, a `Vec<u8>` or other
/// [bytes](Memory#bytes-that-you-already-have), [pages](crate::arena::Pages), or a part of a
/// [region](crate::arena::Region).
///
/// Each send returns as soon as the socket has accepted the bytes. Its
/// [`Completion`](crate::Completion) reports when the kernel is done with the memory. The memory is
/// kept for as long as the kernel reads it, even if the completion, the sender, the socket or a
/// waiting future is dropped.
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
/// The socket can be read from at any time, through [`get_ref`](Self::get_ref) or
/// [`get_mut`](Self::get_mut), and be written to between two sends. Code outside this library must
/// not use `MSG_ZEROCOPY` on it, change its `SO_ZEROCOPY` option, or read its error queue.
///
/// The kernel numbers the `MSG_ZEROCOPY` sends of a socket, and its notifications refer to these
/// numbers. So the first sender that uses `MSG_ZEROCOPY` claims the socket. Two kinds of
/// senders cannot use `MSG_ZEROCOPY`:
///
/// - every other sender for a socket that has been claimed, for example one that owns a clone of
///   the socket, in this process or in another one;
/// - the copy of a sender that a forked child has inherited, even if the parent has not sent
///   anything.
///
/// These senders copy instead, and report `EBUSY` as the reason. If `copy` is not among their
/// [forced mechanisms](SendOptions::force_mechanisms), their sends fail with
/// [`ErrorKind::Unsupported`](crate::ErrorKind::Unsupported).
///
/// # Dropping it
///
/// Bytes that the socket has accepted still reach the peer. Clones of the socket stay usable.
///
/// If memory is in flight, the library keeps a duplicate of the socket's descriptor until the
/// kernel is done with the memory. So the peer sees the end of the stream only after it has
/// acknowledged every byte, which it may delay by up to 200 ms. To end the stream at once, shut the
/// socket down for writing before you drop the sender. The same applies to bytes that were sent
/// with `vmsplice`, as long as they are in the socket's queue.
///
/// If the peer acknowledges nothing for a minute, and no other descriptor of the socket is open in
/// this process, the library resets the connection, so that the peer cannot keep the memory in
/// flight. If the program has no access to `/proc`, the library cannot see whether there is such a
/// descriptor. It then assumes that there is none, and resets the connection.
///
/// # Exec and exit
///
/// While memory is in flight, the process can end, be killed, or run other programs in child
/// processes. None of that waits for the peer, and the bytes that the socket has accepted still
/// reach it. To replace the process with another program, use [`exec`](crate::exec()): if
/// `execve(2)` is called in a thread that has sent memory, it may wait for the peer indefinitely,
/// and no signal ends the wait.
pub struct Sender<S> {
    channel: Channel,
    socket: S,
}

impl<S: StreamSocket> Sender<S> {
    /// Creates a sender for this socket, with the default [options](SendOptions).
    #[must_use]
    pub fn new(socket: S) -> Self {
        Self::with(socket, SendOptions::default())
    }

    /// Creates a sender for this socket, with these options.
    #[must_use]
    pub fn with(socket: S, options: SendOptions) -> Self {
        let channel = Channel::of_owned(&socket, Driver::Caller, options);
        Self { channel, socket }
    }

    /// Sends all of these bytes, and waits until the socket has accepted them. The peer may receive
    /// them later. The socket may be blocking or non-blocking. The send timeout of the socket
    /// (`SO_SNDTIMEO`) applies.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). The error says how many bytes the socket had accepted.
    /// Their memory is kept for as long as the kernel reads it.
    pub fn send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.send_parts([memory])
    }

    /// Sends several parts, one after the other, in one send. The mechanism `send_zc` sends up to
    /// 64 parts per call.
    ///
    /// # Errors
    ///
    /// The errors of [`send`](Self::send).
    pub fn send_parts(
        &mut self,
        parts: impl IntoIterator<Item = impl Into<Memory>>,
    ) -> Result<Sent, Error> {
        let parts = parts.into_iter().map(Into::into).collect();
        let (mut transfer, sink) = self.channel.transfer(parts);
        driver::blocking::send(&mut transfer, sink, self.socket.as_fd())?;
        Ok(transfer.into())
    }

    /// Tries once to send these bytes, at most 2 MiB, without waiting, for event loops of your own.
    /// The result says how many bytes the socket accepted, counted from the first. If these are not
    /// all, call this again at once with exactly the rest, which is then sent according to the same
    /// plan. Only the error [`WouldBlock`](crate::ErrorKind::WouldBlock) means that the socket is
    /// full.
    ///
    /// The socket must be non-blocking, because sending with `vmsplice` would wait for a blocking
    /// one.
    ///
    /// The event loop must call [`reap`](Self::reap) when the socket reports an error (`EPOLLERR`),
    /// because that is how epoll reports a notification.
    ///
    /// # Errors
    ///
    /// The errors of [`send`](Self::send), and if the socket accepted no byte:
    ///
    /// - [`ErrorKind::WouldBlock`](crate::ErrorKind::WouldBlock): the socket is full.
    /// - [`ErrorKind::InFlightLimit`](crate::ErrorKind::InFlightLimit): no more bytes may be in
    ///   flight. This happens only with [`LimitAction::Wait`](crate::LimitAction::Wait).
    pub fn try_send(&mut self, memory: impl Into<Memory>) -> Result<Sent, Error> {
        self.channel.try_send(memory, &self.socket)
    }

    /// Processes the notifications that have arrived, and completes the sends that they belong to.
    /// A [`Completion`](crate::Completion) does this itself when it is polled or waited for. The
    /// notifications of `send_zc` arrive in an io_uring ring instead. They are processed by the
    /// completions of those sends, and by the next send of this thread.
    ///
    /// Returns how many sends were completed by the socket's error queue.
    pub fn reap(&self) -> usize {
        self.channel.reap()
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

    /// Returns a mutable reference to the socket. If it is replaced by another socket, the sender
    /// detects that, and copies instead of using `MSG_ZEROCOPY`.
    pub fn get_mut(&mut self) -> &mut S {
        self.channel.expect_another_socket();
        &mut self.socket
    }

    /// Returns the socket. The same applies to memory in flight as if the sender were
    /// [dropped](Self#dropping-it).
    ///
    /// If something was sent with `MSG_ZEROCOPY`, no other sender can use `MSG_ZEROCOPY` on this
    /// socket: the kernel does not restart its numbering of sends, and a new sender would not know
    /// the next number.
    #[must_use]
    pub fn into_inner(self) -> S {
        self.socket
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
