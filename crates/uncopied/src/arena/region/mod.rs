//! Memory that may be overwritten while it is in flight.
//!
//! FreeBSD's zero-copy sockets kept the promise of `write(2)`: if a program wrote to a buffer after
//! sending it, the kernel first copied the page, and the peer got the bytes as they were. A
//! [`Region`] keeps this promise on Linux. What is sent of it is protected against writes
//! (`userfaultfd(2)`). The first write to a protected page waits until [a thread](fault_handler)
//! has put a fresh page with the same content in its place, and then goes on. The kernel keeps the
//! old page frame, which nothing can write to any more.
//!
//! # Who may access what
//!
//! A [`RegionMut`] is the exclusive right to read and write some bytes of the region. It can be
//! split and moved to other threads, and no two of them have a byte in common. A [`Region`] and a
//! [`RegionPart`] never read a byte: they only pass *addresses* to the kernel. So a send needs no
//! synchronisation with the writers, and yet no two Rust references overlap. If a byte is written
//! during the send, the peer gets its value from before or after the write, as with `write(2)`. A
//! write after the send does not change what the peer gets.
//!
//! The copy is made while a writer may hold a `&mut [u8]` to the page. This is not a data race:
//! everything that was stored before the page was protected is in the copy, and the hardware lets
//! no store through before the page is replaced. The thread does here what the kernel itself does
//! with pages after a fork.
//!
//! # What is replaced, and how
//!
//! The unit is a huge page of 2 MiB: its content is copied to a fresh one, which `mremap(2)` then
//! moves into its place. Measured on Linux 6.18 (two virtual cores, medians of 200, on a shared
//! machine):
//!
//! | on a write fault | overwrite 2 MiB | write one byte | protect 16 MiB again |
//! |---|---|---|---|
//! | copy 4 KiB (MADV_DONTNEED, UFFDIO_COPY) | 7,400 µs | 13 µs | 113 to 123 µs |
//! | copy 2 MiB, UFFDIO_MOVE | 325 µs | 285 µs | 4.5 to 5 µs |
//! | copy 2 MiB, `mremap` | 345 µs | 290 µs | 6.5 to 8 µs |
//! | no protection | 120 µs | - | - |
//!
//! Copying 4 KiB is fastest for a single byte, but it splits the huge page, so that every later
//! send pays for each page of 4 KiB; a program that goes on writing pays 20 times as much. The
//! other two cost about the same. With `mremap` the page is never absent, not even for an instant:
//! a `send(2)` of it by another thread never waits or fails. It also works on kernels before 6.8.
//!
//! A page stays protected when its last lease ends. Only the next write to it removes the
//! protection. So protecting bytes that are sent again unchanged costs no call at all.
//!
//! | what | µs |
//! |---|---|
//! | protect 2 MiB, and check again after the call | 2.1 to 2.8 |
//! | the same, for a page that is protected already | 0.8 |
//! | unprotect a page no longer in flight: by a write fault | 19 |
//! | the same, by [`RegionMut::prepare`] | 2 |
//!
//! # Compared with a copy
//!
//! 1 GiB sent by `vmsplice` through a pipe of 1 MiB, against `send(2)` of the same bytes. Loopback,
//! cubic, the receiver discards the bytes (MSG_TRUNC), both sides in one process. CPU seconds per
//! GB, medians of 7 to 9 paired runs, the lowest and the highest of four such series, on a shared
//! machine:
//!
//! | region, never overwritten | `vmsplice` | `send` | ratio |
//! |---|---|---|---|
//! | 2 MiB | 0.11 to 0.23 | 0.15 to 0.26 | 0.69 to 0.96 |
//! | 8 MiB | 0.12 to 0.24 | 0.18 to 0.27 | 0.60 to 0.84 |
//! | 64 MiB | 0.11 to 0.23 | 0.19 to 0.30 | 0.58 to 0.83 |
//!
//! | region, all of it overwritten after each send | `vmsplice` | `send` | ratio |
//! |---|---|---|---|
//! | 2 MiB | 0.27 to 0.57 | 0.20 to 0.26 | 1.4 to 2.2 |
//! | 8 MiB | 0.35 to 0.48 | 0.27 to 0.29 | 1.3 to 1.6 |
//! | 64 MiB | 0.34 to 0.49 | 0.27 to 0.30 | 1.3 to 1.5 |
//!
//! So it pays for bytes that are mostly sent again unchanged. For bytes that are all rewritten each
//! time, it costs half as much again as a copy, or more. With a pipe of 512 KiB the ratios for
//! bytes that are not overwritten are 0.83, 0.66 and 0.63, with 256 KiB 0.98, 0.80 and 0.73. With
//! the default of 64 KiB it never pays. There the many rounds through the pipe cost most: even
//! without protection it takes 0.36, 0.35 and 0.24 s/GB instead of 0.40, 0.37 and 0.26.

mod fault_handler;
mod state;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::ptr;
use std::sync::{Arc, OnceLock};

use rustix::io::Result;

use self::fault_handler::FaultHandler;
use self::state::{PageLeases, RegionState};
use super::resolve_range;
use super::space::GRANULE_BYTES;
use crate::sys::Mapped;

pub(crate) use self::state::ProtectedCall;

/// Memory of huge pages that may be written to at any time, even while it is being sent.
///
/// This is a handle to send from, and cheap to clone. A [`RegionMut`] is the right to write. It may
/// be used during a send, by another thread: of a byte that is written then, the peer gets the
/// value from before or after. What is written after the send does not change what the peer gets:
/// the first write to a page of 2 MiB that is in flight copies the page, and the kernel goes on
/// sending the old one.
///
/// It pays from 2 MiB up, for bytes that are mostly sent again unchanged. Bytes that are rewritten
/// after each send are cheaper to copy, or to write into several [`PageBuffer`](super::PageBuffer)s
/// in turn.
///
/// ```
/// use uncopied::arena::Region;
///
/// let (region, mut bytes) = Region::new(4 << 20)?;
/// bytes[..5].copy_from_slice(b"frame");
/// let part = region.part(..5);
/// if let Err(errno) = region.protection() {
///     println!("sends of this region are copied: {errno}");
/// }
/// let (left, right) = bytes.split_at(2 << 20);
/// std::thread::spawn(move || { let mut right = right; right.fill(1) }).join().ok();
/// assert_eq!(&left[..part.len()], b"frame");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Rules
///
/// - **Protection needs `userfaultfd(2)`.** If the kernel, a sysctl or a seccomp filter refuses it,
///   the region is ordinary memory, and sends of it are copied; [`protection`](Self::protection)
///   returns the reason. Protection pays only on huge pages: see [`is_huge`](Self::is_huge).
/// - **Writes by the kernel**, such as a `read(2)` into the region, wait for the copy like any
///   other write with [`Protection::AllWrites`]. An unprivileged process gets
///   [`Protection::UserWrites`], with which they fail with `EFAULT` on a protected page: call
///   [`RegionMut::prepare`] first.
/// - **Registered buffers of io_uring, and `O_DIRECT` reads**, refer to page frames, not to
///   addresses. What they write to a frame that is replaced meanwhile is lost: do not let them
///   write into a region.
/// - **After a fork** the child has zeroes instead of these bytes (MADV_WIPEONFORK), so that it
///   shares no frame. It can read and write the region, but what it sends of it is copied.
/// - **Without memory for a copy** the writer waits until there is some. The same is true beyond
///   `vm.max_map_count` mappings (65,530 by default). Every page that was ever replaced takes one,
///   so the default is enough for 128 GiB.
/// - **One byte in flight pins the frame** of the whole huge page that it lies in.
/// - **If the thread that handles write faults fails**, the process is aborted, so that no byte in
///   flight is left without protection.
#[derive(Clone)]
pub struct Region {
    state: Arc<RegionState>,
    len: usize,
}

/// Which writes to a page in flight wait until the page is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// All writes.
    AllWrites,
    /// Writes by user code. Writes by the kernel, such as in `read(2)`, fail with `EFAULT` on a
    /// page that was sent and not [prepared](RegionMut::prepare) since.
    ///
    /// This is what a process without privilege gets. For [`AllWrites`](Self::AllWrites) it needs
    /// `CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd` set to 1, or the right to open
    /// `/dev/userfaultfd`.
    UserWrites,
}

impl Region {
    /// Allocates a region of `len` zeroes, and returns it with the right to write to all of it.
    ///
    /// The memory consists of whole huge pages, which are allocated at once. They are released when
    /// the region, every [`RegionMut`], every [`RegionPart`] and every zero-copy send of it are
    /// gone.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `len` is 0.
    /// - `ENOMEM`: there is no memory or address space left.
    ///
    /// It is not an error if the region cannot be [protected](Self::protection).
    pub fn new(len: usize) -> io::Result<(Self, RegionMut)> {
        let fault_handler = FaultHandler::of_this_process();
        Ok(Self::with_fault_handler(len, fault_handler)?)
    }

    fn with_fault_handler(
        len: usize,
        fault_handler: Result<&'static FaultHandler>,
    ) -> Result<(Self, RegionMut)> {
        let state = RegionState::new(len, fault_handler)?;
        let writer = RegionMut {
            state: Arc::clone(&state),
            start: 0,
            len,
        };
        Ok((Self { state, len }, writer))
    }

    /// The length of the region in bytes. It is never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns a handle of some bytes of the region, to send them.
    ///
    /// # Panics
    ///
    /// If the range does not lie within the region.
    #[must_use]
    pub fn part(&self, range: impl RangeBounds<usize>) -> RegionPart {
        let range = resolve_range(range, self.len);
        RegionPart {
            state: Arc::clone(&self.state),
            start: range.start,
            len: range.len(),
            leases: OnceLock::new(),
        }
    }

    /// Returns against which writes the bytes in flight are protected.
    ///
    /// # Errors
    ///
    /// The reason why they cannot be protected. Sends of this region are copied then.
    ///
    /// - `ENOSYS`: the kernel has no userfaultfd.
    /// - `EPERM`: a seccomp filter forbids it, or a sysctl before Linux 5.11.
    /// - `EINVAL`: the kernel cannot protect against writes (before Linux 5.7).
    /// - `ECHILD`: this is a child process, and the region belongs to its parent.
    pub fn protection(&self) -> Result<Protection> {
        let userfault = self.state.fault_handler()?.userfault();
        Ok(if userfault.is_user_mode_only() {
            Protection::UserWrites
        } else {
            Protection::AllWrites
        })
    }

    /// Whether all of the region was in huge pages when it was allocated. If not, a copy is
    /// cheaper than protection.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.state.is_huge()
    }

    /// Returns how many bytes of the region's memory are in huge pages now.
    ///
    /// This reads `/proc/self/smaps`, which takes some time.
    ///
    /// # Errors
    ///
    /// The error of reading that file.
    pub fn huge_bytes(&self) -> io::Result<usize> {
        self.state.huge_bytes()
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("len", &self.len)
            .field("protection", &self.protection())
            .field("is_huge", &self.is_huge())
            .finish()
    }
}

/// The exclusive right to read and write some bytes of a [`Region`].
///
/// Writing to bytes in flight is always correct. The first write to each page in flight takes
/// longer, because the page has to be copied.
pub struct RegionMut {
    state: Arc<RegionState>,
    start: usize,
    len: usize,
}

impl RegionMut {
    /// Splits the bytes into those before byte `at`, and the rest.
    ///
    /// Several writers may share a huge page (2 MiB), but they all wait while it is copied.
    ///
    /// # Panics
    ///
    /// If `at` is more than the number of bytes.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "{at} is beyond the {} bytes", self.len);
        let right = Self {
            state: Arc::clone(&self.state),
            start: self.start + at,
            len: self.len - at,
        };
        let left = Self { len: at, ..self };
        (left, right)
    }

    /// The position of these bytes in the region, to be passed to [`Region::part`].
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Makes the pages of these bytes writable without delay, until they are sent again.
    ///
    /// Pages in flight are copied now, by this thread, instead of at the first write to each. With
    /// [`Protection::UserWrites`] this is needed before the kernel writes to them.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: there is no memory for a copy, or the process has too many mappings
    /// (`vm.max_map_count`).
    pub fn prepare(&mut self) -> io::Result<()> {
        for page in RegionState::pages_of(&self.range()) {
            self.state
                .make_writable(self.state.address() + page * GRANULE_BYTES)?;
        }
        Ok(())
    }
}

impl Deref for RegionMut {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.state.address() + self.start);
        // SAFETY: the region is initialised memory for as long as `state` lives. These bytes belong
        // to this value alone: the first `RegionMut` of a region has all of them, and the two
        // values that one is split into have none in common.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for RegionMut {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = ptr::with_exposed_provenance_mut(self.state.address() + self.start);
        // SAFETY: as above, and this value is borrowed exclusively. The kernel may read the memory
        // meanwhile, but its reads are not accesses of this program: as in `write(2)`, they have
        // the effect of a copy at that moment. The fault handler only replaces pages whose writes
        // are stopped, and that changes no byte (see the docs of the module).
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl fmt::Debug for RegionMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegionMut").field(&self.range()).finish()
    }
}

/// A handle of some bytes of a [`Region`], to send them. It keeps the region alive, and never reads
/// a byte of it.
#[derive(Clone)]
pub struct RegionPart {
    state: Arc<RegionState>,
    start: usize,
    len: usize,
    /// The leases of its pages. There are none before the first zero-copy send.
    leases: OnceLock<Arc<PageLeases>>,
}

impl RegionPart {
    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the part has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a handle of a part of these bytes.
    ///
    /// # Panics
    ///
    /// If the range does not lie within these bytes.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let range = resolve_range(range, self.len);
        let start = self.start + range.start;
        let part = Self {
            state: Arc::clone(&self.state),
            start,
            len: range.len(),
            leases: OnceLock::new(),
        };
        if let Some(leases) = self.leases.get() {
            let pages = RegionState::pages_of(&part.range());
            part.leases.get_or_init(|| Arc::new(leases.subset(pages)));
        }
        part
    }

    /// Shortens the part to its first `len` bytes. It keeps the leases of all its pages: a
    /// [`ProtectedCall`] that still lives may yet have to protect and lease a fresh frame for this
    /// part, and only finds it by these leases.
    pub(crate) fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The smallest send for which protection costs less than a copy, in bytes: a huge page, if the
    /// region has them.
    pub(crate) fn min_bytes(&self) -> usize {
        if self.state.is_huge() {
            GRANULE_BYTES
        } else {
            usize::MAX
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.state.address() + self.start
    }

    /// The bytes, for the kernel to read.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        // SAFETY: the range lies within the region, which stays mapped for as long as `state`
        // lives. `self`, which is borrowed for the lifetime of the result, keeps it alive.
        unsafe { Mapped::new(self.address(), self.len) }
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Protects these bytes for one zero-copy call, which must be made while the result lives.
    ///
    /// From then on the pages count as in flight. They do so until this part, every clone of it,
    /// and every [slice](Self::slice) made since are dropped.
    ///
    /// The call must look the pages up before it returns. An io_uring request that may wait for the
    /// socket does not.
    ///
    /// # Errors
    ///
    /// The reason why these bytes can only be copied: see [`Region::protection`].
    pub(crate) fn protect(&self) -> Result<ProtectedCall<'_>> {
        self.state.fault_handler()?;
        let pages = RegionState::pages_of(&self.range());
        let leases = self
            .leases
            .get_or_init(|| Arc::new(PageLeases::new(&self.state, pages)));
        leases.protect(self.start)
    }
}

impl fmt::Debug for RegionPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegionPart").field(&self.range()).finish()
    }
}
