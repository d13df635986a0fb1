//! Memory that may be overwritten while it is in flight.
//!
//! FreeBSD's zero-copy sockets kept the promise of `write(2)`: whoever wrote to a buffer after the send
//! had a page of it copied, and the peer got the bytes as they were. A [`Region`] keeps it on Linux. What
//! is sent of it is protected against writes (`userfaultfd(2)`); the first write to a protected page
//! waits until [a thread](faults) has put a fresh page with the same content in its place, and then goes
//! on. The kernel keeps the old frame, which nobody can write to any more.
//!
//! # Who may touch what
//!
//! A [`RegionMut`] is the exclusive right to read and write some bytes of the region. It can be split and
//! moved to other threads, and no two of them have a byte in common. A [`Region`] and a [`RegionPart`]
//! never look at a byte: they lend *addresses* to the kernel. So a send needs no agreement with
//! the writers, and yet no two references of Rust's overlap. Of a write that is made during the send, the
//! peer sees the byte before or after it, as with `write(2)`; of one that is made after it, nothing.
//!
//! The copy is made while a writer may hold a `&mut [u8]` to the page. It is not a data race: what was
//! stored before the protection is in it, and the machine lets no store through before the page is
//! replaced. The thread stands in for the kernel here, which does the same to pages after a fork.
//!
//! # What is replaced, and how
//!
//! The unit is the huge page of 2 MiB: it is copied into a fresh one, which `mremap(2)` then moves into
//! its place. Measured on Linux 6.18 (two virtual cores, medians of 200, on a machine that was shared):
//!
//! | on a write fault | overwrite 2 MiB | write one byte | protect 16 MiB again |
//! |---|---|---|---|
//! | copy 4 KiB (MADV_DONTNEED, UFFDIO_COPY) | 7,400 µs | 13 µs | 113 to 123 µs |
//! | copy 2 MiB, UFFDIO_MOVE | 325 µs | 285 µs | 4.5 to 5 µs |
//! | copy 2 MiB, `mremap` | 345 µs | 290 µs | 6.5 to 8 µs |
//! | no protection | 120 µs | - | - |
//!
//! Copying 4 KiB wins for a single byte, but tears the huge page apart, and every later send pays
//! for it by the 4 KiB page; whoever goes on writing pays 20 times over. Between the other two there is
//! no difference in cost. With `mremap` the page is never absent, not for an instant: a `send(2)`
//! of it by another thread never waits or fails, and kernels before 6.8 have it as well.
//!
//! Protection is lifted when somebody writes to a page that is lent to nobody any more, not when
//! its last lease ends: bytes that are sent again unchanged then cost no call at all.
//!
//! | what | µs |
//! |---|---|
//! | protect 2 MiB, and look again after the call | 2.1 to 2.8 |
//! | the same, of a page that is protected already | 0.8 |
//! | write to a page that is lent to nobody any more: lift by the fault, by [`RegionMut::prepare`] | 19, 2 |
//!
//! # Against a copy
//!
//! 1 GiB sent by `vmsplice` through a pipe of 1 MiB, against `send(2)` of the same bytes, loopback, cubic,
//! the receiver discarding (MSG_TRUNC), both sides in one process: CPU seconds a GB, medians of 7 to 9
//! paired runs, the lowest and the highest of four such series, on a machine that others used as well:
//!
//! | region | not overwritten | send | ratio | overwritten whole after each send | send | ratio |
//! |---|---|---|---|---|---|---|
//! | 2 MiB | 0.11 to 0.23 | 0.15 to 0.26 | 0.69 to 0.96 | 0.27 to 0.57 | 0.20 to 0.26 | 1.4 to 2.2 |
//! | 8 MiB | 0.12 to 0.24 | 0.18 to 0.27 | 0.60 to 0.84 | 0.35 to 0.48 | 0.27 to 0.29 | 1.3 to 1.6 |
//! | 64 MiB | 0.11 to 0.23 | 0.19 to 0.30 | 0.58 to 0.83 | 0.34 to 0.49 | 0.27 to 0.30 | 1.3 to 1.5 |
//!
//! So it pays for what is mostly sent again as it is, and costs half as much again as a copy, or more, for
//! what is wholly rewritten each time. With a pipe of 512 KiB the ratios are 0.83, 0.66 and 0.63, with 256 KiB
//! 0.98, 0.80 and 0.73, and with the default of 64 KiB it never pays: there it is mostly the pipe's turns that
//! cost, as without protection it is 0.36, 0.35 and 0.24 s/GB instead of 0.40, 0.37 and 0.26.

mod faults;
mod shared;
#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut, Range, RangeBounds};
use std::ptr;
use std::sync::{Arc, OnceLock};

use rustix::io::Result;

use self::faults::Faults;
use self::shared::{Hold, RegionState};
use super::space::GRANULE;
use super::within;
use crate::sys::Mapped;

pub(crate) use self::shared::Protected;

/// Memory of huge pages that may be written to at any time, also while it is being sent.
///
/// This is a handle to send from; cloning it is cheap. The right to write is [`RegionMut`]'s, which may
/// use it while a send is under way, from another thread: of a byte written then the peer sees the value
/// before or after. Of what is written after the send it sees nothing: the first write to a page
/// of 2 MiB that was sent has it copied first, and the peer gets what was there.
///
/// It pays from 2 MiB up, for bytes that are mostly sent again as they are. What is rewritten after
/// each send is cheaper to copy, or to write into several [`PageBuffer`](super::PageBuffer)s in turn.
///
/// ```
/// use uncopied::arena::Region;
///
/// let (region, mut bytes) = Region::new(4 << 20)?;
/// bytes[..5].copy_from_slice(b"frame");
/// let part = region.part(..5);
/// if let Err(errno) = region.protection() {
///     println!("what is sent of it is copied: {errno}");
/// }
/// let (left, right) = bytes.split_at(2 << 20);
/// std::thread::spawn(move || { let mut right = right; right.fill(1) }).join().ok();
/// assert_eq!(&left[..part.len()], b"frame");
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Rules
///
/// - **Protection needs `userfaultfd(2)`.** Where the kernel, a sysctl or a seccomp filter refuses it, this
///   is memory like any other, and what is sent of it is copied; [`protection`](Self::protection) has the
///   reason. It pays on huge pages only: see [`is_huge`](Self::is_huge).
/// - **Writes by the kernel**, as by `read(2)` into the region, wait for the copy like any other with
///   [`Protection::AllWrites`]. A process without privilege gets [`Protection::UserWrites`], and they fail
///   with `EFAULT` on a protected page: call [`RegionMut::prepare`] before.
/// - **Registered buffers of io_uring, and `O_DIRECT` reads**, keep the frames of memory, not its
///   addresses. What they write to a frame that was replaced meanwhile is lost: not into a region.
/// - **A fork** gives the child zeroes instead of these bytes (MADV_WIPEONFORK), so that it shares no frame.
///   It can read and write there, but what it sends of this region is copied.
/// - **No memory for a copy**: the writer waits until there is some. That is also so beyond
///   `vm.max_map_count` mappings, one for each page that was ever replaced: 65,530 by default, which is
///   128 GiB.
/// - **One lent byte keeps the frame** of the whole huge page that it lies in.
/// - Should the thread that answers the writes ever fail, the process is aborted: no byte in flight is left
///   without protection.
#[derive(Clone)]
pub struct Region {
    shared: Arc<RegionState>,
    len: usize,
}

/// Which writes to a page in flight are waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// All.
    AllWrites,
    /// Those of user code. The kernel's own, as by `read(2)`, fail with `EFAULT` on a page that was
    /// sent and not [prepared](RegionMut::prepare) since: this process may not have more
    /// (`CAP_SYS_PTRACE`, `vm.unprivileged_userfaultfd`, or the right to open `/dev/userfaultfd` would
    /// do).
    UserWrites,
}

impl Region {
    /// A region of `len` bytes, all 0, and the right to write to all of it. It takes whole huge pages, at
    /// once, and gives them back when the last handle is gone: this, every [`RegionMut`], every
    /// [`RegionPart`], and every lease.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `len` is 0.
    /// - `ENOMEM`: no memory or address space is left.
    ///
    /// That it cannot be [protected](Self::protection) is none.
    pub fn new(len: usize) -> io::Result<(Self, RegionMut)> {
        Ok(Self::with(len, Faults::of_process())?)
    }

    fn with(len: usize, faults: Result<&'static Faults>) -> Result<(Self, RegionMut)> {
        let shared = RegionState::new(len, faults)?;
        let writer = RegionMut {
            shared: Arc::clone(&shared),
            start: 0,
            len,
        };
        Ok((Self { shared, len }, writer))
    }

    /// The length in bytes. It is never 0.
    #[must_use]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// The bytes of a range, to be sent.
    ///
    /// # Panics
    ///
    /// If the range does not lie within the region.
    #[must_use]
    pub fn part(&self, range: impl RangeBounds<usize>) -> RegionPart {
        let range = within(range, self.len);
        RegionPart {
            shared: Arc::clone(&self.shared),
            start: range.start,
            len: range.len(),
            hold: OnceLock::new(),
        }
    }

    /// Whether bytes in flight are protected, and against whom.
    ///
    /// # Errors
    ///
    /// Why they are not, so that what is sent is copied. `ENOSYS`: the kernel has no userfaultfd. `EPERM`:
    /// a seccomp filter forbids it, or before Linux 5.11 a sysctl. `EINVAL`: it cannot protect against
    /// writes (before 5.7). `ECHILD`: this is a child process, and the region is its parent's.
    pub fn protection(&self) -> Result<Protection> {
        let userfault = self.shared.faults()?.userfault();
        Ok(if userfault.is_user_mode_only() {
            Protection::UserWrites
        } else {
            Protection::AllWrites
        })
    }

    /// Whether all of it lay in huge pages when it was made. If not, copying is cheaper than protecting.
    #[must_use]
    pub fn is_huge(&self) -> bool {
        self.shared.is_huge()
    }

    /// How many bytes of its memory lie in huge pages now. It reads `/proc/self/smaps`, which takes
    /// some time.
    ///
    /// # Errors
    ///
    /// If that cannot be read.
    pub fn huge_bytes(&self) -> io::Result<usize> {
        self.shared.huge_bytes()
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

/// The right to read and write some bytes of a [`Region`], which nobody else has.
///
/// Writing to what is in flight takes longer the first time, as a page has to be copied; it is never
/// wrong.
pub struct RegionMut {
    shared: Arc<RegionState>,
    start: usize,
    len: usize,
}

impl RegionMut {
    /// The bytes before `at`, and those from there on.
    ///
    /// Writers to the same huge page (2 MiB) are right, but each makes the others wait while it is copied.
    ///
    /// # Panics
    ///
    /// If there are fewer bytes than `at`.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        assert!(at <= self.len, "{at} of {}", self.len);
        let right = Self {
            shared: Arc::clone(&self.shared),
            start: self.start + at,
            len: self.len - at,
        };
        let left = Self { len: at, ..self };
        (left, right)
    }

    /// Where in the region these bytes are: what [`Region::part`] takes.
    #[must_use]
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Makes the pages of these bytes such that writing to them waits for nobody, until they are sent
    /// again: this thread does now what would otherwise be done at the first write to each.
    ///
    /// With [`Protection::UserWrites`] that is needed before the kernel writes here.
    ///
    /// # Errors
    ///
    /// `ENOMEM`: no memory for a copy, or too many mappings (`vm.max_map_count`).
    pub fn prepare(&mut self) -> io::Result<()> {
        for page in RegionState::pages_of(&self.range()) {
            self.shared
                .make_writable(self.shared.address() + page * GRANULE)?;
        }
        Ok(())
    }
}

impl Deref for RegionMut {
    type Target = [u8];

    #[allow(unsafe_code)]
    fn deref(&self) -> &[u8] {
        let start = ptr::with_exposed_provenance(self.shared.address() + self.start);
        // SAFETY: the region is initialised memory for as long as `shared` lives. These bytes are this
        // value's alone: the first one had all, and those that it was split into have none in common.
        unsafe { std::slice::from_raw_parts(start, self.len) }
    }
}

impl DerefMut for RegionMut {
    #[allow(unsafe_code)]
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = ptr::with_exposed_provenance_mut(self.shared.address() + self.start);
        // SAFETY: as above, and this value is borrowed exclusively. That the kernel reads the memory is as
        // if it copied it at that moment, and that a page is replaced changes no byte (see the module).
        unsafe { std::slice::from_raw_parts_mut(start, self.len) }
    }
}

impl fmt::Debug for RegionMut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegionMut").field(&self.range()).finish()
    }
}

/// Some bytes of a [`Region`], to be sent. A handle: it keeps the region, and never looks at a byte.
#[derive(Clone)]
pub struct RegionPart {
    shared: Arc<RegionState>,
    start: usize,
    len: usize,
    /// Once it was lent.
    hold: OnceLock<Arc<Hold>>,
}

impl RegionPart {
    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no byte in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A part of these bytes.
    ///
    /// # Panics
    ///
    /// If the range does not lie within them.
    #[must_use]
    pub fn slice(&self, range: impl RangeBounds<usize>) -> Self {
        let range = within(range, self.len);
        let start = self.start + range.start;
        let part = Self {
            shared: Arc::clone(&self.shared),
            start,
            len: range.len(),
            hold: OnceLock::new(),
        };
        if let Some(hold) = self.hold.get() {
            let pages = RegionState::pages_of(&part.range());
            part.hold.get_or_init(|| Arc::new(hold.of_some(pages)));
        }
        part
    }

    /// Leaves the first `len` bytes. All pages that were lent with it stay lent: a [`Protected`] that still
    /// lives may yet have to protect a fresh frame for this part, and knows it by this hold alone.
    pub(crate) fn shorten(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// From how many bytes on protecting costs less than copying: a huge page, if there are any.
    pub(crate) fn min_bytes(&self) -> usize {
        if self.shared.is_huge() {
            GRANULE
        } else {
            usize::MAX
        }
    }

    pub(crate) fn address(&self) -> usize {
        self.shared.address() + self.start
    }

    /// The bytes, for the kernel to read.
    #[allow(unsafe_code)]
    pub(crate) fn mapped(&self) -> Mapped<'_> {
        // SAFETY: the range lies within the region, which stays mapped for as long as `shared`
        // lives.
        unsafe { Mapped::new(self.address(), self.len) }
    }

    fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// Protects these bytes, for one call that looks the pages up before it returns, and that is made
    /// while the answer lives. From then on the pages count as lent for as long as this part lives, or a
    /// clone of it, or a [slice](Self::slice) made since.
    ///
    /// Not for a call that looks pages up later, as an io_uring request that may wait for the socket.
    ///
    /// # Errors
    ///
    /// Why these bytes can only be copied: see [`Region::protection`].
    pub(crate) fn protect(&self) -> Result<Protected<'_>> {
        self.shared.faults()?;
        let pages = RegionState::pages_of(&self.range());
        let hold = self
            .hold
            .get_or_init(|| Arc::new(Hold::new(&self.shared, pages)));
        hold.protect(self.start)
    }
}

impl fmt::Debug for RegionPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RegionPart").field(&self.range()).finish()
    }
}
