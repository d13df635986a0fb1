//! Bytes in pages that the kernel has received and mapped into this process.

use std::fmt;
use std::io;
use std::ops::RangeBounds;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, Weak};

use super::{Pages, resolve_range};
use crate::sys::{Mapped, SocketWindow, write_at};

/// A handle to received bytes that the kernel has mapped into this process instead of copying
/// them (`TCP_ZEROCOPY_RECEIVE`). The handle is cheap to clone and to slice.
///
/// The pages are given back to the kernel once every handle to the same
/// [chunk](crate::Chunk)'s mapped bytes has been dropped, and every zero-copy send of them is
/// complete.
///
/// # What can be done with the bytes
///
/// They can be [sent](crate::Sender) and [written to a file](Self::write_at) without a copy, and
/// copied to other memory.
///
/// There is no safe way to get them as a `&[u8]`, because they may change: the memory belongs to
/// the kernel, is read-only, and the kernel does not write to it again, but a process on the same
/// machine that sends pages of its own with `vmsplice(2)` may still write to them. (The kernel maps
/// only pages that are in no file and no anonymous memory, so this process must have got its pages
/// from the kernel, such as those of a packet ring. Bytes that were sent with `MSG_ZEROCOPY` from
/// the same machine have been copied on arrival, and do not change.) If the peer is on another
/// machine, or is trusted, use [`as_slice`](Self::as_slice).
#[derive(Clone)]
pub struct ReceivedPages {
    window: Arc<LeasedWindow>,
    start: usize,
    len: usize,
}

impl ReceivedPages {
    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a handle to a part of these bytes, without copying them.
    ///
    /// # Panics
    ///
    /// If the range does not lie within these bytes.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let range = resolve_range(range, self.len);
        Self {
            window: Arc::clone(&self.window),
            start: self.start + range.start,
            len: range.len(),
        }
    }

    /// Copies the first bytes to `target`, as many as fit. Returns their number.
    pub fn copy_to_slice(&self, target: &mut [u8]) -> usize {
        let len = self.len.min(target.len());
        self.window.window().copy_to(self.start, &mut target[..len]);
        len
    }

    /// Copies the bytes to a vector.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len];
        self.copy_to_slice(&mut bytes);
        bytes
    }

    /// Returns the bytes as a slice.
    ///
    /// # Safety
    ///
    /// For as long as the slice is used, nobody may write to the pages. This holds if the peer is
    /// on another machine, or is a process that does not write to memory that it has sent with
    /// `vmsplice(2)`. The address of the peer does not prove that it is on another machine: a
    /// container on this machine has an address of its own.
    #[must_use]
    #[allow(unsafe_code)]
    pub unsafe fn as_slice(&self) -> &[u8] {
        // SAFETY: the caller vouches that nobody writes to the pages.
        unsafe {
            self.window
                .window()
                .as_slice(self.start..self.start + self.len)
        }
    }

    /// Writes the bytes to a file, starting at `offset`, without copying them to other memory of
    /// this process first. The file's own position is neither used nor changed.
    ///
    /// If the file was opened with `O_DIRECT`, the storage device reads the bytes from the received
    /// pages: nothing is copied. The bytes begin at the start of a page, unless they were
    /// [sliced](Self::slice), and are whole pages, so `O_DIRECT` needs only an `offset` that is a
    /// multiple of the block size of the device. For any other file, the kernel copies the bytes
    /// into the page cache.
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`. Some bytes may have been written. `EINVAL` means that the file needs
    /// other offsets and lengths (`O_DIRECT`).
    pub fn write_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        write_at(file.as_fd(), self.mapped(), offset)
    }

    /// Returns the address of the first byte.
    pub(crate) fn address(&self) -> usize {
        self.mapped().address()
    }

    /// Returns the address range of the bytes, to be passed to system calls that read from it.
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        self.window
            .window()
            .bytes(self.start..self.start + self.len)
    }
}

impl fmt::Debug for ReceivedPages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReceivedPages")
            .field("len", &self.len)
            .finish()
    }
}

/// A part of a [chunk](crate::Chunk): consecutive bytes that were received in the same way.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ChunkPart {
    /// Bytes that were not copied: pages that the kernel has mapped into this process.
    Mapped(ReceivedPages),
    /// Bytes that the kernel has copied to pages of the arena.
    Copied(Pages),
}

impl ChunkPart {
    /// Returns the number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Mapped(pages) => pages.len(),
            Self::Copied(pages) => pages.len(),
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Copies the first bytes to `target`, as many as fit. Returns their number.
    pub fn copy_to_slice(&self, target: &mut [u8]) -> usize {
        match self {
            Self::Mapped(pages) => pages.copy_to_slice(target),
            Self::Copied(pages) => {
                let len = pages.len().min(target.len());
                target[..len].copy_from_slice(&pages[..len]);
                len
            }
        }
    }

    /// Writes the bytes to a file, starting at `offset`: see [`ReceivedPages::write_at`].
    ///
    /// # Errors
    ///
    /// Those of `pwrite(2)`. Some bytes may have been written.
    pub fn write_at(&self, file: impl AsFd, offset: u64) -> io::Result<()> {
        match self {
            Self::Mapped(pages) => pages.write_at(file, offset),
            Self::Copied(pages) => write_at(file.as_fd(), pages.mapped(), offset),
        }
    }

    /// Returns the bytes as a slice.
    ///
    /// # Safety
    ///
    /// The same as for [`ReceivedPages::as_slice`]. Bytes that were copied never change.
    #[must_use]
    #[allow(unsafe_code)]
    pub unsafe fn as_slice(&self) -> &[u8] {
        match self {
            // SAFETY: the caller vouches for the same.
            Self::Mapped(pages) => unsafe { pages.as_slice() },
            Self::Copied(pages) => pages,
        }
    }
}

/// The windows of a receiver that are not in use.
#[derive(Debug, Default)]
pub(crate) struct FreeWindows(Mutex<Vec<SocketWindow>>);

impl FreeWindows {
    /// Takes a window.
    pub(crate) fn take(&self) -> Option<SocketWindow> {
        // In a forked child, the lock may be held for ever, by a thread that exists only in the
        // parent. The child then goes without.
        self.0.try_lock().ok()?.pop()
    }

    /// Gives a window back, and its pages back to the kernel.
    pub(crate) fn put(&self, mut window: SocketWindow) {
        window.discard();
        if let Ok(mut free) = self.0.try_lock() {
            free.push(window);
        }
    }

    /// Returns how many windows are in use by handles to their mapped bytes.
    pub(crate) fn leased(self: &Arc<Self>) -> usize {
        Arc::weak_count(self)
    }

    /// Returns a handle to all mapped bytes of a window. Once this handle and all made from it have
    /// been dropped, the window is free again, or is unmapped if `self` no longer exists.
    pub(crate) fn lease(self: &Arc<Self>, window: SocketWindow) -> ReceivedPages {
        let len = window.mapped();
        let window = Arc::new(LeasedWindow {
            window: Some(window),
            home: Arc::downgrade(self),
        });
        ReceivedPages {
            window,
            start: 0,
            len,
        }
    }
}

/// A window with mapped bytes to which there are handles.
#[derive(Debug)]
struct LeasedWindow {
    /// `None` only while this value is dropped.
    window: Option<SocketWindow>,
    home: Weak<FreeWindows>,
}

impl LeasedWindow {
    fn window(&self) -> &SocketWindow {
        self.window.as_ref().expect("it is not being dropped")
    }
}

impl Drop for LeasedWindow {
    fn drop(&mut self) {
        if let (Some(window), Some(home)) = (self.window.take(), self.home.upgrade()) {
            home.put(window);
        }
    }
}
