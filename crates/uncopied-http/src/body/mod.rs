//! Response bodies made of files.

mod basis;
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

use crate::open_file::OpenFile;

pub use basis::Basis;
pub use part::Part;
use passthrough::{Proof, watch};

/// A response body: nothing, bytes in memory, a range of a file, or several of these in a row.
///
/// Under a [`Stream`](crate::Stream) the file's bytes go out by `sendfile`; the body's frames are
/// then only addresses, which nobody reads. It finds that out by itself: the first few KiB are read
/// from the file, and only once the stream has been seen to write them from the very same memory do
/// the frames become slices of the mapped file. Behind any other I/O object, under HTTP/2, or a layer
/// that replaces the bytes (compression), every frame is read from the file.
///
/// A file that turns out shorter than the range ends the body with
/// [`io::ErrorKind::UnexpectedEof`], and hyper closes the connection.
///
/// # Stability of the bytes
///
/// What is written to the file until the peer has acknowledged the bytes may reach it; see
/// [`uncopied`].
///
/// A layer that both *reads* the frames and passes them on as they are, such as one that computes a
/// digest, reads the mapped file, and is killed by SIGBUS if the file is cut short that very moment.
/// Give such a layer bodies that are [`read`](Self::read).
#[derive(Debug, Default)]
pub struct FileBody {
    part: Option<Part>,
    /// The parts after it. Most bodies have none, and then nothing is allocated.
    #[expect(
        clippy::box_collection,
        reason = "a body is small, and moved often, while it has none"
    )]
    rest: Option<Box<VecDeque<Part>>>,
    left: u64,
    delivery: Delivery,
    reading: Option<JoinHandle<io::Result<Bytes>>>,
    basis: Option<Basis>,
}

/// How the bytes of files become frames.
#[derive(Debug, Default)]
enum Delivery {
    /// Nothing is known yet: the first frame is read, marked and yielded.
    #[default]
    Unproven,
    /// A marked frame is on its way, and the connection gets one chance to flush it.
    Flushing(Proof),
    /// A marked frame was on its way at the last look.
    Watching(Proof),
    /// Nothing reads the frames: they are slices of the mapped file.
    Direct,
    /// Every frame is read from the file.
    Read,
}

/// How much is read from a file for one frame, in bytes.
const CHUNK: u64 = 64 << 10;

/// The first frame ends on a page boundary at least so many bytes on, so that the pages that
/// `sendfile` then sends are whole.
const FIRST: u64 = 1 << 10;
const PAGE: u64 = 4 << 10;

impl FileBody {
    /// A body of no bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// A body of bytes in memory.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self::from_part(Part::Memory(bytes))
    }

    /// A body that is the bytes `range` of `file`.
    #[must_use]
    pub fn from_file(file: Arc<OpenFile>, range: Range<u64>) -> Self {
        Self::from_part(Part::File(file, range))
    }

    fn from_part(part: Part) -> Self {
        let left = part.len();
        Self {
            part: (left > 0).then_some(part),
            left,
            ..Self::default()
        }
    }

    /// A body of several parts, one after the other.
    #[must_use]
    pub fn from_parts(parts: impl IntoIterator<Item = Part>) -> Self {
        let mut parts = parts.into_iter().filter(|part| part.len() > 0);
        let part = parts.next();
        let rest: VecDeque<_> = parts.collect();
        let left = part
            .iter()
            .chain(&rest)
            .fold(0, |left: u64, part| left.saturating_add(part.len()));
        Self {
            part,
            rest: (!rest.is_empty()).then(|| Box::new(rest)),
            left,
            ..Self::default()
        }
    }

    /// Says that nothing reads the frames between this body and a [`Stream`](crate::Stream), so that
    /// even the first bytes need not be read.
    ///
    /// That is for HTTP/1 only: HTTP/2 copies the first bytes of its frames, and a file that is cut
    /// short that very moment then kills the process by SIGBUS.
    #[must_use]
    pub fn direct(mut self) -> Self {
        self.delivery = Delivery::Direct;
        self
    }

    /// Says that something reads the frames: each is read from the file, and none is mapped.
    #[must_use]
    pub fn read(mut self) -> Self {
        self.delivery = Delivery::Read;
        self
    }

    /// On what the answer with this body stands, if the same request may be given the same answer again;
    /// see [`Basis`].
    #[must_use]
    pub fn basis(&self) -> Option<&Basis> {
        self.basis.as_ref()
    }

    pub(crate) fn on_basis(mut self, basis: Option<Basis>) -> Self {
        self.basis = basis;
        self
    }

    fn poll_file(
        &mut self,
        cx: &mut Context<'_>,
        file: &Arc<OpenFile>,
        range: &Range<u64>,
    ) -> Poll<io::Result<Bytes>> {
        if let Some(content) = file.in_memory() {
            let in_memory = usize::try_from(range.start)
                .ok()
                .zip(usize::try_from(range.end).ok());
            let slice = in_memory.filter(|&(_, end)| end <= content.len());
            return Poll::Ready(match slice {
                Some((start, end)) => Ok(content.slice(start..end)),
                None => Err(io::ErrorKind::UnexpectedEof.into()),
            });
        }
        if let Delivery::Flushing(proof) = &self.delivery {
            self.delivery = Delivery::Watching(proof.clone());
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if matches!(&self.delivery, Delivery::Watching(proof) if proof.is_given()) {
            self.delivery = Delivery::Direct;
        }
        if matches!(self.delivery, Delivery::Direct) {
            if let Some(bytes) = file.mapped(range) {
                return Poll::Ready(Ok(bytes));
            }
            self.delivery = Delivery::Read;
        }
        let bytes = ready!(self.poll_read(cx, file, range))?;
        if !matches!(self.delivery, Delivery::Read) {
            let next = range.start + bytes.len() as u64;
            let at_hand = next < range.end && file.is_at_hand(next..range.end);
            let proof = watch(&bytes, at_hand);
            self.delivery = match self.delivery {
                Delivery::Unproven => Delivery::Flushing(proof),
                _ => Delivery::Watching(proof),
            };
        }
        Poll::Ready(Ok(bytes))
    }

    /// Reads a frame from the file; on the blocking pool if it is not in the page cache.
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
            Delivery::Unproven => range
                .start
                .saturating_add(FIRST)
                .checked_next_multiple_of(PAGE)
                .unwrap_or(range.end),
            _ => range.start.saturating_add(CHUNK),
        };
        let end = end.min(range.end);
        let (start, len) = (range.start, (end - range.start) as usize);
        let mut buffer = vec![0; len];
        let slices = &mut [IoSliceMut::new(&mut buffer)];
        // A short read is a frame as well. Whatever else is in the way, the pool's thread meets it.
        if let Ok(read @ 1..) = rustix::io::preadv2(file, slices, start, ReadWriteFlags::NOWAIT) {
            buffer.truncate(read);
            return Poll::Ready(Ok(buffer.into()));
        }
        let Ok(runtime) = Handle::try_current() else {
            // Outside of a runtime there is no pool: the disk is waited for here.
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
            Some(Part::Memory(bytes)) => bytes,
            Some(Part::File(file, range)) => match self.poll_file(cx, &file, &range) {
                Poll::Pending => {
                    self.part = Some(Part::File(file, range));
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => {
                    (self.rest, self.left) = (None, 0);
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(Ok(bytes)) => {
                    let start = range.start + bytes.len() as u64;
                    self.part = (start < range.end).then(|| Part::File(file, start..range.end));
                    bytes
                }
            },
        };
        if self.part.is_none()
            && let Some(rest) = &mut self.rest
        {
            self.part = rest.pop_front();
        }
        self.left -= bytes.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
