//! Memory that can be sent without a copy: frozen pages, or part of a region.

use rustix::io::Errno;

use super::{BlockCount, CopyCount, Pages, ProtectedCall, RegionPart};
use crate::sys::Mapped;

/// A handle to bytes that can be sent without a copy. While the handle exists, the memory stays
/// allocated at the same address.
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

    /// Returns the address range of the bytes, to be passed to system calls that read from it.
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        match self {
            Self::Pages(pages) => pages.mapped(),
            Self::Region(part) => part.mapped(),
        }
    }

    /// Prepares the memory for one zero-copy call. The call must be made, and must return, while
    /// the result exists.
    ///
    /// The pages of a region then count as in flight until this handle, and every clone or part
    /// made from it after this call, have been dropped.
    ///
    /// # Errors
    ///
    /// If a region cannot be protected: the reason, as returned by
    /// [`Region::protection`](super::Region::protection). The memory can then only be copied.
    /// Frozen pages need no protection, so preparing them never fails.
    pub(crate) fn prepare(&self) -> Result<ZeroCopyCall<'_>, Errno> {
        Ok(match self {
            Self::Pages(pages) => ZeroCopyCall::Pages(pages),
            Self::Region(part) => ZeroCopyCall::Region(part.protect()?),
        })
    }

    /// Gifts the page frames: they are never written to again. This is needed if an earlier call
    /// put the frames into a kernel queue that never reports when it is done with them.
    ///
    /// Does nothing if the memory belongs to a region that can no longer protect its pages, as in a
    /// forked child.
    pub(crate) fn gift(&self) {
        if let Ok(call) = self.prepare() {
            call.gift(self.len());
        }
    }

    /// Whether [gifting](Self::gift) the memory has no extra cost. This is the case for pages that
    /// are already permanent, and for every region: a region replaces page frames in flight at the
    /// next write anyway.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_permanent(),
            Self::Region(_) => true,
        }
    }

    /// Returns the count that all sends of the same buffer share. `None` for a region, of which
    /// each send may have page frames of its own, because the region may be overwritten between two
    /// sends.
    pub(crate) fn block_count(&self) -> Option<BlockCount> {
        match self {
            Self::Pages(pages) => Some(pages.block_count()),
            Self::Region(_) => None,
        }
    }

    /// Counts a send of this memory. Returns the length, in bytes, of the shortest zero-copy send
    /// that is cheaper than a copy. 0 for frozen pages, which set no minimum of their own.
    pub(crate) fn min_bytes_of_next_send(&self) -> usize {
        match self {
            Self::Pages(_) => 0,
            Self::Region(part) => part.min_bytes_of_next_send(),
        }
    }

    /// Returns how many of the bytes are in pages of a region that were written to while they were
    /// in flight through this handle, and so had to be copied.
    pub(crate) fn copied_on_write(&self) -> u64 {
        match self {
            Self::Pages(_) => 0,
            Self::Region(part) => part.copied_on_write(),
        }
    }

    /// Records that a sender has gifted these bytes, which are in flight through this handle. If
    /// they belong to a region, the bytes whose page is copied on write, at any time, are added to
    /// `sender`.
    pub(crate) fn record_gifted(&self, sender: &CopyCount) {
        if let Self::Region(part) = self {
            part.record_gifted(sender);
        }
    }

    /// Returns a handle to the first `len` bytes, or to all bytes if there are fewer.
    pub(crate) fn first(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(..len.min(pages.len()))),
            Self::Region(part) => Self::Region(part.slice(..len.min(part.len()))),
        }
    }

    /// Shortens this handle to its first `len` bytes. Pages that were in flight through this handle
    /// stay in flight until it is dropped, even those that no longer contain any of its bytes.
    pub(crate) fn shorten(&mut self, len: usize) {
        match self {
            Self::Pages(pages) => *pages = pages.slice(..len.min(pages.len())),
            Self::Region(part) => part.shorten(len),
        }
    }

    /// Returns a handle to the bytes after the first `len`.
    pub(crate) fn after(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(len.min(pages.len())..)),
            Self::Region(part) => Self::Region(part.slice(len.min(part.len())..)),
        }
    }
}

/// Memory that is prepared for a zero-copy call. This value must exist until the call has returned.
#[must_use = "the zero-copy call must be made while this value exists"]
pub(crate) enum ZeroCopyCall<'a> {
    Pages(&'a Pages),
    Region(ProtectedCall<'a>),
}

impl ZeroCopyCall<'_> {
    /// Gifts the page frames of the first `bytes` bytes: they are never written to again. The call
    /// passed these bytes to the kernel, which will not report when it is done with them. For
    /// frozen pages, `bytes` is ignored, and all pages of the buffer are gifted.
    pub(crate) fn gift(self, bytes: usize) {
        match self {
            Self::Pages(pages) => pages.gift(),
            Self::Region(mut call) => call.gift(bytes),
        }
    }
}
