//! Opens a body from a file that the caller has opened.

use std::io;
use std::ops::{Bound, Range, RangeBounds};

use super::FileBody;
use crate::file_source::FileSource;

impl FileBody {
    /// Creates a body that consists of the bytes `range` of `file`, which may be std's
    /// [`File`](std::fs::File), tokio's [`File`](tokio::fs::File), or an
    /// [`OpenFile`](crate::OpenFile) that several responses share.
    ///
    /// A file of up to [`IN_MEMORY_FILE_MAX_BYTES`](crate::IN_MEMORY_FILE_MAX_BYTES) is read into
    /// memory by this call. If that needs the disk, tokio's blocking pool reads the file. A server
    /// that sends the same files again and again should keep an
    /// [`OpenFile`](crate::OpenFile::open) of each. Otherwise, every response queries the file
    /// again, and reads or maps it again.
    ///
    /// ```
    /// use uncopied_http::FileBody;
    ///
    /// # async fn body() -> std::io::Result<FileBody> {
    /// let file = tokio::fs::File::open("video.mp4").await?;
    /// let body = FileBody::open(file, ..).await?;
    /// # Ok(body)
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if `file` is not a regular file, if the end
    ///   of `range` lies before its start, or if `range` extends past the end of the file.
    /// - Any error from querying or reading the file.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the file, unless the program holds another
    /// [`Arc`](std::sync::Arc) of it. A read that is already running on the blocking pool finishes
    /// first.
    pub async fn open(
        file: impl Into<FileSource>,
        range: impl RangeBounds<u64>,
    ) -> io::Result<Self> {
        let bounds = (range.start_bound().cloned(), range.end_bound().cloned());
        let file = file.into().into_open_file().await?;
        let range = resolve(bounds, file.stat().len())?;
        Ok(Self::from_file(file, range))
    }
}

/// Returns the range as offsets in a file of `len` bytes.
fn resolve(bounds: (Bound<u64>, Bound<u64>), len: u64) -> io::Result<Range<u64>> {
    let invalid = |why: &str| {
        let text = format!("{why}: the range is {bounds:?}, and the file has {len} bytes");
        io::Error::new(io::ErrorKind::InvalidInput, text)
    };
    let after = |at: u64| {
        at.checked_add(1)
            .ok_or_else(|| invalid("the range is too long"))
    };
    let start = match bounds.0 {
        Bound::Included(start) => start,
        Bound::Excluded(before) => after(before)?,
        Bound::Unbounded => 0,
    };
    let end = match bounds.1 {
        Bound::Included(last) => after(last)?,
        Bound::Excluded(end) => end,
        Bound::Unbounded => len,
    };
    if start > len || end > len {
        return Err(invalid("the range extends past the end of the file"));
    }
    if end < start {
        return Err(invalid("the range ends before its start"));
    }
    Ok(start..end)
}
