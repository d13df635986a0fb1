//! Addresses that tell their owner.
//!
//! One range of addresses is reserved, once a process; files are mapped into it, and [buffers of whole
//! pages](PageBuffer) are taken from it. An I/O layer that is handed nothing but a `&[u8]` can then ask
//! [`locate`] whose bytes these are, and send "file F from offset O", or lend the pages, instead of
//! copying them. The look-up is a bounds check and one load from
//! a table by granule: O(1), and no lock is taken.
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
//! assert!(locate(b"bytes of anybody else").is_none());
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
use region::Protected;
pub use region::{Protection, Region, RegionMut, RegionPart};

use std::ops::{Bound, Range, RangeBounds};

use space::{AddressSpace, Owner};

/// Whose bytes a slice is made of.
#[derive(Debug)]
#[non_exhaustive]
pub enum Located {
    /// A mapped file's.
    File {
        /// The mapping that the slice lies in.
        mapping: FileMapping,
        /// The slice's first byte, in bytes from the start of the file.
        offset: u64,
    },
    /// Frozen pages: the slice, with a handle that keeps it.
    Pages(Pages),
}

/// Whose bytes these are, if they live in the arena. O(1), and takes no lock.
///
/// An empty slice belongs to nobody, and the bytes of a [`PageBuffer`] that is not frozen are nobody's
/// but its own.
#[must_use]
pub fn locate(bytes: &[u8]) -> Option<Located> {
    if bytes.is_empty() {
        return None;
    }
    match AddressSpace::existing()?.owner(bytes.as_ptr().addr())? {
        Owner::File(span) => {
            let (mapping, offset) = FileMapping::locate(span, bytes)?;
            Some(Located::File { mapping, offset })
        }
        Owner::Slab(slab) => Pages::locate(slab, bytes).map(Located::Pages),
    }
}

/// The range in plain numbers.
///
/// # Panics
///
/// If it does not lie within `len` bytes.
fn within(range: impl RangeBounds<usize>, len: usize) -> Range<usize> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&before) => before + 1,
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last + 1,
        Bound::Excluded(&end) => end,
        Bound::Unbounded => len,
    };
    assert!(start <= end && end <= len, "{start}..{end} of {len}");
    start..end
}
