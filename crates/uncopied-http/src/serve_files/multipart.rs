//! Builds bodies of type `multipart/byteranges` (RFC 9110 §14.6).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use http::HeaderValue;

use crate::body::{BodyPart, FileBody};
use crate::open_file::OpenFile;

/// A body with several ranges of one file.
#[derive(Debug)]
pub(super) struct Multipart {
    pub(super) body: FileBody,
    /// The length of the body in bytes.
    pub(super) len: u64,
    boundary: String,
}

impl Multipart {
    /// Creates a body with one part per range, each consisting of the part's header fields and the
    /// range's bytes. Each range must be non-empty and lie within the file. The caller must limit
    /// the number of ranges.
    ///
    /// The boundary is a random number of 128 bits, generated for each response. The file is not
    /// searched for the boundary, because it is too unlikely to occur there.
    pub(super) fn new(
        file: &Arc<OpenFile>,
        ranges: Vec<Range<u64>>,
        media_type: &HeaderValue,
    ) -> Self {
        let boundary = format!("{:016x}{:016x}", random(), random());
        let file_len = file.stat().len();
        let mut parts = Vec::with_capacity(2 * ranges.len() + 1);
        let mut len = 0_u64;
        for range in ranges {
            let line_break = if parts.is_empty() { "" } else { "\r\n" };
            let mut head = format!("{line_break}--{boundary}\r\ncontent-type: ").into_bytes();
            head.extend_from_slice(media_type.as_bytes());
            let content_range = content_range(&range, file_len);
            head.extend_from_slice(
                format!("\r\ncontent-range: {content_range}\r\n\r\n").as_bytes(),
            );
            len += head.len() as u64 + (range.end - range.start);
            parts.push(BodyPart::Memory(head.into()));
            parts.push(BodyPart::File(Arc::clone(file), range));
        }
        let end = Bytes::from(format!("\r\n--{boundary}--\r\n"));
        len += end.len() as u64;
        parts.push(BodyPart::Memory(end));
        Self {
            body: FileBody::from_parts(parts),
            len,
            boundary,
        }
    }

    /// Returns the value of `Content-Type`.
    pub(super) fn content_type(&self) -> String {
        format!("multipart/byteranges; boundary={}", self.boundary)
    }
}

/// Returns the value of `Content-Range` for a non-empty range of a file of `len` bytes.
pub(super) fn content_range(range: &Range<u64>, len: u64) -> String {
    format!("bytes {}-{}/{len}", range.start, range.end - 1)
}

fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
