//! Memory that can be sent without a copy: pages of the pool, or a part of a region.

use rustix::io::Errno;

use super::{Pages, ProtectedCall, RegionPart};
use crate::sys::Mapped;

/// Bytes that can be sent without a copy. The handle keeps them in place.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Memory {
    /// Frozen pages, which are never written to.
    Pages(Pages),
    /// A part of a region, which may be overwritten at any time.
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

    /// Prepares the memory for one zero-copy call, which must be made while the result lives.
    ///
    /// From then on the pages of a region count as in flight. They do so until this handle, and
    /// every clone or part that is made of it afterwards, are dropped.
    ///
    /// # Errors
    ///
    /// The reason why the memory can only be copied: see
    /// [`Region::protection`](super::Region::protection). Pages have none.
    pub(crate) fn prepare(&self) -> Result<ZeroCopyCall<'_>, Errno> {
        Ok(match self {
            Self::Pages(pages) => ZeroCopyCall::Pages(pages),
            Self::Region(part) => ZeroCopyCall::Region(part.protect()?),
        })
    }

    /// Leaves the page frames to the kernel, because an earlier call put them into a queue that
    /// does not report when it is done with them. They are never written to again.
    ///
    /// If a region can no longer protect its pages, this does nothing.
    pub(crate) fn gift(&self) {
        if let Ok(call) = self.prepare() {
            call.gift(self.len());
        }
    }

    /// Whether it costs nothing extra to never write to the page frames again.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_permanent(),
            Self::Region(_) => true,
        }
    }

    /// The smallest zero-copy send of this kind of memory that pays, in bytes.
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

    /// Shortens this handle to the first `len` bytes. Pages of the rest that are in flight stay in
    /// flight for as long as the handle lives.
    pub(crate) fn shorten(&mut self, len: usize) {
        match self {
            Self::Pages(pages) => *pages = pages.slice(..len.min(pages.len())),
            Self::Region(part) => part.shorten(len),
        }
    }

    /// The bytes after the first `len`.
    pub(crate) fn after(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(len.min(pages.len())..)),
            Self::Region(part) => Self::Region(part.slice(len.min(part.len())..)),
        }
    }
}

/// Memory that is prepared for a zero-copy call. It must live until the call has returned.
#[must_use = "the call must be made while this lives"]
pub(crate) enum ZeroCopyCall<'a> {
    Pages(&'a Pages),
    Region(ProtectedCall<'a>),
}

impl ZeroCopyCall<'_> {
    /// Leaves the page frames of the first `bytes` bytes to the kernel: the call took these bytes,
    /// and nothing will report when the kernel is done with them.
    pub(crate) fn gift(self, bytes: usize) {
        match self {
            Self::Pages(pages) => pages.gift(),
            Self::Region(mut call) => call.gift(bytes),
        }
    }
}
