//! Memory that can be sent without a copy: frozen pages, part of a region, received pages, or any
//! other bytes that never change.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::io::Errno;

use super::{
    BlockCount, ChunkPart, CopyCount, Located, Pages, ProtectedCall, ReceivedPages, RegionPart,
    locate,
};
use crate::policy::{Tuning, WriteProtection};
use crate::sys::Mapped;

/// A handle to bytes that can be sent without a copy. While the handle exists, the memory stays
/// allocated at the same address.
///
/// # Bytes that you already have
///
/// [`Bytes`], `Vec<u8>`, `Box<[u8]>`, `Arc<[u8]>`, `String` and `&'static [u8]` are sent from where
/// they are with `MSG_ZEROCOPY` and `send_zc`, from any address. The library keeps the owner of the
/// bytes until the kernel is done with them, so dropping the owner may happen later, and in another
/// thread. `vmsplice` needs [pages](Pages) or a [region](RegionPart): with this mechanism, the
/// kernel never reports when it is done, and only such memory can be withdrawn from use for ever.
/// If it is forced, other bytes are copied.
///
/// ```
/// use std::sync::Arc;
/// use uncopied::Memory;
///
/// let parts: [Memory; 3] = [
///     Memory::from(vec![1; 100_000]),
///     Memory::from(Arc::<[u8]>::from([2; 100_000])),
///     Memory::from(bytes::Bytes::from_static(b"\r\n")),
/// ];
/// ```
///
/// Bytes of [pages](Pages) are recognised by their address and sent as such. Bytes of a
/// [file mapping](super::FileMapping) cannot be sent as memory: a send of them fails with
/// [`ErrorKind::MappedFile`](crate::ErrorKind::MappedFile). Send the file instead.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Memory {
    /// Frozen pages, which are never written to.
    Pages(Pages),
    /// A part of a region, which may be overwritten at any time.
    Region(RegionPart),
    /// Received pages, which this process never writes to.
    Received(ReceivedPages),
    /// Other bytes that never change.
    Bytes(Bytes),
}

impl From<Bytes> for Memory {
    fn from(bytes: Bytes) -> Self {
        match locate(&bytes) {
            Some(Located::Pages(pages)) => Self::Pages(pages),
            Some(Located::File { .. }) | None => Self::Bytes(bytes),
        }
    }
}

impl From<&Bytes> for Memory {
    fn from(bytes: &Bytes) -> Self {
        bytes.clone().into()
    }
}

impl From<BytesMut> for Memory {
    fn from(bytes: BytesMut) -> Self {
        bytes.freeze().into()
    }
}

impl From<Vec<u8>> for Memory {
    fn from(bytes: Vec<u8>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<Box<[u8]>> for Memory {
    fn from(bytes: Box<[u8]>) -> Self {
        Self::Bytes(bytes.into())
    }
}

impl From<String> for Memory {
    fn from(text: String) -> Self {
        Self::Bytes(text.into())
    }
}

impl From<Arc<[u8]>> for Memory {
    fn from(bytes: Arc<[u8]>) -> Self {
        Self::Bytes(Bytes::from_owner(bytes))
    }
}

impl From<&Arc<[u8]>> for Memory {
    fn from(bytes: &Arc<[u8]>) -> Self {
        Arc::clone(bytes).into()
    }
}

impl From<&'static [u8]> for Memory {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::from_static(bytes).into()
    }
}

impl<const LEN: usize> From<&'static [u8; LEN]> for Memory {
    fn from(bytes: &'static [u8; LEN]) -> Self {
        Bytes::from_static(bytes).into()
    }
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

impl From<ReceivedPages> for Memory {
    fn from(pages: ReceivedPages) -> Self {
        Self::Received(pages)
    }
}

impl From<&ReceivedPages> for Memory {
    fn from(pages: &ReceivedPages) -> Self {
        Self::Received(pages.clone())
    }
}

impl From<ChunkPart> for Memory {
    fn from(part: ChunkPart) -> Self {
        match part {
            ChunkPart::Mapped(pages) => Self::Received(pages),
            ChunkPart::Copied(pages) => Self::Pages(pages),
        }
    }
}

impl From<&ChunkPart> for Memory {
    fn from(part: &ChunkPart) -> Self {
        part.clone().into()
    }
}

impl Memory {
    pub(crate) fn address(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.as_ptr().addr(),
            Self::Region(part) => part.address(),
            Self::Received(pages) => pages.address(),
            Self::Bytes(bytes) => bytes.as_ptr().expose_provenance(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Self::Pages(pages) => pages.len(),
            Self::Region(part) => part.len(),
            Self::Received(pages) => pages.len(),
            Self::Bytes(bytes) => bytes.len(),
        }
    }

    /// Returns the address range of the bytes, to be passed to system calls that read from it.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        match self {
            Self::Pages(pages) => pages.mapped(),
            Self::Region(part) => part.mapped(),
            Self::Received(pages) => pages.mapped(),
            // SAFETY: the address range is that of a slice, which is readable for as long as `self`
            // is borrowed. It may lie in a page that other memory shares, but the kernel only reads
            // the range.
            Self::Bytes(bytes) => unsafe {
                Mapped::new(bytes.as_ptr().expose_provenance(), bytes.len())
            },
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
    /// Other memory needs no protection, so preparing it never fails.
    pub(crate) fn prepare(&self) -> Result<ZeroCopyCall<'_>, Errno> {
        Ok(match self {
            Self::Pages(pages) => ZeroCopyCall::Pages(pages),
            Self::Region(part) => ZeroCopyCall::Region(part.protect()?),
            Self::Received(_) => ZeroCopyCall::Received,
            Self::Bytes(bytes) => ZeroCopyCall::Bytes(bytes),
        })
    }

    /// Whether these are bytes of a file mapping, which the kernel cannot read before this process
    /// has.
    pub(crate) fn is_of_a_file(&self) -> bool {
        match self {
            Self::Bytes(bytes) => is_of_a_file(bytes),
            Self::Pages(_) | Self::Region(_) | Self::Received(_) => false,
        }
    }

    /// Whether the page frames can be [gifted](Self::gift): whether they hold nothing but memory of
    /// this library, which can withdraw them from use.
    pub(crate) fn is_giftable(&self) -> bool {
        !matches!(self, Self::Bytes(_))
    }

    /// Whether the memory can be written to while this handle exists.
    #[cfg(feature = "tokio")]
    pub(crate) fn is_mutable(&self) -> bool {
        matches!(self, Self::Region(_))
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
    /// are already permanent, for every region, which replaces page frames in flight at the next
    /// write anyway, and for received pages, which this process never writes to.
    pub(crate) fn is_permanent(&self) -> bool {
        match self {
            Self::Pages(pages) => pages.is_permanent(),
            Self::Region(_) | Self::Received(_) => true,
            Self::Bytes(_) => false,
        }
    }

    /// Returns the count that all sends of the same buffer share. `None` for a region, of which
    /// each send may have page frames of its own, because the region may be overwritten between two
    /// sends. Also `None` for received pages and other bytes, which have no buffer of this library.
    pub(crate) fn block_count(&self) -> Option<BlockCount> {
        match self {
            Self::Pages(pages) => Some(pages.block_count()),
            Self::Region(_) | Self::Received(_) | Self::Bytes(_) => None,
        }
    }

    /// Counts a send of this memory. Returns what must be done so that the memory cannot change
    /// while it is in flight.
    pub(crate) fn protection_of_next_send(&self, tuning: &Tuning) -> WriteProtection {
        match self {
            Self::Pages(_) | Self::Received(_) | Self::Bytes(_) => WriteProtection::NotNeeded,
            Self::Region(part) => part.protection_of_next_send(tuning),
        }
    }

    /// Returns how many of the bytes are in pages of a region that were written to while they were
    /// in flight through this handle, and so had to be copied.
    pub(crate) fn copied_on_write(&self) -> u64 {
        match self {
            Self::Pages(_) | Self::Received(_) | Self::Bytes(_) => 0,
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
            Self::Received(pages) => Self::Received(pages.slice(..len.min(pages.len()))),
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(..len.min(bytes.len()))),
        }
    }

    /// Shortens this handle to its first `len` bytes. Pages that were in flight through this handle
    /// stay in flight until it is dropped, even those that no longer contain any of its bytes.
    pub(crate) fn shorten(&mut self, len: usize) {
        match self {
            Self::Pages(pages) => *pages = pages.slice(..len.min(pages.len())),
            Self::Region(part) => part.shorten(len),
            Self::Received(pages) => *pages = pages.slice(..len.min(pages.len())),
            Self::Bytes(bytes) => bytes.truncate(len),
        }
    }

    /// Returns a handle to the bytes after the first `len`.
    pub(crate) fn after(&self, len: usize) -> Self {
        match self {
            Self::Pages(pages) => Self::Pages(pages.slice(len.min(pages.len())..)),
            Self::Region(part) => Self::Region(part.slice(len.min(part.len())..)),
            Self::Received(pages) => Self::Received(pages.slice(len.min(pages.len())..)),
            Self::Bytes(bytes) => Self::Bytes(bytes.slice(len.min(bytes.len())..)),
        }
    }
}

/// Whether `bytes` belong to a [file mapping](super::FileMapping).
pub(crate) fn is_of_a_file(bytes: &[u8]) -> bool {
    matches!(locate(bytes), Some(Located::File { .. }))
}

/// Memory that is prepared for a zero-copy call. This value must exist until the call has returned.
#[must_use = "the zero-copy call must be made while this value exists"]
pub(crate) enum ZeroCopyCall<'a> {
    Pages(&'a Pages),
    Region(ProtectedCall<'a>),
    Received,
    Bytes(&'a Bytes),
}

impl ZeroCopyCall<'_> {
    /// Gifts the page frames of the first `bytes` bytes: they are never written to again. The call
    /// passed these bytes to the kernel, which will not report when it is done with them. For
    /// frozen pages, `bytes` is ignored, and all pages of the buffer are gifted.
    pub(crate) fn gift(self, bytes: usize) {
        match self {
            Self::Pages(pages) => pages.gift(),
            Self::Region(mut call) => call.gift(bytes),
            // The frames belong to the kernel. It uses them again only once nothing refers to them.
            Self::Received => {}
            // Such memory cannot be withdrawn from use, only leaked. Nothing gifts it.
            Self::Bytes(bytes) => std::mem::forget(bytes.clone()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PageBuffer, Region};
    use super::*;

    /// The bytes of a region must not wait for a batch, because they may be overwritten meanwhile.
    #[test]
    #[cfg(feature = "tokio")]
    fn only_regions_are_mutable() {
        let buffer = PageBuffer::with_capacity(1).expect("allocated");
        assert!(!Memory::from(buffer.freeze()).is_mutable());
        assert!(!Memory::from(vec![1]).is_mutable());
        let (region, _writer) = Region::new(1).expect("allocated");
        assert!(Memory::from(region.part(..)).is_mutable());
    }
}
