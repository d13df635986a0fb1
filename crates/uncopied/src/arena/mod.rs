//! Addresses that identify their owner.
//!
//! Each process reserves one range of addresses. Files are mapped into it, and [buffers of whole
//! pages](PageBuffer) are allocated from it. An I/O layer that gets nothing but a `&[u8]` can then
//! ask [`locate`] which file or pages these bytes belong to, and send "file F from offset O", or
//! the pages by zero copy, instead of copying the bytes. The look-up is a bounds check and a load
//! from a table with an entry for every 2 MiB: it takes constant time and no lock.
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

mod mapping;
mod memory;
mod pages;
mod pool;
mod region;
mod space;

pub use mapping::FileMapping;
pub use memory::Memory;
pub use pages::{PageBuffer, Pages};
use region::ProtectedCall;
pub use region::{Protection, Region, RegionMut, RegionPart};

use std::ops::{Bound, Range, RangeBounds};

use space::AddressSpace;

/// The owner of the bytes of a slice.
#[derive(Debug)]
#[non_exhaustive]
pub enum Located {
    /// A mapped file.
    File {
        /// The mapping that the slice lies in.
        mapping: FileMapping,
        /// The position of the slice's first byte, in bytes from the start of the file.
        offset: u64,
    },
    /// Frozen pages: a handle of exactly the bytes of the slice, which keeps them alive.
    Pages(Pages),
}

/// Finds the owner of some bytes, if they lie in the arena. This takes constant time and no lock.
///
/// Returns `None` for an empty slice, and for bytes of a [`PageBuffer`] that is not frozen or of a
/// [`RegionMut`].
#[must_use]
pub fn locate(bytes: &[u8]) -> Option<Located> {
    if bytes.is_empty() {
        return None;
    }
    let owner = AddressSpace::existing()?.owner(bytes.as_ptr().addr())?;
    if let Some((mapping, offset)) = FileMapping::locate(owner, bytes) {
        return Some(Located::File { mapping, offset });
    }
    Pages::locate(owner, bytes).map(Located::Pages)
}

/// Resolves the bounds of a range within `len` bytes.
///
/// # Panics
///
/// If the range does not lie within `len` bytes.
fn resolve_range(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&previous) => previous + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(
        start <= end && end <= len,
        "the range {start}..{end} does not lie within {len} bytes"
    );
    start..end
}
