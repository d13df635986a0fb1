//! The connection under hyper or axum: ordinary reads and writes, except that bytes which live in the
//! arena are sent from the file that they belong to.

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use uncopied::arena::{FileMapping, Located, locate};
use uncopied::plan::{Length, Mechanism, Plan};
use uncopied::{Errno, Progress, Side, Support, Transfer, residency, send_is_on, send_vectored};

use crate::activity::Activity;
use crate::totals::Totals;
use crate::watch::recognise;

/// How streams send.
#[derive(Clone, Debug, Default)]
pub struct Options {
    mechanisms: Option<Plan>,
    totals: Arc<Totals>,
}

impl Options {
    /// Forces these mechanisms for the bytes of files, in this order. An empty list leaves the choice
    /// to the stream: `sendfile`, then `splice`, then `copy`.
    #[must_use]
    pub fn mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.mechanisms = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Where the streams count what they send.
    #[must_use]
    pub fn totals(mut self, totals: Arc<Totals>) -> Self {
        self.totals = totals;
        self
    }
}

/// A TCP or Unix connection that hyper and axum take as it is, and that sends files by `sendfile`.
///
/// Every slice that it is given to write is looked up in the [arena](uncopied::arena). What lies in
/// a mapped file goes out from the file, by the mechanisms of the [`Options`]; everything else is
/// written as ever. What stands before a file's bytes, such as the head of a response, waits for
/// them to share the first packet.
///
/// A file that is not in the page cache is loaded on tokio's blocking pool; other connections of the
/// thread go on meanwhile.
///
/// # Stability of the bytes
///
/// See [`uncopied`]: a file's bytes may change until the peer has them.
pub struct Stream {
    socket: Socket,
    options: Options,
    activity: Option<Arc<Activity>>,
    sending: Option<Box<Sending>>,
    /// Bytes written since the task last gave way.
    burst: usize,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// A file's bytes on their way.
#[derive(Debug)]
struct Sending {
    mapping: FileMapping,
    transfer: Transfer,
    loading: Option<JoinHandle<()>>,
    /// The file's bytes before this offset have been loaded, or were found resident.
    resident_until: u64,
}

/// After so many bytes in a row the task gives way to others, so that one fast peer cannot hold the
/// thread.
const BURST: usize = 4 << 20;

/// How much of a file is made sure to be in the page cache at a time, in bytes.
const LOAD: u64 = 2 << 20;

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
            burst: 0,
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

    /// Writes the slices up to the first that lies in the arena; that one's bytes go by themselves.
    fn poll_send(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.burst >= BURST {
            self.burst = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let (plain, found) = split_at_arena(slices);
        let mut written = 0;
        if plain.iter().any(|slice| !slice.is_empty()) {
            written = ready!(self.poll_send_plain(cx, plain, found.is_some()))?;
            self.count(Mechanism::Copy, written);
            if written < plain.iter().map(|slice| slice.len()).sum() {
                return Poll::Ready(Ok(written));
            }
        }
        let Some((located, len)) = found else {
            return Poll::Ready(Ok(written));
        };
        match self.poll_send_file(cx, located, len) {
            Poll::Ready(Ok(sent)) => Poll::Ready(Ok(written + sent)),
            // What has been written must be told first; the next call meets the rest again.
            Poll::Pending | Poll::Ready(Err(_)) if written > 0 => Poll::Ready(Ok(written)),
            other => other,
        }
    }

    fn poll_send_plain(
        &self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
        before_file: bool,
    ) -> Poll<io::Result<usize>> {
        let more = before_file || slices.last().is_some_and(|last| recognise(last));
        let socket = self.as_fd();
        self.poll_when_writable(cx, || Ok(send_vectored(socket, slices, more)?))
    }

    fn poll_send_file(
        &mut self,
        cx: &mut Context<'_>,
        located: Located,
        len: usize,
    ) -> Poll<io::Result<usize>> {
        let mut sending = self.sending_of(located, len);
        let sent = self.poll_steps(cx, &mut sending);
        if sending.transfer.remaining() != Some(0) {
            self.sending = Some(sending);
        }
        sent
    }

    /// The transfer of these bytes: the one under way, if it stands exactly here.
    fn sending_of(&mut self, located: Located, len: usize) -> Box<Sending> {
        if let Some(sending) = self.sending.take()
            && Arc::ptr_eq(sending.mapping.file(), located.mapping.file())
            && sending.transfer.offset() == located.offset
            && sending.transfer.remaining() == Some(len as u64)
        {
            return sending;
        }
        let plan = self.plan(&located.mapping);
        let transfer = Transfer::new(located.offset, Length::Exact(len as u64), plan)
            .with_mapping(located.mapping.clone());
        Box::new(Sending {
            mapping: located.mapping,
            transfer,
            loading: None,
            resident_until: located.offset,
        })
    }

    fn plan(&self, mapping: &FileMapping) -> Plan {
        if !send_is_on() {
            return Plan::copying();
        }
        let best = [Mechanism::Sendfile, Mechanism::Splice, Mechanism::Copy];
        let plan = self.options.mechanisms.unwrap_or_else(|| Plan::of(&best));
        let support = Support::of_process();
        plan.without(|it| support.refusal(it).is_some() || mapping.has_refused(it))
    }

    /// Steps until bytes have moved.
    fn poll_steps(
        &mut self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(sending.poll_resident(cx));
            let (mechanism, before) = (
                sending.transfer.mechanism(),
                sending.transfer.report().bytes(),
            );
            let socket = self.as_fd();
            let step = || match sending.transfer.step(sending.mapping.file(), socket) {
                Ok(Progress::Blocked(Side::Sink)) => Err(io::ErrorKind::WouldBlock.into()),
                other => Ok(other),
            };
            match ready!(self.poll_when_writable(cx, step))? {
                // Its count so far is in the report: bytes before the failure belong to this call.
                Err(error) => {
                    self.count(mechanism, (error.moved() - before) as usize);
                    return Poll::Ready(Err(error.into()));
                }
                Ok(_) => {
                    let moved = (sending.transfer.report().bytes() - before) as usize;
                    sending.note_refusals();
                    if moved > 0 {
                        self.count(mechanism, moved);
                        return Poll::Ready(Ok(moved));
                    }
                }
            }
        }
    }

    fn count(&mut self, mechanism: Mechanism, bytes: usize) {
        self.burst += bytes;
        self.options.totals.add(mechanism, bytes as u64);
    }

    fn note_write(&self, write: &Poll<io::Result<usize>>) {
        let Some(activity) = &self.activity else {
            return;
        };
        match write {
            Poll::Ready(Ok(_)) => activity.sent(),
            Poll::Pending if self.is_waiting_for_peer() => activity.blocked(),
            Poll::Pending | Poll::Ready(Err(_)) => {}
        }
    }

    fn is_waiting_for_peer(&self) -> bool {
        self.sending
            .as_ref()
            .is_none_or(|sending| sending.loading.is_none())
    }
}

impl Sending {
    /// Ready once the next bytes are in the page cache, as far as anybody can tell.
    fn poll_resident(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let offset = self.transfer.offset();
        if let Some(loading) = &mut self.loading {
            // A load that was cut off, by the runtime's end, leaves the step to wait for the disk.
            let _ = ready!(Pin::new(loading).poll(cx));
            self.loading = None;
        }
        if offset < self.resident_until {
            return Poll::Ready(());
        }
        let len = self
            .transfer
            .remaining()
            .map_or(LOAD, |left| left.min(LOAD));
        self.resident_until = offset + len;
        if residency::is_mapping_resident(&self.mapping, offset, len) {
            return Poll::Ready(());
        }
        let file = Arc::clone(self.mapping.file());
        let load = move || residency::load(&*file, offset, len);
        let loading = self.loading.insert(tokio::task::spawn_blocking(load));
        let _ = ready!(Pin::new(loading).poll(cx));
        self.loading = None;
        Poll::Ready(())
    }

    /// What the file's own kind cannot do, later transfers need not try.
    fn note_refusals(&self) {
        for step in self.transfer.report().steps_down() {
            if matches!(step.errno, Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) {
                self.mapping.note_refusal(step.from);
            }
        }
    }
}

/// The slices before the first that lies in the arena, and that one.
fn split_at_arena<'a, 'b>(
    slices: &'a [IoSlice<'b>],
) -> (&'a [IoSlice<'b>], Option<(Located, usize)>) {
    for (at, slice) in slices.iter().enumerate() {
        if let Some(located) = locate(slice) {
            return (&slices[..at], Some((located, slice.len())));
        }
    }
    (slices, None)
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

    fn poll_flush(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.burst = 0;
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
