//! Response bodies made of files.

mod open;
mod part;
pub(crate) mod passthrough;

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use rustix::io::ReadWriteFlags;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

use crate::frame_watch::FrameWatch;
use crate::open_file::OpenFile;

pub use part::BodyPart;
use passthrough::{PassthroughProof, mark_frame};

/// A response body: nothing, bytes in memory, a range of a file, or a sequence of these.
///
/// Under a [`Stream`](crate::Stream), the file's bytes are sent with `sendfile`. The stream then
/// needs only the addresses of the body's frames, and nothing reads the memory behind them. The
/// body detects by itself whether this is the case. It reads the first few bytes from the file into
/// memory. If the stream is then asked to write from that same memory, nothing in between has
/// replaced the bytes, so the following frames can be slices of the mapped file. Behind any other
/// I/O object, under HTTP/2, or behind a layer that replaces the bytes (compression), every frame
/// is read from the file.
///
/// If the file turns out to be shorter than the range, the body ends with
/// [`io::ErrorKind::UnexpectedEof`], and hyper closes the connection.
///
/// # Stability of the bytes
///
/// If a program writes to the file before the peer has acknowledged the response, the peer may
/// receive the new bytes; see [`uncopied`].
///
/// The body cannot detect a layer that both *reads* the frames and passes them on unchanged, such
/// as one that computes a digest. That is sound, and the layer reads the right bytes, but slowly:
/// see [`FileMapping`](uncopied::arena::FileMapping#reading-the-bytes). Use
/// [`buffered`](Self::buffered) bodies with such a layer. If the layer reads bytes that are missing
/// because the file was truncated, the connection is closed before the response is complete.
///
/// A layer that *keeps* frames, to send them again or to write them to a file, as a cache does,
/// must get [`buffered`](Self::buffered) bodies. The kept frames would be slices of the mapped
/// file: they read as zeroes if the file has been truncated, and a system call such as `write(2)`
/// fails with `EFAULT` unless code has read them before.
#[derive(Debug, Default)]
pub struct FileBody {
    part: Option<BodyPart>,
    /// The parts after `part`. Most bodies have none, and for these nothing is allocated.
    #[expect(
        clippy::box_collection,
        reason = "keeps a body small, because bodies are moved often"
    )]
    rest: Option<Box<VecDeque<BodyPart>>>,
    remaining: u64,
    delivery: Delivery,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
}

/// How file data becomes frames. [`passthrough`] explains how a frame is marked and confirmed.
#[derive(Debug, Default)]
enum Delivery {
    /// No frame has been yielded. The first frame will be read from the file and marked.
    #[default]
    Unproven,
    /// A marked frame has been yielded. The next poll returns [`Poll::Pending`] once, so that the
    /// connection flushes that frame and the stream can confirm it.
    Flushing(PassthroughProof),
    /// A marked frame has been yielded, but the stream is not known to have received it unread.
    /// Until it is, further frames are read from the file and marked.
    Watching(PassthroughProof),
    /// Nothing is expected to read the frames, so they are slices of the mapped file. This stream
    /// sends nothing more if missing bytes are read nevertheless.
    Direct(FrameWatch),
    /// Every frame is read from the file.
    Buffered,
}

/// The maximum length of a frame that is read from a file.
const READ_FRAME_MAX_BYTES: u64 = 64 << 10;

/// The maximum length of the first frame, which is read from the file. It is as short as possible,
/// because its only purpose is to find out whether the stream gets it unread.
const FIRST_FRAME_MAX_BYTES: u64 = 64;

impl FileBody {
    /// Creates a body without bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Creates a body from bytes in memory.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self::from_part(BodyPart::Memory(bytes))
    }

    /// Creates a body that consists of the bytes `range` of `file`. To make a body from a file that
    /// std or tokio opened, use [`open`](Self::open).
    #[must_use]
    pub fn from_file(file: Arc<OpenFile>, range: Range<u64>) -> Self {
        Self::from_part(BodyPart::File(file, range))
    }

    fn from_part(part: BodyPart) -> Self {
        let remaining = part.len();
        Self {
            part: (remaining > 0).then_some(part),
            remaining,
            ..Self::default()
        }
    }

    /// Creates a body of several parts, one after the other.
    #[must_use]
    pub fn from_parts(parts: impl IntoIterator<Item = BodyPart>) -> Self {
        let mut parts = parts.into_iter().filter(|part| part.len() > 0);
        let part = parts.next();
        let rest: VecDeque<_> = parts.collect();
        let remaining = part
            .iter()
            .chain(&rest)
            .fold(0, |sum: u64, part| sum.saturating_add(part.len()));
        Self {
            part,
            rest: (!rest.is_empty()).then(|| Box::new(rest)),
            remaining,
            ..Self::default()
        }
    }

    /// Declares that something reads the frames. Every frame is then read from the file into a
    /// buffer, and none is a slice of the mapped file.
    #[must_use]
    pub fn buffered(mut self) -> Self {
        self.delivery = Delivery::Buffered;
        self
    }

    /// Returns the parts that have not been sent yet, in order, for a server that sends them
    /// itself. A part that is the range of a file in memory is returned as
    /// [`BodyPart::Memory`].
    #[cfg(feature = "serve-files")]
    pub fn into_parts(self) -> impl Iterator<Item = BodyPart> {
        let rest = self.rest.map(|rest| *rest).unwrap_or_default();
        self.part.into_iter().chain(rest).map(BodyPart::resolve)
    }

    fn poll_file(
        &mut self,
        cx: &mut Context<'_>,
        file: &Arc<OpenFile>,
        range: &Range<u64>,
    ) -> Poll<io::Result<Bytes>> {
        if file.in_memory().is_some() {
            let bytes = file.in_memory_range(range);
            return Poll::Ready(bytes.ok_or(io::ErrorKind::UnexpectedEof.into()));
        }
        if let Delivery::Flushing(proof) = &self.delivery {
            self.delivery = Delivery::Watching(proof.clone());
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if let Delivery::Watching(proof) = &self.delivery
            && let Some(watch) = proof.confirmed_by()
        {
            self.delivery = Delivery::Direct(watch.clone());
        }
        if let Delivery::Direct(watch) = &self.delivery {
            if let Some(bytes) = file.mapped(range, watch) {
                return Poll::Ready(Ok(bytes));
            }
            self.delivery = Delivery::Buffered;
        }
        let bytes = ready!(self.poll_read(cx, file, range))?;
        if !matches!(self.delivery, Delivery::Buffered) {
            let next = range.start + bytes.len() as u64;
            let more_follows = next < range.end && file.is_cached(next..range.end);
            let proof = mark_frame(&bytes, more_follows);
            self.delivery = match self.delivery {
                Delivery::Unproven => Delivery::Flushing(proof),
                _ => Delivery::Watching(proof),
            };
        }
        Poll::Ready(Ok(bytes))
    }

    /// Reads a frame from the file. If the bytes are not in the page cache, the blocking pool reads
    /// them.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        file: &Arc<OpenFile>,
        range: &Range<u64>,
    ) -> Poll<io::Result<Bytes>> {
        if self.reading.is_some() {
            return self.poll_reading(cx);
        }
        let Some(file) = file.file() else {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        };
        let end = match self.delivery {
            Delivery::Unproven => range.start.saturating_add(FIRST_FRAME_MAX_BYTES),
            _ => range.start.saturating_add(READ_FRAME_MAX_BYTES),
        };
        let end = end.min(range.end);
        let (start, len) = (range.start, (end - range.start) as usize);
        let mut buffer = vec![0; len];
        let slices = &mut [IoSliceMut::new(&mut buffer)];
        // Read what is in the page cache, without waiting for the disk. A short read makes a
        // shorter frame. If this read fails or returns no bytes, a thread of the blocking pool
        // reads again, and the result of that read counts.
        if let Ok(read @ 1..) = rustix::io::preadv2(file, slices, start, ReadWriteFlags::NOWAIT) {
            buffer.truncate(read);
            return Poll::Ready(Ok(buffer.into()));
        }
        let Ok(runtime) = Handle::try_current() else {
            // There is no pool outside a runtime, so this thread waits for the disk.
            return Poll::Ready(read_some(file, buffer, start));
        };
        let file = Arc::clone(file);
        let read = move || read_some(&file, buffer, start);
        self.reading = Some(runtime.spawn_blocking(read));
        self.poll_reading(cx)
    }

    fn poll_reading(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        let Some(reading) = &mut self.reading else {
            return Poll::Pending;
        };
        let read = ready!(Pin::new(reading).poll(cx));
        self.reading = None;
        Poll::Ready(read.unwrap_or_else(|stopped| Err(io::Error::other(stopped))))
    }
}

fn read_some(file: &File, mut buffer: Vec<u8>, start: u64) -> io::Result<Bytes> {
    match file.read_at(&mut buffer, start)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        read => {
            buffer.truncate(read);
            Ok(buffer.into())
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let bytes = match self.part.take() {
            None => return Poll::Ready(None),
            Some(BodyPart::Memory(bytes)) => bytes,
            Some(BodyPart::File(file, range)) => match self.poll_file(cx, &file, &range) {
                Poll::Pending => {
                    self.part = Some(BodyPart::File(file, range));
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => {
                    (self.rest, self.remaining) = (None, 0);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Ok(bytes)) => {
                    let start = range.start + bytes.len() as u64;
                    self.part = (start < range.end).then(|| BodyPart::File(file, start..range.end));
                    bytes
                }
            },
        };
        if self.part.is_none()
            && let Some(rest) = &mut self.rest
        {
            self.part = rest.pop_front();
        }
        self.remaining -= bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
