//! The state that all handles to a region share: its memory, and which of its huge pages are in
//! flight.
//!
//! For each huge page, the state counts the leases of the *current* page frame. When the frame is
//! replaced, a new epoch begins, in which the fresh frame has no leases. A lease from an earlier
//! epoch belongs to an old frame, which can no longer be written to, so the end of such a lease
//! does not change the count.
//!
//! Replacing a page never waits for a system call that is sending the page. A call that runs during
//! the replacement may have looked up the old frame or the fresh one. So after the call has
//! returned, its [`ProtectedCall`] protects the fresh frame as well, before the send can be
//! reported as complete.

use std::io;
use std::mem;
use std::ops::Range;
use std::process;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, Result};

use super::copy_count::{CopyCount, GiftedBytes};
use super::fault_handler::FaultHandler;
use crate::arena::space::{AddressSpace, GRANULE_BYTES, Granules};
use crate::sys;

/// The memory of a region, and the state of its huge pages.
#[derive(Debug)]
pub(super) struct RegionState {
    /// The memory, and after it one granule that is inaccessible.
    memory: Granules,
    /// The length of the accessible memory in bytes.
    len: usize,
    is_huge: bool,
    /// The handler of write faults in the memory, or the reason why the memory cannot be protected.
    fault_handler: Result<&'static FaultHandler>,
    pages: Mutex<Box<[HugePageState]>>,
    /// Signalled whenever a page stops [being replaced](HugePageState::is_being_replaced).
    replacement_ended: Condvar,
}

/// The state of a huge page.
#[derive(Clone, Debug, Default)]
struct HugePageState {
    /// The number of times that the page frame has been replaced.
    epoch: u64,
    /// The number of leases of the current frame.
    leases: usize,
    /// Whether the current frame may be in a kernel queue that never reports when it is done with
    /// the frame. If so, the next write replaces the frame.
    is_gifted: bool,
    is_protected: bool,
    /// Whether the frame was replaced and the kernel then refused to register the page with the
    /// userfaultfd again.
    is_unregistered: bool,
    /// Whether a thread is replacing the frame. That thread does not hold the lock meanwhile.
    is_being_replaced: bool,
    /// The bytes of the current frame that were gifted, by sender.
    gifted: GiftedBytes,
    history: CopyHistory,
}

impl HugePageState {
    fn is_in_flight(&self) -> bool {
        self.leases > 0 || self.is_gifted
    }

    /// Updates the state after the frame was replaced.
    fn replaced(&mut self, is_registered: bool) {
        let old = mem::take(self);
        self.epoch = old.epoch + 1;
        self.is_unregistered = !is_registered;
        self.history = old.history.copied();
        old.gifted.count();
    }
}

/// How often a page was sent and copied on write. Decides whether its next sends are copied instead
/// of protected.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CopyHistory {
    /// The number of sends that include the page since it was last copied on write, without those
    /// during a pause.
    sends: u32,
    /// The number of consecutive times, up to the latest, that the page was copied on write after
    /// no more than [`MAX_SENDS_PER_COPY`] sends.
    copies_in_a_row: u32,
    /// The number of upcoming sends for which the page is not protected.
    paused_sends: u32,
}

/// If a page is sent no more often than this before it is copied on write, sending a copy is
/// cheaper than protecting the page.
const MAX_SENDS_PER_COPY: u32 = 1;

/// After this many such copies in a row, the page is not protected for the next [`PAUSE_SENDS`]
/// sends.
const PAUSE_AFTER_COPIES: u32 = 8;

/// The length of such a pause, in sends. After it, the page is protected again, because the program
/// may no longer overwrite it after each send.
const PAUSE_SENDS: u32 = 256;

impl CopyHistory {
    /// Returns the history after the page was copied on write.
    fn copied(self) -> Self {
        let copies_in_a_row = match self.sends {
            ..=MAX_SENDS_PER_COPY => self.copies_in_a_row + 1,
            _ => 0,
        };
        if copies_in_a_row < PAUSE_AFTER_COPIES {
            return Self {
                sends: 0,
                copies_in_a_row,
                ..self
            };
        }
        Self {
            paused_sends: PAUSE_SENDS,
            ..Self::default()
        }
    }

    /// Counts a send that includes the page. Returns whether the page should not be protected for
    /// this send.
    fn count_send(&mut self) -> bool {
        let is_paused = self.paused_sends > 0;
        if is_paused {
            self.paused_sends -= 1;
        } else {
            self.sends = self.sends.saturating_add(1);
        }
        is_paused
    }
}

impl RegionState {
    /// Allocates zeroed memory for `len` bytes. `fault_handler` handles the write faults in it.
    #[allow(unsafe_code)]
    pub(super) fn new(
        len: usize,
        fault_handler: Result<&'static FaultHandler>,
    ) -> Result<Arc<Self>> {
        let memory_len = len
            .checked_next_multiple_of(GRANULE_BYTES)
            .ok_or(Errno::NOMEM)?;
        if len == 0 {
            return Err(Errno::INVAL);
        }
        let padded = memory_len.checked_add(GRANULE_BYTES).ok_or(Errno::NOMEM)?;
        let memory = AddressSpace::get()?.allocate(padded, true)?;
        let address = memory.address();
        // The extra granule at the end is made inaccessible. It keeps the kernel from merging the
        // region with adjacent memory into a single mapping: `huge_bytes` reads `/proc/self/smaps`,
        // which has one figure per mapping.
        //
        // SAFETY: the granule is the last one of `memory`, and nothing has a reference into it: the
        // `RegionMut`s, which make the references, only have the `memory_len` bytes before it.
        unsafe { sys::make_inaccessible(address + memory_len, GRANULE_BYTES)? };
        // SAFETY: the range is the rest of `memory`. A region holds plain bytes.
        unsafe { sys::wipe_on_fork(address, memory_len)? };
        // SAFETY: the range is the rest of `memory`, which is accessible.
        unsafe { sys::populate(address, memory_len)? };
        let mut state = Self {
            memory,
            len: memory_len,
            is_huge: false,
            fault_handler,
            pages: Mutex::new(vec![HugePageState::default(); memory_len / GRANULE_BYTES].into()),
            replacement_ended: Condvar::new(),
        };
        if let Ok(handler) = fault_handler
            && let Err(errno) = handler.userfault().register(address, memory_len)
        {
            state.fault_handler = Err(errno);
        }
        state.is_huge = state.huge_bytes().is_ok_and(|bytes| bytes == memory_len);
        let state = Arc::new(state);
        if let Ok(handler) = state.fault_handler {
            handler.register(state.address(), &state);
        }
        Ok(state)
    }

    pub(super) fn address(&self) -> usize {
        self.memory.address()
    }

    pub(super) fn contains(&self, address: usize) -> bool {
        (self.address()..self.address() + self.len).contains(&address)
    }

    pub(super) fn is_huge(&self) -> bool {
        self.is_huge
    }

    /// Returns the handler of write faults in the memory.
    ///
    /// # Errors
    ///
    /// The reason why the memory cannot be protected. `ECHILD`: the region was created by the
    /// parent process.
    pub(super) fn fault_handler(&self) -> Result<&'static FaultHandler> {
        let handler = self.fault_handler?;
        if handler.is_of_this_process() {
            Ok(handler)
        } else {
            Err(Errno::CHILD)
        }
    }

    /// Returns the number of bytes of the memory that are in huge pages now.
    pub(super) fn huge_bytes(&self) -> io::Result<usize> {
        let maps = std::fs::read_to_string("/proc/self/smaps")?;
        let mut is_in_region = false;
        let mut kib = 0;
        for line in maps.lines() {
            let mut words = line.split_ascii_whitespace();
            let first = words.next().unwrap_or_default();
            if let Some((start, _)) = first.split_once('-') {
                let start = usize::from_str_radix(start, 16);
                is_in_region = start.is_ok_and(|start| self.contains(start));
            } else if is_in_region && first == "AnonHugePages:" {
                let figure = words.next().and_then(|figure| figure.parse().ok());
                kib += figure.unwrap_or(0);
            }
        }
        Ok(kib * 1024)
    }

    /// Returns the indices of the huge pages that contain the bytes of a range of offsets in the
    /// region.
    pub(super) fn pages_of(bytes: &Range<usize>) -> Range<usize> {
        if bytes.is_empty() {
            return 0..0;
        }
        bytes.start / GRANULE_BYTES..bytes.end.div_ceil(GRANULE_BYTES)
    }

    /// Counts a send of this range of offsets in the region. Returns whether copying it is cheaper
    /// than protecting it, because most of its pages were overwritten after each of the latest
    /// sends.
    ///
    /// Must not be called in a forked child, because it takes the lock of the states of the pages.
    pub(super) fn count_send(&self, bytes: &Range<usize>) -> bool {
        let mut pages = self.lock();
        let pages = &mut pages[Self::pages_of(bytes)];
        let paused = pages
            .iter_mut()
            .filter_map(|page| page.history.count_send().then_some(()));
        2 * paused.count() > pages.len()
    }

    /// Makes the huge page that contains `address` writable. If the frame of the page is in flight,
    /// replaces the frame with a copy. Otherwise only removes the protection.
    ///
    /// Does nothing if the memory cannot be protected.
    #[allow(unsafe_code)]
    pub(super) fn make_writable(&self, address: usize) -> Result<()> {
        let Ok(handler) = self.fault_handler() else {
            return Ok(());
        };
        let index = (address - self.address()) / GRANULE_BYTES;
        let start = self.address() + index * GRANULE_BYTES;
        let mut pages = self.lock_after_replacements(index..index + 1);
        if !(pages[index].is_protected && pages[index].is_in_flight()) {
            if !pages[index].is_unregistered {
                // SAFETY: the page is not being replaced, and is not in flight. Neither can change
                // before the call returns, because the states of the pages are locked.
                unsafe { handler.userfault().unprotect(start, GRANULE_BYTES)? };
            }
            pages[index].is_protected = false;
            return Ok(());
        }
        pages[index].is_being_replaced = true;
        drop(pages);
        // SAFETY: the page is a huge page of `memory`, and was protected when the states were
        // locked. It stays protected until it has been replaced: every thread that would remove the
        // protection first waits until `is_being_replaced` is false.
        let replaced = unsafe { handler.replace_page(start) };
        let mut pages = self.lock();
        let page = &mut pages[index];
        page.is_being_replaced = false;
        if let Ok(is_registered) = replaced {
            page.replaced(is_registered);
        }
        drop(pages);
        self.replacement_ended.notify_all();
        // The writers are woken last, so that the copy is counted by the time that they continue.
        replaced.map(|_| handler.wake(start))
    }

    /// Protects those of `pages` that are not protected yet. `first` is the index in the region of
    /// the first element of `pages`.
    fn protect(&self, pages: &mut [HugePageState], first: usize) -> Result<()> {
        let userfault = self.fault_handler()?.userfault();
        let address_of = |index: usize| self.address() + (first + index) * GRANULE_BYTES;
        for (index, page) in pages.iter_mut().enumerate() {
            if page.is_unregistered {
                userfault.register(address_of(index), GRANULE_BYTES)?;
                page.is_unregistered = false;
            }
        }
        let mut done = 0;
        for run in pages.chunk_by_mut(|one, next| one.is_protected == next.is_protected) {
            if run.iter().any(|page| !page.is_protected) {
                userfault.protect(address_of(done), run.len() * GRANULE_BYTES)?;
                run.iter_mut().for_each(|page| page.is_protected = true);
            }
            done += run.len();
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Box<[HugePageState]>> {
        // A poisoned lock may still be used: no statement that may panic comes between two changes
        // that belong together, so a panic cannot have left the states inconsistent.
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until none of the pages in `range` is being replaced, and locks the states of all
    /// pages.
    fn lock_after_replacements(&self, range: Range<usize>) -> MutexGuard<'_, Box<[HugePageState]>> {
        self.replacement_ended
            .wait_while(self.lock(), |pages| {
                pages[range.clone()]
                    .iter()
                    .any(|page| page.is_being_replaced)
            })
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for RegionState {
    /// Does not wait for sends in flight: after the memory is unmapped, the references in the
    /// kernel's queues still keep the frames allocated.
    fn drop(&mut self) {
        if let Ok(handler) = self.fault_handler() {
            handler.unregister(self.address());
        }
    }
}

/// The leases that a [`RegionPart`](super::RegionPart) holds on the frames of its huge pages,
/// starting with its first zero-copy send.
#[derive(Debug)]
pub(super) struct PageLeases {
    region: Arc<RegionState>,
    /// The index in the region of the first page.
    first: usize,
    pages: Box<[LeasedPage]>,
}

/// A page, one frame of which may be leased. Changed only while the states of the pages are locked.
#[derive(Debug)]
struct LeasedPage {
    /// The epoch of the frame that is leased, or [`NO_LEASE_EPOCH`].
    epoch: AtomicU64,
    /// Whether another frame was leased earlier, but was replaced during a call.
    was_replaced: AtomicBool,
}

/// The value of [`LeasedPage::epoch`] if no frame is leased.
const NO_LEASE_EPOCH: u64 = u64::MAX;

impl LeasedPage {
    fn new() -> Self {
        Self {
            epoch: AtomicU64::new(NO_LEASE_EPOCH),
            was_replaced: AtomicBool::new(false),
        }
    }

    fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// Leases the current frame of `page`, the state of this page, unless it is leased already.
    fn lease(&self, page: &mut HugePageState) {
        let earlier = self.epoch.swap(page.epoch, Ordering::Relaxed);
        if earlier != page.epoch {
            page.leases += 1;
            if earlier != NO_LEASE_EPOCH {
                self.was_replaced.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Whether a frame of this page was replaced while it was leased. `page` is the state of this
    /// page.
    fn is_copied_on_write(&self, page: &HugePageState) -> bool {
        let is_replaced = self.epoch() != NO_LEASE_EPOCH && self.epoch() != page.epoch;
        is_replaced || self.was_replaced.load(Ordering::Relaxed)
    }
}

impl PageLeases {
    /// Creates the leases of these pages, without leasing any frame yet.
    pub(super) fn new(region: &Arc<RegionState>, pages: Range<usize>) -> Self {
        Self {
            region: Arc::clone(region),
            first: pages.start,
            pages: pages.map(|_| LeasedPage::new()).collect(),
        }
    }

    /// Returns a second set of leases on the frames that `self` has leased, for only the pages in
    /// `indices` (indices into the region).
    ///
    /// In a forked child, the new set leases nothing: see
    /// [`is_of_this_process`](Self::is_of_this_process).
    pub(super) fn subset(&self, indices: Range<usize>) -> Self {
        let subset = Self::new(&self.region, indices.clone());
        if !self.is_of_this_process() {
            return subset;
        }
        let mut pages = self.region.lock();
        for (index, copy) in indices.zip(&subset.pages) {
            let original = &self.pages[index - self.first];
            let leased = original.epoch();
            copy.epoch.store(leased, Ordering::Relaxed);
            let was_replaced = original.was_replaced.load(Ordering::Relaxed);
            copy.was_replaced.store(was_replaced, Ordering::Relaxed);
            // If the frame has been replaced meanwhile, nothing can write to it any longer, so it
            // needs no lease.
            if pages[index].epoch == leased {
                pages[index].leases += 1;
            }
        }
        drop(pages);
        subset
    }

    /// Protects the pages, and leases their current frames.
    ///
    /// `start` is the offset in the region of the first byte that is sent.
    pub(super) fn protect(&self, start: usize) -> Result<ProtectedCall<'_>> {
        self.protect_current_frames()?;
        Ok(ProtectedCall {
            leases: self,
            start,
            gifted_bytes: 0,
        })
    }

    /// Returns how many of the bytes in `bytes` (offsets in the region) are in pages whose leased
    /// frame has been replaced, because the page was written to. 0 in a forked child.
    pub(super) fn copied_on_write(&self, bytes: &Range<usize>) -> u64 {
        self.count_bytes(bytes, |page, leased, _| leased.is_copied_on_write(page))
    }

    /// Records that the sender with this count has gifted the bytes in `bytes` (offsets in the
    /// region). They are counted when their page is copied, or at once if it has been.
    pub(super) fn record_gifted(&self, bytes: &Range<usize>, sender: &CopyCount) {
        let copied = self.count_bytes(bytes, |page, leased, len| {
            let is_copied = leased.is_copied_on_write(page);
            if !is_copied {
                page.gifted.add(sender, len);
            }
            is_copied
        });
        sender.add(copied);
    }

    /// Returns how many of the bytes in `bytes` are in pages for which `counts` returns true.
    /// `counts` gets the state of a page, its lease, and the number of bytes in the page.
    fn count_bytes(
        &self,
        bytes: &Range<usize>,
        mut counts: impl FnMut(&mut HugePageState, &LeasedPage, usize) -> bool,
    ) -> u64 {
        if !self.is_of_this_process() {
            return 0;
        }
        let mut pages = self.region.lock();
        let mut count = 0;
        for index in RegionState::pages_of(bytes) {
            let start = (index * GRANULE_BYTES).max(bytes.start);
            let end = ((index + 1) * GRANULE_BYTES).min(bytes.end);
            let leased = &self.pages[index - self.first];
            if counts(&mut pages[index], leased, end - start) {
                count += (end - start) as u64;
            }
        }
        count
    }

    /// Whether the region was created by the calling process. If not, this is a forked child, whose
    /// sends from the region are always copied, and so need no leases. The child must not lock the
    /// states of the pages: its copy of the lock may be held forever, by a thread that exists only
    /// in the parent.
    fn is_of_this_process(&self) -> bool {
        self.region.fault_handler().is_ok()
    }

    fn pages(&self) -> Range<usize> {
        self.first..self.first + self.pages.len()
    }

    /// Protects all pages, and leases those of their current frames that are not leased yet.
    fn protect_current_frames(&self) -> Result<()> {
        let mut pages = self.region.lock_after_replacements(self.pages());
        let pages = &mut pages[self.pages()];
        self.region.protect(pages, self.first)?;
        for (page, leased) in pages.iter_mut().zip(&self.pages) {
            leased.lease(page);
        }
        Ok(())
    }
}

impl Drop for PageLeases {
    fn drop(&mut self) {
        if !self.is_of_this_process() {
            return;
        }
        let mut pages = self.region.lock();
        for (page, leased) in pages[self.pages()].iter_mut().zip(&self.pages) {
            if page.epoch == leased.epoch() {
                page.leases -= 1;
            }
        }
    }
}

/// Protects the pages of a region for a zero-copy system call. This value must exist from before
/// the call until the call has returned.
///
/// It must be dropped before the send is reported as complete. If a page was replaced during the
/// call, the call may have looked up the fresh frame, and that frame is not protected before this
/// value is dropped.
#[derive(Debug)]
#[must_use = "the zero-copy call must be made while this value exists"]
pub(crate) struct ProtectedCall<'a> {
    leases: &'a PageLeases,
    /// The offset in the region of the first byte that is sent.
    start: usize,
    /// The number of gifted bytes, starting at `start`.
    gifted_bytes: usize,
}

impl ProtectedCall<'_> {
    /// Gifts the frames of the first `bytes` bytes: they are never written to again. The call
    /// passed these bytes to the kernel, which will not report when it is done with them. The pages
    /// stay protected, and the next write to each page replaces its frame.
    pub(crate) fn gift(&mut self, bytes: usize) {
        self.gifted_bytes = bytes;
    }
}

impl Drop for ProtectedCall<'_> {
    fn drop(&mut self) {
        if let Err(errno) = self.leases.protect_current_frames() {
            // The kernel may be reading a frame that user code can write to, so the process must
            // not continue. This can only happen to a page that was replaced during the call, and
            // no reason is known why the kernel would refuse to protect such a page.
            eprintln!("uncopied: cannot protect a page that is in flight ({errno}); aborting");
            process::abort();
        }
        let end = (self.start + self.gifted_bytes).div_ceil(GRANULE_BYTES);
        let mut pages = self.leases.region.lock();
        for page in &mut pages[self.leases.first..end.min(self.leases.pages().end)] {
            page.is_gifted = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Region, RegionMut, RegionPart};
    use super::*;
    use crate::arena::Memory;
    use crate::in_flight::{Lease, Quota};
    use crate::policy::{Tuning, WriteProtection};
    use crate::sys::fork::tests::in_child;

    fn region() -> (Region, RegionMut) {
        let (region, writer) = Region::new(3 * GRANULE_BYTES).expect("allocated");
        region.protection().expect("userfaultfd is allowed");
        (region, writer)
    }

    fn page(region: &Region, index: usize) -> HugePageState {
        region.state.lock_after_replacements(index..index + 1)[index].clone()
    }

    #[test]
    fn the_first_write_replaces_a_leased_page_and_unprotects_any_other() {
        let (region, mut writer) = region();
        let two = [(); 2].map(|()| region.part(GRANULE_BYTES - 1..=GRANULE_BYTES));
        for part in &two {
            drop(part.protect().expect("protected"));
        }
        drop(two[0].protect().expect("protected again"));
        assert_eq!(
            [0, 1, 2].map(|index| page(&region, index).leases),
            [2, 2, 0]
        );
        assert!(!page(&region, 2).is_protected);
        let [first, second] = two;
        drop(first);
        assert_eq!(page(&region, 0).leases, 1);
        writer[0] = 1;
        let replaced = page(&region, 0);
        assert_eq!((replaced.epoch, replaced.leases), (1, 0));
        assert!(!replaced.is_protected);
        let part_of_fresh_frame = region.part(..1);
        drop(part_of_fresh_frame.protect().expect("protected"));
        let clone = second.clone();
        drop(second);
        assert_eq!(page(&region, 1).leases, 1, "the clone has the lease");
        drop(clone);
        let page_1 = page(&region, 1);
        assert!(
            page_1.is_protected,
            "it stays protected until the next write"
        );
        assert_eq!((page(&region, 0).leases, page_1.leases), (1, 0));
        writer[GRANULE_BYTES] = 1;
        let unprotected = page(&region, 1);
        assert_eq!((unprotected.epoch, unprotected.is_protected), (0, false));
        assert_eq!((writer[0], writer[1], writer[GRANULE_BYTES]), (1, 0, 1));
    }

    #[test]
    fn a_gifted_page_is_replaced_once() {
        let (region, mut writer) = region();
        let send = || {
            let part = region.part(..GRANULE_BYTES + 1);
            part.protect().expect("protected").gift(GRANULE_BYTES);
        };
        send();
        send();
        assert!(page(&region, 0).is_gifted && !page(&region, 1).is_gifted);
        writer.fill(7);
        assert_eq!([0, 1].map(|index| page(&region, index).epoch), [1, 0]);
        writer.fill(8);
        assert_eq!(page(&region, 0).epoch, 1);
        send();
        assert!(page(&region, 0).is_protected && page(&region, 0).is_gifted);
        writer.prepare().expect("prepared");
        assert_eq!([0, 1].map(|index| page(&region, index).epoch), [2, 0]);
        assert!(writer.iter().all(|byte| *byte == 8));
    }

    #[test]
    fn preparing_makes_every_page_of_the_range_writable() {
        let (region, writer) = region();
        let part = region.part(..);
        part.protect().expect("protected").gift(part.len());
        let (_left, mut right) = writer.split_at(2 * GRANULE_BYTES - 1);
        right.prepare().expect("prepared");
        let pages = [0, 1, 2].map(|index| page(&region, index));
        assert_eq!(pages.each_ref().map(|page| page.epoch), [0, 1, 1]);
        assert_eq!(
            pages.each_ref().map(|page| page.is_protected),
            [true, false, false]
        );
    }

    /// Otherwise two threads could copy the same page at the same time.
    #[test]
    fn a_page_that_is_being_replaced_is_waited_for() {
        let (region, mut writer) = region();
        let part = region.part(..1);
        part.protect().expect("protected").gift(1);
        region.state.lock()[0].is_being_replaced = true;
        let (started, thread_id) = std::sync::mpsc::channel();
        let preparing = std::thread::spawn(move || {
            let id = rustix::thread::gettid().as_raw_nonzero();
            started.send(id).expect("received");
            writer.prepare()
        });
        let id = thread_id.recv().expect("sent");
        let stat = format!("/proc/self/task/{id}/stat");
        let sleeps = || std::fs::read_to_string(&stat).is_ok_and(|stat| stat.contains(") S "));
        while !preparing.is_finished() && !sleeps() {
            std::thread::yield_now();
        }
        let mut pages = region.state.lock();
        assert_eq!(pages[0].epoch, 0, "replaced meanwhile");
        pages[0].replaced(true);
        drop(pages);
        region.state.replacement_ended.notify_all();
        preparing.join().expect("no panic").expect("prepared");
        assert_eq!(page(&region, 0).epoch, 1);
    }

    #[test]
    fn a_replaced_page_is_unregistered_if_the_kernel_has_refused_to_register_it() {
        let mut page = HugePageState::default();
        page.replaced(false);
        assert!(page.is_unregistered);
        page.replaced(true);
        assert!(!page.is_unregistered);
        assert_eq!(page.epoch, 2);
    }

    /// The call may have looked up the fresh frame, so that frame must be protected once the call
    /// has returned.
    #[test]
    fn a_page_replaced_during_the_call_is_protected_after_it() {
        let (region, mut writer) = region();
        let part = region.part(..2 * GRANULE_BYTES);
        let mut call = part.protect().expect("protected");
        writer[5] = 1;
        assert!(!page(&region, 0).is_protected);
        call.gift(1);
        drop(call);
        let [first, second] = [0, 1].map(|index| page(&region, index));
        assert_eq!((first.epoch, first.leases), (1, 1));
        assert!(first.is_protected && first.is_gifted);
        assert!(second.is_protected && !second.is_gifted);
        assert_eq!(part.copied_on_write(), GRANULE_BYTES as u64);
        assert_eq!(part.slice(GRANULE_BYTES - 1..).copied_on_write(), 1);
        drop(part);
        writer[5] = 2;
        assert_eq!(page(&region, 0).epoch, 2);
    }

    /// A page is replaced during the call, and then the lease is shortened. The lease must still
    /// cover the fresh frame: otherwise user code could write to that frame while it is in flight.
    /// Fails if `RegionPart::shorten` drops leases.
    #[test]
    fn a_lease_shortened_during_the_call_leases_the_fresh_frame_of_its_page() {
        let (region, mut writer) = region();
        let memory = Memory::Region(region.part(..2 * GRANULE_BYTES));
        let call = memory.prepare().expect("protected");
        let quota = Quota::new(u64::MAX);
        let mut lease = Lease::take(memory.clone(), &quota).expect("granted");
        writer[5] = 1;
        lease.shorten(100);
        drop(call);
        drop(memory);
        let fresh = page(&region, 0);
        assert_eq!((fresh.epoch, fresh.leases), (1, 1));
        assert!(fresh.is_protected);
        writer[5] = 2;
        assert_eq!(
            page(&region, 0).epoch,
            2,
            "the fresh frame was in flight, and so it is replaced"
        );
        let copied = lease.memory().copied_on_write();
        assert_eq!(copied, 100, "only accepted bytes count");
        drop(lease);
        assert_eq!(page(&region, 1).leases, 0);
    }

    #[test]
    fn a_slice_of_a_part_in_flight_leases_its_own_pages() {
        let (region, mut writer) = region();
        let whole = region.part(..);
        drop(whole.protect().expect("protected"));
        writer[GRANULE_BYTES] = 1;
        let part = whole.slice(GRANULE_BYTES..);
        drop(whole);
        assert_eq!(
            [0, 1, 2].map(|index| page(&region, index).leases),
            [0, 0, 1]
        );
        drop(part);
        assert_eq!(page(&region, 2).leases, 0);
    }

    /// The parent holds the lock of the states of the pages during the fork, so the child hangs if
    /// it takes that lock.
    #[test]
    fn a_child_can_drop_a_part_that_is_in_flight() {
        let (region, _writer) = region();
        let mut part = Some(region.part(..GRANULE_BYTES + 1));
        drop(part.as_ref().map(|part| part.protect().expect("protected")));
        let pages = region.state.lock();
        let result = in_child(|| {
            let part = part.take().expect("a part");
            let slice = part.slice(..1);
            let is_refused = slice.protect().is_err();
            let whole = part.slice(..GRANULE_BYTES);
            let _ = whole.protection_of_next_send(&Tuning::default());
            let _ = part.copied_on_write();
            part.record_gifted(&CopyCount::default());
            drop((part, slice, whole));
            u8::from(!is_refused)
        });
        assert_eq!((result, pages[0].leases), (0, 1));
    }

    #[test]
    fn a_page_that_is_copied_after_each_send_is_not_protected_for_a_while() {
        let (region, mut writer) = region();
        let both = region.part(GRANULE_BYTES - 1..2 * GRANULE_BYTES);
        let hot = region.part(GRANULE_BYTES..2 * GRANULE_BYTES);
        let mut send = |part: &RegionPart, overwrites: bool| {
            let protection = part.protection_of_next_send(&Tuning::default());
            let is_protected = protection == WriteProtection::HugePages;
            if is_protected {
                part.clone().protect().expect("protected").gift(part.len());
            }
            if overwrites {
                writer[GRANULE_BYTES] = 1;
            }
            is_protected
        };
        for _ in 0..2 {
            for _ in 0..PAUSE_AFTER_COPIES - 1 {
                assert!(send(&hot, true));
            }
            // A page that is sent more often before it is copied restarts the count.
            for _ in 0..MAX_SENDS_PER_COPY {
                assert!(send(&hot, false));
            }
            assert!(send(&hot, true));
        }
        for _ in 0..PAUSE_AFTER_COPIES {
            assert!(send(&hot, true));
        }
        for _ in 0..PAUSE_SENDS - 1 {
            assert!(!send(&hot, true));
        }
        // Only one of the two pages of this part was overwritten, and only this send of it counts.
        let protection = both.protection_of_next_send(&Tuning::default());
        assert_eq!(protection, WriteProtection::HugePages);
        assert!(send(&hot, true), "the pause is over");
    }

    #[test]
    #[allow(unsafe_code)]
    fn an_unregistered_page_is_registered_before_it_is_sent() {
        let (region, mut writer) = region();
        let handler = region
            .state
            .fault_handler()
            .expect("userfaultfd is allowed");
        let part = region.part(..1);
        part.protect().expect("protected").gift(1);
        // Brings the page into the state that it has after the kernel has refused to register it
        // again.
        let spare = AddressSpace::get().and_then(|space| space.allocate(GRANULE_BYTES, true));
        let spare = spare.expect("allocated");
        // SAFETY: the page is that of a region, and protected, and nothing uses the spare one.
        let replaced =
            unsafe { sys::replace_page(region.state.address(), spare.address(), GRANULE_BYTES) };
        replaced.expect("replaced");
        region.state.lock()[0] = HugePageState {
            is_unregistered: true,
            epoch: 1,
            ..HugePageState::default()
        };
        writer.prepare().expect("nothing is in flight");
        writer[0] = 3;
        part.protect().expect("protected").gift(1);
        assert!(page(&region, 0).is_protected && !page(&region, 0).is_unregistered);
        writer[0] = 4;
        assert_eq!(page(&region, 0).epoch, 2);
        assert!(handler.is_of_this_process());
    }
}
