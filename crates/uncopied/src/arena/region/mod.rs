//! Memory that may be overwritten while it is in flight.
//!
//! After `write(2)` has returned, a program may overwrite its buffer, and the peer still gets the
//! bytes that were sent. FreeBSD's zero-copy sockets kept this promise: the kernel copied a page
//! when the program first wrote to the page after sending it. A [`Region`] keeps the promise on
//! Linux. Pages that are sent from a region are protected against writes (`userfaultfd(2)`). The
//! first write to a protected page blocks until [a thread](fault_handler) has replaced the page
//! with a fresh one that has the same content, and then continues. The kernel continues to send
//! from the old page frame, to which nothing can write any longer.
//!
//! # Who may access what
//!
//! A [`RegionMut`] is the exclusive right to read and write a range of the region's bytes. It can
//! be split, and its parts can be moved to other threads; no two `RegionMut`s have a byte in
//! common. A [`Region`] and a [`RegionPart`] never access the bytes: they only pass *addresses* to
//! the kernel. So a send needs no synchronisation with the writers, and no Rust reference overlaps
//! a writer's `&mut [u8]`. If a byte is written while the sending call runs, the peer gets either
//! its old or its new value, as with `write(2)`. A write after the call has returned does not
//! change what the peer gets.
//!
//! The fault handler copies a page while a writer may hold a `&mut [u8]` to it. This is not a data
//! race: the copy contains everything that was stored before the page was protected, and the
//! hardware blocks every later store until the page has been replaced. The kernel does the same
//! when it copies a page on the first write after a fork.
//!
//! # How a page is replaced
//!
//! Pages are replaced in units of a huge page (2 MiB): the content of the page is copied to a fresh
//! one, which `mremap(2)` then moves to the address of the old one. Measured on Linux 6.18 (two
//! virtual cores of a shared machine, medians of 200 measurements):
//!
//! | on a write fault | overwrite 2 MiB | write one byte | protect 16 MiB again |
//! |---|---|---|---|
//! | copy 4 KiB (MADV_DONTNEED, UFFDIO_COPY) | 7,400 µs | 13 µs | 113 to 123 µs |
//! | copy 2 MiB, UFFDIO_MOVE | 325 µs | 285 µs | 4.5 to 5 µs |
//! | copy 2 MiB, `mremap` | 345 µs | 290 µs | 6.5 to 8 µs |
//! | no protection | 120 µs | - | - |
//!
//! Copying only 4 KiB is fastest if a single byte is written. But it splits the huge page, so that
//! every later send has to look up each page of 4 KiB, and a program that overwrites all 2 MiB pays
//! 20 times as much. The two methods that copy 2 MiB cost about the same. `mremap` was chosen
//! because it never leaves the page unmapped, not even for an instant, so that a `send(2)` of the
//! page by another thread never waits or fails. It also works on kernels before 6.8, which do not
//! have `UFFDIO_MOVE`.
//!
//! A page stays protected after its last lease has ended (no send of the page is in flight any
//! longer). The protection is removed by the next write to the page. So if bytes are sent again
//! unchanged, protecting them again needs no system call.
//!
//! | operation | µs |
//! |---|---|
//! | protect 2 MiB, and check again after the call | 2.1 to 2.8 |
//! | the same, for a page that is protected already | 0.8 |
//! | unprotect a page no longer in flight: by a write fault | 19 |
//! | the same, by [`RegionMut::prepare`] | 2 |
//!
//! # Compared with a copy
//!
//! The CPU time that it takes to send 1 GiB with `vmsplice` through a pipe of 1 MiB, compared with
//! `send(2)` of the same bytes. Both sides are in one process and connected over loopback, with
//! cubic congestion control; the receiver discards the bytes (`MSG_TRUNC`). Four series were
//! measured on a shared machine, each with 7 to 9 paired runs. The tables show the lowest and the
//! highest of the four medians, in CPU seconds per GB:
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
//! So a region is worthwhile for bytes that are mostly sent again unchanged. If all bytes are
//! rewritten before each send, a protected region costs 1.3 to 2.2 times as much as a copy. So
//! after a few such sends, the plan copies these pages for a while.
//!
//! A smaller pipe reduces the gain. For bytes that are not overwritten, the ratios for 2, 8 and 64
//! MiB are 0.83, 0.66 and 0.63 with a pipe of 512 KiB, and 0.98, 0.80 and 0.73 with a pipe of 256
//! KiB. With the default pipe of 64 KiB, a region is never worthwhile: most of the cost is then
//! that of filling and draining the pipe many times. Even without protection, `vmsplice` of the
//! three regions through that pipe takes 0.36, 0.35 and 0.24 s/GB; with protection, it takes 0.40,
//! 0.37 and 0.26 s/GB.

mod copy_count;
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

pub(crate) use self::copy_count::CopyCount;
use self::fault_handler::FaultHandler;
use self::state::{PageLeases, RegionState};
use super::resolve_range;
use super::space::GRANULE_BYTES;
use crate::policy::{Tuning, WriteProtection, reaches};
use crate::sys::{self, Mapped};

pub(crate) use self::state::ProtectedCall;

/// Memory in huge pages that may be written to at any time, even while it is being sent.
///
/// A `Region` is a handle from which bytes are sent; it is cheap to clone. A [`RegionMut`] is the
/// right to write to the bytes. Another thread may write while a sending call runs: of each byte
/// that is written meanwhile, the peer gets either the old or the new value. Writes after the call
/// has returned do not change what the peer gets: the first write to a huge page (2 MiB) in flight
/// copies the page, and the kernel continues to send from the old one.
///
/// A region is worthwhile for sends of at least 2 MiB, if most of the bytes are sent again
/// unchanged. Bytes that are rewritten after each send are cheaper to copy, or to write into
/// several [`PageBuffer`](super::PageBuffer)s in turn. If a huge page was copied after each of its
/// latest eight sends, its next 256 sends are copied instead, unless the sender's mechanisms are
/// [forced](crate::SendOptions::force_mechanisms).
/// [`Report::copied_on_write`](crate::Report::copied_on_write) says how many bytes were copied
/// because of such writes.
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
/// - **Protection needs `userfaultfd(2)`.** If the kernel, a sysctl or a seccomp filter refuses
///   this call, the region is ordinary memory, and sends from it are copied;
///   [`protection`](Self::protection) returns the reason. Protection is cheaper than a copy only on
///   huge pages: see [`is_huge`](Self::is_huge).
/// - **Writes by the kernel**, such as a `read(2)` into the region, depend on the protection. With
///   [`Protection::AllWrites`], they wait for the copy like any other write. With
///   [`Protection::UserWrites`], which an unprivileged process gets, they fail with `EFAULT` on a
///   protected page: call [`RegionMut::prepare`] first.
/// - **Registered buffers of io_uring, and `O_DIRECT` reads**, write to page frames rather than to
///   addresses. If a frame is replaced meanwhile, the bytes written to it are lost. Do not let them
///   write into a region.
/// - **After a fork**, the child finds zeroes instead of the region's bytes (`MADV_WIPEONFORK`), so
///   that it shares no page frame with its parent. The child can read and write the region, but its
///   sends from the region are copied.
/// - **If there is no memory for a copy**, the writer waits until there is. This does not delay the
///   writers of other huge pages. The writer also waits while the process has no mappings left
///   (`vm.max_map_count`, 65,530 by default). Each huge page that has ever been replaced uses one
///   mapping, so the default is enough for 128 GiB.
/// - **A single byte in flight** keeps the frame of its whole huge page in memory.
/// - **If the thread that handles write faults fails**, the process is aborted, because the bytes
///   in flight would no longer be protected.
#[derive(Clone)]
pub struct Region {
    state: Arc<RegionState>,
    len: usize,
}

/// The kind of writes against which a page in flight is protected. These writes wait until the page
/// has been copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Protection {
    /// All writes, by user code and by the kernel.
    AllWrites,
    /// Only writes by user code. A write by the kernel, such as in `read(2)`, does not wait: it
    /// fails with `EFAULT` if the page was sent and has neither been [prepared](RegionMut::prepare)
    /// nor written to by user code since.
    ///
    /// A process without privileges gets this protection. To get [`AllWrites`](Self::AllWrites), it
    /// needs `CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd` set to 1, or permission to open
    /// `/dev/userfaultfd`.
    UserWrites,
}

impl Region {
    /// Allocates a region of `len` zeroes, and returns it together with the right to write to all
    /// of it.
    ///
    /// The memory consists of whole huge pages, whose frames are all allocated by this call. The
    /// memory is released once every clone of the region, every [`RegionMut`] and every
    /// [`RegionPart`] have been dropped and every zero-copy send from the region is complete.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `len` is 0.
    /// - `ENOMEM`: there is no memory or address space left.
    ///
    /// Succeeds even if the region cannot be [protected](Self::protection).
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

    /// Returns the length of the region in bytes, which is never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns a handle to a range of the region's bytes, from which they can be sent.
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

    /// Returns the kind of writes against which the bytes in flight are protected.
    ///
    /// # Errors
    ///
    /// The reason why the bytes cannot be protected. In this case, sends from this region are
    /// copied.
    ///
    /// - `ENOSYS`: the kernel has no userfaultfd.
    /// - `EPERM`: a seccomp filter forbids it, or, before Linux 5.11, the sysctl
    ///   `vm.unprivileged_userfaultfd` does.
    /// - `EINVAL`: the kernel cannot protect against writes (before Linux 5.7).
    /// - `EMFILE`, `ENFILE` or `EAGAIN`: the process had too many descriptors or threads when the
    ///   region was created.
    /// - `ECHILD`: this is a forked child process, and the region was created by its parent.
    pub fn protection(&self) -> std::result::Result<Protection, sys::Errno> {
        let handler = self.state.fault_handler().map_err(sys::Errno::of)?;
        let userfault = handler.userfault();
        Ok(if userfault.is_user_mode_only() {
            Protection::UserWrites
        } else {
            Protection::AllWrites
        })
    }

    /// Whether the whole region consisted of huge pages when it was allocated. If not, a copy is
    /// cheaper than protection.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.state.is_huge()
    }

    /// Returns the number of bytes of the region's memory that are in huge pages now.
    ///
    /// This is slow, because it reads `/proc/self/smaps`.
    ///
    /// # Errors
    ///
    /// The error with which reading that file failed.
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

/// The exclusive right to read and write a range of a [`Region`]'s bytes.
///
/// Bytes in flight may be written to at any time. The first write to each page in flight takes
/// longer, because the page has to be copied.
pub struct RegionMut {
    state: Arc<RegionState>,
    start: usize,
    len: usize,
}

impl RegionMut {
    /// Splits the range into its first `at` bytes and the rest.
    ///
    /// If the boundary between the two halves is not on a huge page boundary (2 MiB), both halves
    /// share a huge page. That is allowed, but a write to that page while it is in flight stalls
    /// the writers of both halves until the page has been copied.
    ///
    /// # Panics
    ///
    /// If `at` is more than the length of the range.
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

    /// Returns the position of these bytes in the region. To send the bytes, pass the result to
    /// [`Region::part`].
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Makes the pages that contain these bytes writable, so that writes to them need not wait.
    /// This lasts until the bytes are sent again.
    ///
    /// Pages in flight are copied now, by this thread, instead of at the first write to each page.
    /// With [`Protection::UserWrites`], call this before the kernel writes to bytes that have been
    /// sent.
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
        // SAFETY: the region is initialised, readable memory for as long as `state` lives. These
        // bytes belong to this value alone: the first `RegionMut` of a region has all bytes, and
        // splitting a `RegionMut` makes two that have no byte in common.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for RegionMut {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = ptr::with_exposed_provenance_mut(self.state.address() + self.start);
        // SAFETY: as in `deref`, and this value is borrowed exclusively. The kernel may read the
        // memory meanwhile, but its reads are not accesses by this program: as with `write(2)`,
        // they have the effect of a copy at that moment. The fault handler only replaces pages to
        // which writes are blocked, and replacing a page changes no byte (see the docs of the
        // module).
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl fmt::Debug for RegionMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegionMut").field(&self.range()).finish()
    }
}

/// A handle to a range of a [`Region`]'s bytes, from which they can be sent. The handle keeps the
/// region alive, and never accesses the bytes.
#[derive(Clone)]
pub struct RegionPart {
    state: Arc<RegionState>,
    start: usize,
    len: usize,
    /// The leases of the part's pages. Not set before the first zero-copy send.
    leases: OnceLock<Arc<PageLeases>>,
}

impl RegionPart {
    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the part has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns a handle to a part of these bytes.
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

    /// Shortens the part to its first `len` bytes. The part keeps the leases of all its pages,
    /// because a [`ProtectedCall`] made from it may still exist: if a page was replaced during the
    /// call, the `ProtectedCall` still has to protect and lease the fresh frame, and does so
    /// through these leases.
    pub(crate) fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Counts a send of this part. Returns how the part must be protected, or
    /// [`WriteProtection::Costly`] if a copy is always cheaper: if the region is not in huge pages,
    /// or if the program overwrites these bytes after each send.
    pub(crate) fn protection_of_next_send(&self, tuning: &Tuning) -> WriteProtection {
        if !self.state.is_huge() {
            return WriteProtection::Costly;
        }
        // A shorter send is never protected, unless the caller forces the mechanism. A send from a
        // region that cannot be protected is copied, and reports the reason.
        let is_long = reaches(self.len as u64, tuning.region_min_bytes);
        let can_be_protected = is_long && self.state.fault_handler().is_ok();
        if can_be_protected && self.state.count_send(&self.range()) {
            WriteProtection::Costly
        } else {
            WriteProtection::HugePages
        }
    }

    /// Returns how many of the bytes are in pages that were written to while they were in flight
    /// through this handle, and so had to be copied.
    pub(crate) fn copied_on_write(&self) -> u64 {
        let leases = self.leases.get();
        leases.map_or(0, |leases| leases.copied_on_write(&self.range()))
    }

    /// Records that a sender has gifted these bytes, which are in flight through this handle. If
    /// their pages are copied on write later, or already were, their number is added to `sender`.
    pub(crate) fn record_gifted(&self, sender: &CopyCount) {
        if let Some(leases) = self.leases.get() {
            leases.record_gifted(&self.range(), sender);
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.state.address() + self.start
    }

    /// Returns the address range of the bytes, to be passed to system calls that read from it.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        // SAFETY: the range lies within the region, which stays mapped for as long as `state`
        // lives. `self`, which is borrowed for the lifetime of the result, keeps `state` alive.
        unsafe { Mapped::new(self.address(), self.len) }
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Protects these bytes for one zero-copy call. The call must be made, and must return, while
    /// the result exists.
    ///
    /// The pages then count as in flight until this part, and every clone or [slice](Self::slice)
    /// made from it after this call, have been dropped.
    ///
    /// The zero-copy call must look up the page frames before it returns. So it must not be an
    /// io_uring request that may wait for the socket, because such a request looks up the frames
    /// later.
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
