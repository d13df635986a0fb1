//! Buffers of whole pages: filled, then frozen, then lent to the kernel.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, RangeBounds};
use std::ptr;
use std::sync::Arc;

use bytes::buf::UninitSlice;
use bytes::{BufMut, Bytes};

use super::pool::{Block, Slab};
use super::within;
use crate::sys::Mapped;

/// A buffer of whole pages, to be filled and then [frozen](Self::freeze).
///
/// It comes from a pool and goes back to it. Filling it is ordinary work with memory: by
/// [`io::Write`], by [`BufMut`], or as a `&mut [u8]`.
///
/// ```
/// use std::io::Write;
/// use uncopied::arena::PageBuffer;
///
/// let mut buffer = PageBuffer::with_capacity(8192)?;
/// write!(buffer, "frame {}", 1)?;
/// let pages = buffer.freeze();
/// let copy_of_the_handle = pages.clone();
/// assert_eq!(&copy_of_the_handle[..5], b"frame");
/// # Ok::<(), std::io::Error>(())
/// ```
pub struct PageBuffer {
    /// Nobody else has a reference to it.
    block: Arc<Block>,
    /// How many bytes are filled.
    len: usize,
}

impl PageBuffer {
    /// The most that a buffer can hold, in bytes: 1 GiB.
    pub const MAX_CAPACITY: usize = super::pool::LARGEST;

    /// An empty buffer with room for at least `capacity` bytes: a power of two of them, and at least a
    /// page.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if `capacity` is more than [`MAX_CAPACITY`](Self::MAX_CAPACITY), or no address space is
    /// left.
    pub fn with_capacity(capacity: usize) -> io::Result<Self> {
        let block = Block::take(capacity, false)?;
        Ok(Self { block, len: 0 })
    }

    /// As [`with_capacity`](Self::with_capacity), of huge pages (2 MiB) where the kernel has them
    /// (`/sys/kernel/mm/transparent_hugepage/enabled`), and at least one. They cost less to lend: the
    /// kernel looks up and counts fewer frames. For what is sent many times (loopback, `vmsplice` of 64 KiB,
    /// CPU time over that of `write`: 0.90 from huge pages, 0.98 from others).
    ///
    /// # Errors
    ///
    /// As [`with_capacity`](Self::with_capacity).
    pub fn huge(capacity: usize) -> io::Result<Self> {
        let block = Block::take(capacity, true)?;
        Ok(Self { block, len: 0 })
    }

    /// A buffer with `len` bytes in it, all of them 0.
    ///
    /// # Errors
    ///
    /// As [`with_capacity`](Self::with_capacity).
    pub fn zeroed(len: usize) -> io::Result<Self> {
        let mut buffer = Self::with_capacity(len)?;
        buffer.spare_mut()[..len].fill(0);
        buffer.len = len;
        Ok(buffer)
    }

    /// A buffer with a copy of `bytes` in it.
    ///
    /// # Errors
    ///
    /// As [`with_capacity`](Self::with_capacity).
    pub fn copy_from_slice(bytes: &[u8]) -> io::Result<Self> {
        let mut buffer = Self::with_capacity(bytes.len())?;
        buffer.put_slice(bytes);
        Ok(buffer)
    }

    /// How many bytes fit, in all.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.block.len()
    }

    /// The bytes after those that are filled, to be written before they are
    /// [counted in](Self::set_len). What they are is not said: zeroes, or what an earlier buffer of this
    /// process had there.
    #[must_use]
    pub fn spare_mut(&mut self) -> &mut [u8] {
        let len = self.len;
        &mut self.memory_mut()[len..]
    }

    /// Says that the first `len` bytes of the buffer's memory are its content.
    ///
    /// # Panics
    ///
    /// If that is more than the [capacity](Self::capacity).
    pub fn set_len(&mut self, len: usize) {
        assert!(len <= self.capacity(), "{len} bytes do not fit");
        self.len = len;
    }

    /// Empties the buffer.
    pub fn clear(&mut self) {
        self.len = 0;
    }

    /// Makes the content immutable: from here on it can be lent to the kernel.
    #[must_use]
    pub fn freeze(self) -> Pages {
        self.block.freeze();
        Pages {
            start: 0,
            len: self.len,
            block: self.block,
        }
    }

    /// As [`freeze`](Self::freeze), for bytes that are sent many times and then dropped: the pages are
    /// never written to again, and with the last handle their frames go back to the kernel instead of the
    /// pool. Such pages can be sent by `vmsplice`, which copies nothing even to a peer on the same
    /// machine, and of which the kernel never says when it is done.
    ///
    /// New frames cost more than a copy: not for a buffer that is filled, sent once and filled again.
    #[must_use]
    pub fn freeze_permanently(self) -> Pages {
        self.block.gift();
        self.freeze()
    }

    #[allow(unsafe_code)]
    fn memory(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.block.address());
        // SAFETY: a block is `len` bytes of readable memory, all of them initialised (by the kernel,
        // with zeroes, or by earlier owners), and stays so until it is dropped. It is in use by
        // nobody else: `self.block` is the only reference to it, for a block is not frozen, and so
        // cannot be found by its address, before `freeze` has consumed the buffer. The kernel does
        // not write to it.
        unsafe { std::slice::from_raw_parts(start, self.block.len()) }
    }

    #[allow(unsafe_code)]
    fn memory_mut(&mut self) -> &mut [u8] {
        let start = ptr::with_exposed_provenance_mut(self.block.address());
        // SAFETY: as for `memory`, and the memory is writable and borrowed exclusively. The kernel may
        // not read it any more either: whoever lends pages keeps a reference to the block until it
        // knows that they came back, and blocks of which nobody knows it get new frames.
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

/// Writes until the buffer is full.
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

// SAFETY: `remaining_mut` and `chunk_mut` tell of the same spare memory, which `advance_mut` checks
// that it does not leave, and which is all initialised.
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

/// Bytes in frozen pages: immutable, cheap to clone and to slice.
///
/// The pages go back to the pool after the last handle, the last [`Bytes`] made of one, and the last
/// lease: what the kernel still reads is never written to.
#[derive(Clone)]
pub struct Pages {
    block: Arc<Block>,
    start: usize,
    len: usize,
}

impl Pages {
    /// A part of these bytes, without a copy.
    ///
    /// # Panics
    ///
    /// If the range does not lie within them.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let range = within(range, self.len);
        Self {
            block: Arc::clone(&self.block),
            start: self.start + range.start,
            len: range.len(),
        }
    }

    /// The buffer back, to be filled again, if this is the last handle, nothing is lent, and the pages
    /// can be written to ever again. Otherwise the handle as it was.
    ///
    /// # Errors
    ///
    /// The handle.
    pub fn try_into_buffer(mut self) -> Result<PageBuffer, Self> {
        // In this order: who had the other handle may have given the pages away before it went.
        if Arc::get_mut(&mut self.block).is_none() || self.block.is_gifted() {
            return Err(self);
        }
        self.block.thaw();
        Ok(PageBuffer {
            block: self.block,
            len: 0,
        })
    }

    /// The pages that these bytes lie in, if they do: the way back from [`Bytes`]. O(1), and takes no
    /// lock.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Option<Self> {
        match super::locate(bytes)? {
            super::Located::Pages(pages) => Some(pages),
            super::Located::File { .. } => None,
        }
    }

    /// The handle of the block at these bytes, if they lie in one that is frozen.
    #[allow(unsafe_code)]
    pub(super) fn locate(slab: *const Slab, bytes: &[u8]) -> Option<Self> {
        // SAFETY: slabs are never freed.
        let slab = unsafe { &*slab };
        let block = slab.frozen_at(bytes.as_ptr().addr());
        if block.is_null() {
            return None;
        }
        // SAFETY: the pointer is that of a frozen block, made by `Arc::as_ptr`, and the block cannot
        // be dropped before we return: `bytes` is not empty and begins in the block's memory, which
        // is lent as `&[u8]` by handles of the block only (and, before it was frozen, by its buffer,
        // which had to be given up for that), so whoever lent `bytes` to us keeps a reference to it
        // for the length of the borrow.
        unsafe { Arc::increment_strong_count(block) };
        // SAFETY: as above; the count was just taken for this.
        let block = unsafe { Arc::from_raw(block) };
        let start = bytes.as_ptr().addr() - block.address();
        (start + bytes.len() <= block.len()).then_some(Self {
            block,
            start,
            len: bytes.len(),
        })
    }

    /// The bytes, for the kernel to read.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        // SAFETY: the range lies within the block, whose memory stays mapped until it is dropped,
        // which `self` prevents.
        unsafe { Mapped::new(self.block.address() + self.start, self.len) }
    }

    /// Whether the pages are never written to again:
    /// [frozen for good](PageBuffer::freeze_permanently), or sent by `vmsplice`.
    #[must_use]
    pub fn is_permanent(&self) -> bool {
        self.block.is_gifted()
    }

    /// Says that the frames lie where nobody tells when they are free. The pages are never written to
    /// again: with the last handle the frames go back to the kernel.
    pub(crate) fn gift(&self) {
        self.block.gift();
    }
}

impl Deref for Pages {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.block.address() + self.start);
        // SAFETY: the range lies within the block's memory, which is initialised, readable, and
        // written to by nobody while a handle is alive: a buffer is made of a block only by its last.
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

    use super::super::pool::SMALLEST;
    use super::*;

    #[test]
    fn a_buffer_is_filled_frozen_and_found() {
        let mut buffer = PageBuffer::with_capacity(10_000).expect("taken");
        assert_eq!((buffer.len(), buffer.capacity()), (0, 16_384));
        buffer.put_slice(b"head ");
        write!(buffer, "{}", 42).expect("there is room");
        buffer[0] = b'H';
        assert!(Pages::of(&buffer).is_none(), "it can still be written to");
        let pages = buffer.freeze();
        assert_eq!(&pages[..], b"Head 42");
        let bytes = Bytes::from(pages.slice(5..));
        drop(pages);
        let found = Pages::of(&bytes[1..]).expect("in the arena");
        assert_eq!(&found[..], b"2");
        assert!(Pages::of(&bytes[2..]).is_none());
    }

    #[test]
    fn a_full_buffer_takes_no_more() {
        let mut buffer = PageBuffer::zeroed(SMALLEST).expect("taken");
        assert_eq!(buffer.write(b"x").expect("an answer"), 0);
        assert!(buffer.iter().all(|byte| *byte == 0));
        assert!(PageBuffer::with_capacity(PageBuffer::MAX_CAPACITY + 1).is_err());
    }

    #[test]
    fn only_the_last_handle_becomes_a_buffer() {
        let pages = PageBuffer::copy_from_slice(b"once")
            .expect("taken")
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

    #[test]
    fn pages_that_were_given_away_get_new_frames() {
        let mut addresses = HashSet::new();
        for round in 0..64_u8 {
            let pages = PageBuffer::copy_from_slice(&[round + 1; 5000])
                .expect("taken")
                .freeze();
            pages.gift();
            let pages = pages.try_into_buffer().expect_err("never written to again");
            addresses.insert(pages.as_ptr().addr());
            drop(pages);
            let mut next = PageBuffer::with_capacity(5000).expect("taken");
            let is_same = addresses.contains(&next.as_ptr().addr());
            assert!(!is_same || next.spare_mut()[..5000].iter().all(|byte| *byte == 0));
        }
    }

    /// Whoever gives pages away does so before it drops its handle: whoever then finds that it has the
    /// last one must see it. The guard: the order of the two questions in `try_into_buffer`.
    #[test]
    fn pages_given_away_by_another_thread_never_become_a_buffer() {
        for _ in 0..2_000 {
            let mut pages = PageBuffer::zeroed(1).expect("taken").freeze();
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
                    let answer = pages.try_into_buffer();
                    pages = answer.expect_err("it becomes a buffer after it was given away");
                }
            });
        }
    }

    #[test]
    fn no_two_buffers_share_a_byte() {
        let sizes = [1, 4096, 4097, 70_000, 2 << 20, (2 << 20) + 1, 5 << 20];
        let threads: Vec<_> = (0..4_u8)
            .map(|thread| {
                std::thread::spawn(move || {
                    let mut kept: Vec<(Pages, u8)> = Vec::new();
                    for round in 0..400_usize {
                        let len = sizes[(round * 7 + usize::from(thread)) % sizes.len()];
                        let mark = (round as u8).wrapping_mul(4).wrapping_add(thread);
                        let mut buffer = if round % 5 == 0 {
                            PageBuffer::huge(len).expect("taken")
                        } else {
                            PageBuffer::with_capacity(len).expect("taken")
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
