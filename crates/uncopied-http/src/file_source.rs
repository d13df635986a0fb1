//! The kinds of files that a body can be opened from.

use std::fs::File;
use std::io;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::file_stat::FileStat;
use crate::open_file::{DiskAccess, IN_MEMORY_FILE_MAX_BYTES, OpenFile};

/// A file that [`FileBody::open`](crate::FileBody::open) and [`OpenFile::open`] accept: std's
/// [`File`], tokio's [`File`](tokio::fs::File), or an [`OpenFile`] that several responses share.
///
/// Only the file itself matters, not its current position: all reads are at explicit offsets, and
/// the position does not change.
#[derive(Debug)]
pub struct FileSource(Source);

#[derive(Debug)]
enum Source {
    Open(Arc<OpenFile>),
    Std(Arc<File>),
    Tokio(tokio::fs::File),
}

impl FileSource {
    /// Returns the file as an [`OpenFile`]; see [`OpenFile::open`].
    pub(crate) async fn into_open_file(self) -> io::Result<Arc<OpenFile>> {
        let file = match self.0 {
            Source::Open(file) => return Ok(file),
            Source::Std(file) => file,
            Source::Tokio(file) => Arc::new(file.into_std().await),
        };
        let stat = FileStat::of(&file)?;
        let open = move |file, access| {
            OpenFile::with_memory_limit(IN_MEMORY_FILE_MAX_BYTES, file, stat, access)
        };
        // First try without waiting for the disk. The clone keeps the file open for the second
        // attempt below.
        match open(Arc::clone(&file), DiskAccess::CachedOnly) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            opened => return opened.map(Arc::new),
        }
        let read = move || open(file, DiskAccess::MayBlock);
        let opened = match Handle::try_current() {
            Ok(runtime) => runtime.spawn_blocking(read).await?,
            // There is no pool outside a runtime, so this thread waits for the disk.
            Err(_) => read(),
        };
        opened.map(Arc::new)
    }
}

impl OpenFile {
    /// Creates an `OpenFile` from a regular file that std or tokio opened. If the file is no longer
    /// than [`IN_MEMORY_FILE_MAX_BYTES`], this call reads it into memory, on tokio's blocking pool
    /// if that needs the disk.
    ///
    /// Responses can share the result: pass a clone of the [`Arc`], or a reference to it, to
    /// [`FileBody::open`](crate::FileBody::open).
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput) if `file` is not a regular file.
    /// - `EBUSY` if the file keeps changing while it is read.
    /// - Any error from querying or reading the file.
    ///
    /// # Cancellation
    ///
    /// Dropping the future closes the file, unless the program holds another [`Arc`] of it. A read
    /// that is already running on the blocking pool finishes first.
    pub async fn open(file: impl Into<FileSource>) -> io::Result<Arc<Self>> {
        file.into().into_open_file().await
    }
}

impl From<File> for FileSource {
    fn from(file: File) -> Self {
        Self(Source::Std(Arc::new(file)))
    }
}

impl From<Arc<File>> for FileSource {
    fn from(file: Arc<File>) -> Self {
        Self(Source::Std(file))
    }
}

impl From<tokio::fs::File> for FileSource {
    fn from(file: tokio::fs::File) -> Self {
        Self(Source::Tokio(file))
    }
}

impl From<Arc<OpenFile>> for FileSource {
    fn from(file: Arc<OpenFile>) -> Self {
        Self(Source::Open(file))
    }
}

impl From<&Arc<OpenFile>> for FileSource {
    fn from(file: &Arc<OpenFile>) -> Self {
        Self::from(Arc::clone(file))
    }
}
