//! Response bodies made of files.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use crate::file::OpenFile;

/// One stretch of a body: bytes in memory, or a range of a file.
#[derive(Clone, Debug)]
pub enum Part {
    /// Bytes in memory.
    Memory(Bytes),
    /// A range of a file, in bytes from its start.
    File(Arc<OpenFile>, Range<u64>),
}

/// A response body: nothing, bytes in memory, a range of a file, or several of these in a row.
#[derive(Debug, Default)]
pub struct FileBody {
    parts: VecDeque<Part>,
    left: u64,
}

impl FileBody {
    /// A body of no bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// A body of bytes in memory.
    #[must_use]
    pub fn from_bytes(bytes: Bytes) -> Self {
        Self::from_parts([Part::Memory(bytes)])
    }

    /// A body that is the bytes `range` of `file`.
    #[must_use]
    pub fn from_file(file: Arc<OpenFile>, range: Range<u64>) -> Self {
        Self::from_parts([Part::File(file, range)])
    }

    /// A body of several parts, one after the other.
    #[must_use]
    pub fn from_parts(parts: impl IntoIterator<Item = Part>) -> Self {
        let parts: VecDeque<_> = parts.into_iter().filter(|part| part.len() > 0).collect();
        let left = parts.iter().map(Part::len).sum();
        Self { parts, left }
    }
}

impl Part {
    fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end.saturating_sub(range.start),
        }
    }
}

impl Body for FileBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let bytes = match self.parts.pop_front() {
            None => return Poll::Ready(None),
            Some(Part::Memory(bytes)) => bytes,
            Some(Part::File(file, range)) => {
                let want = (range.end - range.start).min(65_536) as usize;
                let mut buffer = vec![0; want];
                let got = match file.content() {
                    Some(content) => {
                        buffer.copy_from_slice(&content[range.start as usize..][..want]);
                        want
                    }
                    None => file.file().read_at(&mut buffer, range.start)?,
                };
                if got == 0 {
                    return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                }
                buffer.truncate(got);
                let start = range.start + got as u64;
                if start < range.end {
                    self.parts.push_front(Part::File(file, start..range.end));
                }
                buffer.into()
            }
        };
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
