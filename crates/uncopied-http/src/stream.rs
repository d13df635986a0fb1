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
use tokio::runtime::Handle;
use tokio::task::{JoinHandle, coop};
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
    /// Why a file's bytes could not be sent. Whatever was written after that would land inside them.
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

/// A file's bytes on their way.
#[derive(Debug)]
struct Sending {
    mapping: FileMapping,
    transfer: Transfer,
    loading: Option<JoinHandle<()>>,
    /// Partial packets are held back until the end.
    is_corked: bool,
}

/// So many bytes cost one unit of the task's budget. tokio gives a task 128 units each time that it is
/// polled, and has every socket answer [`Poll::Pending`] once they are used up: after 4 MiB the task
/// gives way to others, so that one fast peer cannot hold the thread.
///
/// The budget is the task's, and not a count of the stream's own, because hyper goes on to its next
/// response when a write is pending, and would write again at once.
const BYTES_PER_UNIT: usize = 32 << 10;

/// From this many bytes on, a file's bytes are sent corked (`tcp(7)`: TCP_CORK), in whole packets up to the
/// last. `sendfile` takes them 64 KiB at a time, and where the socket is full in between, the rest of a
/// packet would go by itself. Runs apart in time, each against nginx: about a tenth less CPU at 16 MiB, some at
/// 1 MiB, no gain to be told from noise at 256 KiB.
const CORKED: usize = 512 << 10;

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

    /// Writes the slices up to the first that lies in the arena; that one's bytes go by themselves.
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
        let (plain, found) = split_at_file(slices);
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
        match self.poll_send_file(cx, found) {
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

    fn poll_send_file(&mut self, cx: &mut Context<'_>, found: InFile) -> Poll<io::Result<usize>> {
        let mut sending = self.sending_of(found);
        let sent = self.poll_steps(cx, &mut sending);
        let is_over =
            matches!(sent, Poll::Ready(Err(_))) || sending.transfer.remaining() == Some(0);
        self.sending = Some(sending);
        if is_over {
            self.end_sending();
        }
        sent
    }

    /// The transfer of these bytes: the one under way, if it stands exactly here.
    fn sending_of(&mut self, found: InFile) -> Box<Sending> {
        let InFile {
            mapping,
            offset,
            len,
        } = found;
        let is_this = |sending: &mut Box<Sending>| {
            Arc::ptr_eq(sending.mapping.file(), mapping.file())
                && sending.transfer.offset() == offset
                && sending.transfer.remaining() == Some(len as u64)
        };
        if let Some(sending) = self.sending.take_if(is_this) {
            return sending;
        }
        self.end_sending();
        let is_corked = len >= CORKED && self.set_cork(true);
        let plan = self.plan(&mapping);
        let transfer =
            Transfer::new(offset, Length::Exact(len as u64), plan).with_mapping(mapping.clone());
        Box::new(Sending {
            mapping,
            transfer,
            loading: None,
            is_corked,
        })
    }

    /// Forgets the transfer under way, and sends what was held back for it.
    fn end_sending(&mut self) {
        if self.sending.take().is_some_and(|sending| sending.is_corked) {
            self.set_cork(false);
        }
    }

    /// Answers whether the socket now does as told. Only TCP knows of it.
    fn set_cork(&self, on: bool) -> bool {
        match &self.socket {
            Socket::Tcp(socket) => rustix::net::sockopt::set_tcp_cork(socket, on).is_ok(),
            Socket::Unix(_) => false,
        }
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
            if sending.poll_resident(cx).is_pending() {
                self.push();
                return Poll::Pending;
            }
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
                    self.count(cx, mechanism, (error.moved() - before) as usize);
                    return Poll::Ready(Err(error.into()));
                }
                Ok(_) => {
                    let moved = (sending.transfer.report().bytes() - before) as usize;
                    sending.note_refusals();
                    if moved > 0 {
                        self.count(cx, mechanism, moved);
                        return Poll::Ready(Ok(moved));
                    }
                }
            }
        }
    }

    /// Sends at once what was held back for the bytes of a file to share its packet: the disk takes
    /// its time.
    fn push(&self) {
        if let Socket::Tcp(socket) = &self.socket {
            // Setting it pushes, set or not (`tcp(7)`). A refusal costs 200 ms, not a byte.
            let _ = socket.set_nodelay(true);
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
        if self.loading.is_none() {
            let offset = self.transfer.offset();
            let left = self.transfer.remaining().unwrap_or(u64::MAX);
            let wanted = offset..offset.saturating_add(left);
            let Some(cold) = residency::cold_part(&self.mapping, wanted) else {
                return Poll::Ready(());
            };
            let mapping = self.mapping.clone();
            let load = move || residency::load_mapping(&mapping, cold);
            let Ok(runtime) = Handle::try_current() else {
                // Outside of a runtime there is no pool: the disk is waited for here.
                load();
                return Poll::Ready(());
            };
            self.loading = Some(runtime.spawn_blocking(load));
        }
        if let Some(loading) = &mut self.loading {
            // A load that was cut off, by the runtime's end, leaves the step to wait for the disk.
            let _ = ready!(Pin::new(loading).poll(cx));
            self.loading = None;
        }
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

/// A slice of a mapped file.
struct InFile {
    mapping: FileMapping,
    /// Where it begins, in bytes of the file.
    offset: u64,
    len: usize,
}

/// The slices before the first that is a file's, and that one.
fn split_at_file<'a, 'b>(slices: &'a [IoSlice<'b>]) -> (&'a [IoSlice<'b>], Option<InFile>) {
    for (at, slice) in slices.iter().enumerate() {
        if let Some(Located::File { mapping, offset }) = locate(slice) {
            let len = slice.len();
            let found = InFile {
                mapping,
                offset,
                len,
            };
            return (&slices[..at], Some(found));
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
