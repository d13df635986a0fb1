//! Buffers of whole pages, which are filled, then frozen, then sent without a copy.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, RangeBounds};
use std::ptr;
use std::sync::Arc;

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};

use super::block_count::BlockCount;
use super::pool::{Block, MAX_BLOCK_BYTES, Slab};
use super::resolve_range;
use super::space::Owner;
use crate::sys::Mapped;

/// A buffer of whole pages. Fill it, then [freeze](Self::freeze) it to get [`Pages`], which can be
/// sent without a copy.
///
/// The memory is allocated from a pool, and returned to the pool when it is no longer used. A
/// buffer can be filled through [`io::Write`], through [`BufMut`], or as a `&mut [u8]`.
///
/// ```
/// use std::io::Write;
/// use uncopied::arena::PageBuffer;
///
/// let mut buffer = PageBuffer::with_capacity(8192)?;
/// write!(buffer, "frame {}", 1)?;
/// let pages = buffer.freeze();
/// let other_handle = pages.clone();
/// assert_eq!(&other_handle[..5], b"frame");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PageBuffer {
    /// The only reference to the block.
    block: Arc<Block>,
    /// The number of bytes that have been filled.
    len: usize,
}

impl PageBuffer {
    /// The largest capacity of a buffer, in bytes: 1 GiB.
    pub const MAX_CAPACITY: usize = MAX_BLOCK_BYTES;

    /// Allocates an empty buffer with room for at least `capacity` bytes.
    ///
    /// The actual capacity is the smallest power of two that is at least `capacity` and at least
    /// the size of a page.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: `capacity` is more than [`MAX_CAPACITY`](Self::MAX_CAPACITY), or there is no
    /// memory or address space left.
    pub fn with_capacity(capacity: usize) -> io::Result<Self> {
        let block = Block::allocate(capacity, false)?;
        Ok(Self { block, len: 0 })
    }

    /// Allocates an empty buffer of huge pages (2 MiB), if the kernel provides them
    /// (`/sys/kernel/mm/transparent_hugepage/enabled`). The capacity is at least one huge page.
    ///
    /// If the kernel does not provide huge pages, the buffer consists of ordinary pages. Use huge
    /// pages for bytes that are sent many times: a zero-copy send from huge pages is cheaper,
    /// because the kernel looks up and counts fewer page frames. (The CPU time of `vmsplice` of 64
    /// KiB on loopback, relative to that of `write`, is 0.90 from huge pages and 0.98 from other
    /// pages.)
    ///
    /// # Errors
    ///
    /// The same as [`with_capacity`](Self::with_capacity).
    pub fn huge(capacity: usize) -> io::Result<Self> {
        let block = Block::allocate(capacity, true)?;
        Ok(Self { block, len: 0 })
    }

    /// Allocates a buffer whose content is `len` zeroes.
    ///
    /// # Errors
    ///
    /// The same as [`with_capacity`](Self::with_capacity).
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let mut buffer = Self::with_capacity(len)?;
        buffer.spare_mut()[..len].fill(0);
        buffer.len = len;
        Ok(buffer)
    }

    /// Allocates a buffer whose content is a copy of `bytes`.
    ///
    /// # Errors
    ///
    /// The same as [`with_capacity`](Self::with_capacity).
    pub fn copy_from_slice(bytes: &[u8]) -> io::Result<Self> {
        let mut buffer = Self::with_capacity(bytes.len())?;
        buffer.put_slice(bytes);
        Ok(buffer)
    }

    /// Returns the number of bytes that fit into the buffer, including those already filled.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.block.len()
    }

    /// Returns the memory after the filled bytes. Write to this memory, then call
    /// [`set_len`](Self::set_len).
    ///
    /// The memory holds unspecified values: zeroes, or data that an earlier buffer of this process
    /// left there.
    #[must_use]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.memory_mut()[len..]
    }

    /// Sets the length of the buffer's content to `len` bytes. Bytes that were never written have
    /// unspecified values; see [`spare_mut`](Self::spare_mut).
    ///
    /// # Panics
    ///
    /// If `len` is more than the [capacity](Self::capacity).
    pub fn set_len(&mut self, len: usize) {
        let capacity = self.capacity();
        assert!(len <= capacity, "{len} bytes do not fit into {capacity}");
        self.len = len;
    }

    /// Makes the buffer empty. Its capacity stays the same.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes the content immutable, so that it can be sent without a copy.
    #[must_use]
    pub fn freeze(self) -> Pages {
        self.block.freeze();
        Pages {
            start: 0,
            len: self.len,
            block: self.block,
        }
    }

    /// Makes the content immutable permanently: unlike after [`freeze`](Self::freeze), the page
    /// frames are never written to again.
    ///
    /// When the last handle is dropped, the page frames are returned to the kernel instead of to
    /// the pool. The pages may therefore be sent with `vmsplice`, which copies nothing even if the
    /// peer is on the same machine, but after which the kernel never reports when it is done with
    /// the pages.
    ///
    /// Use this for bytes that are sent many times and then dropped. It is not worthwhile for a
    /// buffer that is filled, sent once and then filled again: allocating new page frames costs
    /// more than a copy.
    #[must_use]
    pub fn freeze_permanently(self) -> Pages {
        self.block.gift();
        self.freeze()
    }

    #[allow(unsafe_code)]
    fn memory(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.block.address());
        // SAFETY: a block is `len` bytes of readable memory, all of them initialised (by the
        // kernel, with zeroes, or by earlier owners), and stays so until the block is dropped. No
        // other block has this memory, and `self.block` is the only reference to the block:
        // `locate` finds only frozen blocks, `freeze` consumes the buffer, and a block that is
        // dropped or turned back into a buffer is removed from the table of frozen blocks. The
        // kernel does not write to the memory: its address is passed only to calls that read from
        // it.
        unsafe { std::slice::from_raw_parts(start, self.block.len()) }
    }

    #[allow(unsafe_code)]
    fn memory_mut(&mut self) -> &mut [u8] {
        let start = ptr::with_exposed_provenance_mut(self.block.address());
        // SAFETY: as in `memory`. In addition, the memory is writable and borrowed exclusively. The
        // kernel at most reads it, and such a read is not an access by this program: it changes
        // nothing here. (If the kernel were still to read bytes of an earlier send, the peer would
        // get wrong bytes. To prevent that, a zero-copy send keeps a reference to the block until a
        // notification has arrived that the library attributes to this send. If no notification
        // will arrive, the block is gifted: it never becomes a buffer again, and its addresses get
        // new page frames before they are reused.)
        unsafe { std::slice::from_raw_parts_mut(start, self.block.len()) }
    }
}

impl Deref for PageBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory()[..self.len]
    }
}

impl DerefMut for PageBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.memory_mut()[..len]
    }
}

/// Appends to the content. A write accepts as many bytes as fit, so a write to a full buffer
/// returns 0.
impl io::Write for PageBuffer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = bytes.len().min(self.remaining_mut());
        self.put_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// SAFETY: `remaining_mut` and `chunk_mut` describe the same spare memory, all of which is
// initialised. `advance_mut` panics if the new length would exceed the capacity.
#[allow(unsafe_code)]
unsafe impl BufMut for PageBuffer {
    fn remaining_mut(&self) -> usize {
        self.capacity() - self.len
    }

    unsafe fn advance_mut(&mut self, count: usize) {
        self.set_len(self.len.saturating_add(count));
    }

    fn chunk_mut(&mut self) -> &mut UninitSlice {
        UninitSlice::new(self.spare_mut())
    }
}

impl fmt::Debug for PageBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageBuffer")
            .field("len", &self.len)
            .field("capacity", &self.capacity())
            .finish()
    }
}

/// A handle to bytes in frozen pages. The bytes are immutable, and the handle is cheap to clone and
/// to slice.
///
/// The pages return to the pool once every handle, and all [`Bytes`] made from one, have been
/// dropped and every zero-copy send of the pages is complete. Pages that the kernel may still read
/// are never written to.
#[derive(Clone)]
pub struct Pages {
    block: Arc<Block>,
    start: usize,
    len: usize,
}

impl Pages {
    /// Returns a handle to a part of these bytes, without copying them.
    ///
    /// # Panics
    ///
    /// If the range does not lie within these bytes.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let range = resolve_range(range, self.len);
        Self {
            block: Arc::clone(&self.block),
            start: self.start + range.start,
            len: range.len(),
        }
    }

    /// Turns the pages back into an empty buffer, to be filled again.
    ///
    /// # Errors
    ///
    /// Returns the handle unchanged if another handle to the pages exists, if the pages are in
    /// flight, or if they are [permanent](Self::is_permanent).
    pub fn try_into_buffer(mut self) -> Result<PageBuffer, Self> {
        // The number of handles must be checked before `is_gifted`. Another thread may gift the
        // pages and then drop its handle: with the checks in the opposite order, this thread could
        // miss both.
        if Arc::get_mut(&mut self.block).is_none() || self.block.is_gifted() {
            return Err(self);
        }
        self.block.unfreeze();
        Ok(PageBuffer {
            block: self.block,
            len: 0,
        })
    }

    /// Returns a handle to `bytes` if they lie in frozen pages, as do those of a [`Bytes`] made
    /// from [`Pages`]. Takes constant time and no lock.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match super::locate(bytes)? {
            super::Located::Pages(pages) => Some(pages),
            super::Located::File { .. } => None,
        }
    }

    /// Returns a handle to `bytes`.
    ///
    /// `bytes` must not be empty, and `owner` must be the owner of the granule that contains the
    /// first byte. Returns `None` if the owner is not a slab, or if `bytes` does not lie within a
    /// single frozen block of the slab.
    #[allow(unsafe_code)]
    pub(super) fn locate(owner: Owner, bytes: &[u8]) -> Option<Self> {
        let slab = owner.downcast::<Slab>()?;
        // SAFETY: `downcast` checks the owner's kind, and `Slab` is the only type with that kind,
        // so the pointer was registered as a `Slab`. Slabs are never freed.
        let slab = unsafe { &*slab };
        let block = slab.frozen_at(bytes.as_ptr().addr());
        if block.is_null() {
            return None;
        }
        // SAFETY: the pointer was made by `Arc::as_ptr` of a frozen block, and the block cannot be
        // dropped before this function returns: `bytes` is not empty and begins in the memory of
        // the block, and only handles to a frozen block hand out its memory as `&[u8]`. (Before the
        // block was frozen, its buffer did so too, but freezing consumed the buffer, and so ended
        // those borrows.) So the value that `bytes` is borrowed from keeps a reference to the block
        // for at least as long as the borrow.
        unsafe { Arc::increment_strong_count(block) };
        // SAFETY: as above, the block is alive. The `Arc` takes over the reference that the line
        // above has added.
        let block = unsafe { Arc::from_raw(block) };
        let start = bytes.as_ptr().addr() - block.address();
        (start + bytes.len() <= block.len()).then_some(Self {
            block,
            start,
            len: bytes.len(),
        })
    }

    /// Returns the address range of the bytes, to be passed to system calls that read from it.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        // SAFETY: the range lies within the memory of the block, which is never unmapped and
        // belongs to the block until the block is dropped. `self` keeps the block alive for the
        // lifetime of the result.
        unsafe { Mapped::new(self.block.address() + self.start, self.len) }
    }

    /// Whether the pages are never written to again, because they were [frozen
    /// permanently](PageBuffer::freeze_permanently), or because they were sent with `vmsplice` and
    /// nothing reported that the kernel was done with them.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.block.is_gifted()
    }

    /// Gifts the page frames: they are never written to again, because nothing reports when the
    /// kernel is done with them. When the last handle is dropped, the frames are returned to the
    /// kernel.
    pub(crate) fn gift(&self) {
        self.block.gift();
    }

    /// Returns the count of the bytes in flight of the whole buffer that the pages belong to.
    pub(crate) fn block_count(&self) -> BlockCount {
        self.block.count()
    }
}

impl Deref for Pages {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.block.address() + self.start);
        // SAFETY: the range lies within the memory of the block, which is initialised and readable.
        // Nothing writes to this memory while a handle exists: a handle can only become a buffer if
        // it is the last one.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl AsRef<[u8]> for Pages {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Pages> for Bytes {
    fn from(pages: Pages) -> Self {
        Self::from_owner(pages)
    }
}

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pages").field("len", &self.len).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::io::Write;

    use super::super::pool::MIN_BLOCK_BYTES;
    use super::*;

    #[test]
    fn a_buffer_is_filled_frozen_and_located() {
        let mut buffer = PageBuffer::with_capacity(10_000).expect("allocated");
        assert_eq!((buffer.len(), buffer.capacity()), (0, 16_384));
        buffer.put_slice(b"head ");
        write!(buffer, "{}", 42).expect("it fits");
        buffer[0] = b'H';
        assert!(Pages::of(&buffer).is_none(), "it is not frozen yet");
        let pages = buffer.freeze();
        assert_eq!(&pages[..], b"Head 42");
        let bytes = Bytes::from(pages.slice(5..));
        drop(pages);
        let found = Pages::of(&bytes[1..]).expect("in the arena");
        assert_eq!(&found[..], b"2");
        assert!(Pages::of(&bytes[2..]).is_none());
    }

    #[test]
    fn buffers_next_to_each_other_are_told_apart() {
        let filled = |byte: u8| {
            let mut buffer = PageBuffer::with_capacity(100).expect("allocated");
            buffer.put_bytes(byte, 100);
            buffer.freeze()
        };
        let pages: Vec<Pages> = (0..20).map(filled).collect();
        for (byte, pages) in (0..).zip(&pages) {
            let found = Pages::of(&pages[3..]).expect("in the arena");
            assert_eq!(found[..], [byte; 97]);
        }
    }

    #[test]
    fn a_full_buffer_accepts_no_more_bytes() {
        let mut buffer = PageBuffer::zeroed(MIN_BLOCK_BYTES).expect("allocated");
        assert_eq!(buffer.write(b"x").expect("no error"), 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert!(PageBuffer::with_capacity(PageBuffer::MAX_CAPACITY + 1).is_err());
    }

    #[test]
    fn only_the_last_handle_becomes_a_buffer_again() {
        let pages = PageBuffer::copy_from_slice(b"once")
            .expect("allocated")
            .freeze();
        let other = pages.clone();
        let pages = pages
            .try_into_buffer()
            .expect_err("there is another handle");
        let bytes = Bytes::from(other);
        drop(pages);
        let pages = Pages::of(&bytes).expect("in the arena");
        drop(bytes);
        let mut buffer = pages.try_into_buffer().expect("the last handle");
        buffer.put_slice(b"again");
        assert_eq!(&buffer.freeze()[..], b"again");
    }

    /// Fails if a dropped block stays in the table of frozen blocks: the look-up would follow a
    /// pointer to freed memory.
    #[test]
    fn memory_that_is_used_again_is_not_located_before_it_is_frozen() {
        let pages = PageBuffer::copy_from_slice(b"first")
            .expect("allocated")
            .freeze();
        let address = pages.as_ptr();
        drop(pages);
        let next = PageBuffer::copy_from_slice(b"next").expect("allocated");
        assert_eq!(
            next.as_ptr(),
            address,
            "not the memory of the dropped pages"
        );
        assert!(Pages::of(&next).is_none());
        let mut again = next.freeze().try_into_buffer().expect("the last handle");
        again.put_slice(b"again");
        assert!(Pages::of(&again).is_none());
    }

    #[test]
    #[allow(unsafe_code)]
    fn a_slice_beyond_the_end_of_its_block_is_not_located() {
        let block_len = MIN_BLOCK_BYTES.max(rustix::param::page_size());
        let pages = std::iter::repeat_with(|| PageBuffer::zeroed(block_len).expect("allocated"))
            .map(PageBuffer::freeze)
            .find(|pages| !(pages.as_ptr().addr() + block_len).is_multiple_of(2 << 20))
            .expect("not the last block of its slab");
        let last_bytes = pages[block_len - 10..].as_ptr();
        for (len, is_inside) in [(10, true), (11, false), (20, false)] {
            // SAFETY: another block of the slab follows, so the bytes are readable memory, which is
            // never freed. Nothing reads or writes them through this slice.
            let bytes = unsafe { std::slice::from_raw_parts(last_bytes, len) };
            assert_eq!(Pages::of(bytes).is_some(), is_inside, "{len}");
        }
    }

    #[test]
    fn gifted_pages_get_new_frames() {
        let mut addresses = HashSet::new();
        for round in 0..64_u8 {
            let pages = PageBuffer::copy_from_slice(&[round + 1; 5000])
                .expect("allocated")
                .freeze();
            pages.gift();
            let pages = pages.try_into_buffer().expect_err("never written to again");
            addresses.insert(pages.as_ptr().addr());
            drop(pages);
            let mut next = PageBuffer::with_capacity(5000).expect("allocated");
            let is_same = addresses.contains(&next.as_ptr().addr());
            assert!(!is_same || next.spare_mut()[..5000].iter().all(|byte| *byte == 0));
        }
    }

    /// One thread gifts the pages and then drops its handle. If the other thread then finds that it
    /// has the last handle, it must also find that the pages are gifted. The order of the two
    /// checks in `try_into_buffer` ensures this.
    #[test]
    fn pages_gifted_by_another_thread_never_become_a_buffer() {
        for _ in 0..2_000 {
            let mut pages = PageBuffer::zeroed(1).expect("allocated").freeze();
            let other = pages.clone();
            let ready = std::sync::Barrier::new(2);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    ready.wait();
                    other.gift();
                    drop(other);
                });
                ready.wait();
                for _ in 0..1_000 {
                    let result = pages.try_into_buffer();
                    pages = result.expect_err("gifted pages never become a buffer");
                }
            });
        }
    }

    #[test]
    fn no_two_buffers_share_memory() {
        let sizes = [1, 4096, 4097, 70_000, 2 << 20, (2 << 20) + 1, 5 << 20];
        let threads: Vec<_> = (0..4_u8)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut kept: Vec<(Pages, u8)> = Vec::new();
                    for round in 0..400_usize {
                        let len = sizes[(round * 7 + usize::from(thread)) % sizes.len()];
                        let mark = (round as u8).wrapping_mul(4).wrapping_add(thread);
                        let mut buffer = if round % 5 == 0 {
                            PageBuffer::huge(len).expect("allocated")
                        } else {
                            PageBuffer::with_capacity(len).expect("allocated")
                        };
                        buffer.set_len(len);
                        buffer[0] = mark;
                        buffer[len - 1] = mark;
                        kept.push((buffer.freeze(), mark));
                        if kept.len() > 12 {
                            let (pages, mark) = kept.swap_remove(round % kept.len());
                            assert_eq!((pages[0], pages[pages.len() - 1]), (mark, mark));
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("no assertion failed");
        }
    }
}
