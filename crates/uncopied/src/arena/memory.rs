//! Memory that can be sent: pages of the pool, or a part of a region.

use rustix::io::Errno;

use super::{Pages, Protected, RegionPart};
use crate::sys::Mapped;

/// Bytes that can be sent without a copy, by a handle that keeps them where they are.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Memory {
    /// Frozen pages, which are never written to.
    Pages(Pages),
    /// A part of a region, which may be written to at any time.
    Region(RegionPart),
}

impl From<Pages> for Memory {
    fn from(pages: Pages) -> Self {
        Self::Pages(pages)
    }
}

impl From<&Pages> for Memory {
    fn from(pages: &Pages) -> Self {
        Self::Pages(pages.clone())
    }
}

impl From<RegionPart> for Memory {
    fn from(part: RegionPart) -> Self {
        Self::Region(part)
    }
}

impl From<&RegionPart> for Memory {
    fn from(part: &RegionPart) -> Self {
        Self::Region(part.clone())
    }
}

impl Memory {
    pub(crate) fn address(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.as_ptr().addr(),
            Self::Region(part) => part.address(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Region(part) => part.len(),
        }
    }

    /// The bytes, for the kernel to read.
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        match self {
            Self::Pages(pages) => pages.mapped(),
            Self::Region(part) => part.mapped(),
        }
    }

    /// Prepares the memory for one zero-copy call, which must be made while the result lives. From
    /// then on a region's pages count as in flight, for as long as this handle lives, or a clone or
    /// part that is made of it afterwards.
    ///
    /// # Errors
    ///
    /// Why the memory can only be copied.
    pub(crate) fn prepare(&self) -> Result<ZeroCopyCall<'_>, Errno> {
        Ok(match self {
            Self::Pages(pages) => ZeroCopyCall::Pages(pages),
            Self::Region(part) => ZeroCopyCall::Region(part.protect()?),
        })
    }

    /// Declares that an earlier call left the page frames in a queue that reports nothing: they are
    /// never written to again.
    ///
    /// A region that can no longer do that keeps its pages as they are.
    pub(crate) fn gift(&self) {
        if let Ok(call) = self.prepare() {
            call.gift(self.len());
        }
    }

    /// Whether it costs nothing more that the page frames are never written to again.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_permanent(),
            Self::Region(_) => true,
        }
    }

    /// The least number of bytes for which a zero-copy send of this kind of memory pays.
    pub(crate) fn min_bytes(&self) -> usize {
        match self {
            Self::Pages(_) => 0,
            Self::Region(part) => part.min_bytes(),
        }
    }

    /// The first `len` bytes, or all of them if there are fewer.
    pub(crate) fn first(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(..len.min(pages.len()))),
            Self::Region(part) => Self::Region(part.slice(..len.min(part.len()))),
        }
    }

    /// Keeps only the first `len` bytes. Pages of the rest that are in flight stay so for as long as
    /// this handle lives.
    pub(crate) fn shorten(&mut self, len: usize) {
        match self {
            Self::Pages(pages) => *pages = pages.slice(..len.min(pages.len())),
            Self::Region(part) => part.shorten(len),
        }
    }

    /// What follows the first `len` bytes.
    pub(crate) fn after(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(len.min(pages.len())..)),
            Self::Region(part) => Self::Region(part.slice(len.min(part.len())..)),
        }
    }
}

/// Memory while a zero-copy call is made.
#[must_use = "the call must be made while this lives"]
pub(crate) enum ZeroCopyCall<'a> {
    Pages(&'a Pages),
    Region(Protected<'a>),
}

impl ZeroCopyCall<'_> {
    /// Declares that the call took the first `bytes`, and that nothing will report when they are
    /// free.
    pub(crate) fn gift(self, bytes: usize) {
        match self {
            Self::Pages(pages) => pages.gift(),
            Self::Region(mut protected) => protected.gift(bytes),
        }
    }
}
