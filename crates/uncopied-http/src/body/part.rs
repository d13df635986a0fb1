//! The parts of a body.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;

use crate::open_file::OpenFile;

/// One part of a body: bytes in memory, or a range of a file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum BodyPart {
    /// Bytes in memory.
    Memory(Bytes),
    /// A range of a file, in bytes from the start of the file.
    File(Arc<OpenFile>, Range<u64>),
}

impl BodyPart {
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Memory(bytes) => bytes.len() as u64,
            Self::File(_, range) => range.end.saturating_sub(range.start),
        }
    }

    /// Turns a range of a file in memory into its bytes.
    #[cfg(feature = "serve-files")]
    pub(super) fn resolve(self) -> Self {
        match self {
            Self::File(file, range) => match file.in_memory_range(&range) {
                Some(bytes) => Self::Memory(bytes),
                None => Self::File(file, range),
            },
            memory => memory,
        }
    }
}
