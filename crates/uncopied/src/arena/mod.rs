//! A reserved range of addresses, in which an address identifies the file or the pages that own it.
//!
//! Each process reserves one range of addresses, the *arena*. Files are given
//! [addresses](FileMapping) in the arena, and [buffers of whole pages](PageBuffer) are allocated
//! from it. An I/O layer that is given only a
//! `&[u8]` can then ask [`locate`] which file or which pages contain these bytes. Instead of
//! copying the bytes, the layer can then send that part of the file, or make a zero-copy send of
//! the pages. The look-up is a bounds check and a load from a table that has one entry per 2 MiB of
//! the arena: it takes constant time and no lock.
//!
//! A forked child reserves an arena of its own. The mappings and buffers that it has inherited keep
//! their addresses, which lie in the parent's range, and [`locate`] still finds them.
//!
//! ```
//! use std::{fs::File, sync::Arc};
//! use uncopied::arena::{FileMapping, Located, locate};
//!
//! let file = Arc::new(File::open("Cargo.toml")?);
//! let len = file.metadata()?.len();
//! let mapping = FileMapping::new(file, 0..len)?;
//! let bytes = mapping.bytes();
//!
//! let found = locate(&bytes[10..]);
//! assert!(matches!(found, Some(Located::File { offset: 10, .. })));
//! assert!(locate(b"bytes outside of the arena").is_none());
//! # Ok::<(), std::io::Error>(())
//! ```

mod block_count;
mod mapping;
mod memory;
mod pages;
mod pool;
mod received;
mod region;
mod service_thread;
mod space;

pub(crate) use block_count::BlockCount;
pub use mapping::{FileMapping, MissingBytes};
pub use memory::Memory;
pub(crate) use memory::is_of_a_file;
pub use pages::{PageBuffer, Pages};
pub(crate) use received::FreeWindows;
pub use received::{ChunkPart, ReceivedPages};
pub(crate) use region::CopyCount;
use region::ProtectedCall;
pub use region::{Protection, Region, RegionMut, RegionPart};

use std::ops::{Bound, Range, RangeBounds};

use space::AddressSpace;

/// The owner of a slice's bytes: a mapped file or frozen pages.
#[derive(Debug)]
#[non_exhaustive]
pub enum Located {
    /// A mapped file.
    File {
        /// The mapping that contains the slice.
        mapping: FileMapping,
        /// The position of the slice's first byte, in bytes from the start of the file.
        offset: u64,
    },
    /// Frozen pages. This is a handle to exactly the bytes of the slice, and keeps the pages alive.
    Pages(Pages),
}

/// Finds the file mapping or the frozen pages that contain `bytes`. Takes constant time and no
/// lock.
///
/// Returns `None` if `bytes` is empty, lies outside the arena, or belongs to a [`PageBuffer`] that
/// is not frozen or to a [`RegionMut`].
#[must_use]
pub fn locate(bytes: &[u8]) -> Option<Located> {
    if bytes.is_empty() {
        return None;
    }
    let owner = AddressSpace::owner_of(bytes.as_ptr().addr())?;
    if let Some((mapping, offset)) = FileMapping::locate(owner, bytes) {
        return Some(Located::File { mapping, offset });
    }
    Pages::locate(owner, bytes).map(Located::Pages)
}

/// Converts `range`, whose bounds may be open, to a range with a start and an end within `len`
/// bytes.
///
/// # Panics
///
/// If the range does not lie within `len` bytes.
fn resolve_range(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    // No memory is `usize::MAX` bytes long, so a bound that saturates at this value fails the check
    // below.
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&previous) => previous.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "the range {start}..{end} does not lie within {len} bytes"
    );
    start..end
}

#[cfg(test)]
mod tests {
    use std::panic::catch_unwind;

    use super::*;

    #[test]
    fn a_range_within_the_bytes_is_resolved() {
        let excluded = (Bound::Excluded(3), Bound::Included(5));
        assert_eq!(resolve_range(excluded, 10), 4..6);
        assert_eq!(resolve_range(.., 10), 0..10);
        assert_eq!(resolve_range(10..10, 10), 10..10);
    }

    /// Checks the message of the panic, because a panic alone proves nothing: if the additions did
    /// not saturate, they would overflow, which also panics in a debug build.
    #[test]
    fn any_other_range_is_refused() {
        const MAX: usize = usize::MAX;
        type Bounds = (Bound<usize>, Bound<usize>);
        let refused: [Bounds; 7] = [
            (Bound::Included(0), Bound::Excluded(11)),
            (Bound::Included(0), Bound::Included(10)),
            (Bound::Included(5), Bound::Excluded(4)),
            (Bound::Included(11), Bound::Unbounded),
            (Bound::Excluded(10), Bound::Unbounded),
            (Bound::Excluded(MAX), Bound::Unbounded),
            (Bound::Unbounded, Bound::Included(MAX)),
        ];
        for range in refused {
            let panic = catch_unwind(|| resolve_range(range, 10)).expect_err("refused");
            let message = panic.downcast_ref::<String>().expect("a formatted message");
            assert!(
                message.contains("does not lie within 10 bytes"),
                "{message}"
            );
        }
    }
}
