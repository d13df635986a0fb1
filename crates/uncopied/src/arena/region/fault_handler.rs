//! The thread that handles writes to protected pages.
//!
//! A process has one such thread. It is started with the first region and never stopped. Because
//! writers wait for this thread, it must never wait for a writer: it receives no signals, takes no
//! lock that a thread may hold while it writes to a region, and makes no system call that such a
//! thread could block. For example, a write fault can stop a thread in the middle of a `recv(2)`
//! into a region, while the thread keeps the socket locked. If the handler waited for that socket,
//! both threads would wait forever.
//!
//! If there is no memory for a copy, the writer waits, and the handler retries until there is. In
//! the meantime it handles the faults of other pages, which may need no memory. The process is
//! aborted if the handler panics, or if the handler can no longer read write faults because
//! something has closed its descriptor (which removes all protection). Otherwise peers would get
//! wrong bytes, or writers would wait forever.

use std::collections::BTreeMap;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use rustix::io::Result;

use super::state::RegionState;
use crate::arena::service_thread::{self, StartedOnce};
use crate::arena::space::{AddressSpace, GRANULE_BYTES, Granules};
use crate::sys::fork::{OwnerProcess, PerProcess};
use crate::sys::{self, Userfault};

const THREAD_NAME: &str = "uncopied-faults";

/// The delay before the handler tries again to make a page writable.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The number of pages whose faults can be postponed before the handler has to allocate memory.
const INITIAL_POSTPONED_CAPACITY: usize = 256;

/// The handler of this process. A forked child process starts its own.
static FAULT_HANDLER: PerProcess<StartedOnce<FaultHandler>> = PerProcess::new();

/// The handler of write faults, and the regions whose faults it handles.
#[derive(Debug)]
pub(super) struct FaultHandler {
    userfault: Userfault,
    owner_process: OwnerProcess,
    /// The regions, by start address.
    regions: Mutex<BTreeMap<usize, Weak<RegionState>>>,
    /// Unused huge pages. The copy of a page is made in one of these, and then moved to the address
    /// of that page.
    spare_pages: Mutex<Vec<Granules>>,
}

impl FaultHandler {
    /// Returns the handler of this process. The first call starts the handler.
    ///
    /// # Errors
    ///
    /// The errno with which opening the userfaultfd or starting the thread failed. The next call
    /// tries again.
    pub(super) fn of_this_process() -> Result<&'static Self> {
        FAULT_HANDLER
            .get()
            .get_or_start(|| Userfault::open().and_then(Self::start))
    }

    pub(super) fn start(userfault: Userfault) -> Result<&'static Self> {
        let handler = Self {
            userfault,
            owner_process: OwnerProcess::current(),
            regions: Mutex::new(BTreeMap::new()),
            spare_pages: Mutex::new(Vec::new()),
        };
        service_thread::spawn(THREAD_NAME, handler, Self::run)
    }

    pub(super) fn userfault(&self) -> &Userfault {
        &self.userfault
    }

    /// Whether the handler belongs to the calling process. If not, the calling process is a forked
    /// child with a copy of its parent's handler. The child must not use the copy, because the
    /// descriptor would change the protection of the parent's memory.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.owner_process.is_current()
    }

    pub(super) fn register(&self, address: usize, region: &Arc<RegionState>) {
        lock(&self.regions).insert(address, Arc::downgrade(region));
    }

    pub(super) fn unregister(&self, address: usize) {
        lock(&self.regions).remove(&address);
    }

    /// Replaces the frame of the protected huge page at address `page` with a fresh one. Returns
    /// whether the kernel registered the page with the userfaultfd again: without that, the page
    /// cannot be protected. The caller must then [wake](Self::wake) the threads that wait to write
    /// to the page.
    ///
    /// # Safety
    ///
    /// `page` must be a huge page of a region, and must be protected until it has been replaced.
    #[allow(unsafe_code)]
    pub(super) unsafe fn replace_page(&self, page: usize) -> Result<bool> {
        let spare = lock(&self.spare_pages).pop();
        let spare = spare.map_or_else(allocate_spare_page, Ok)?;
        // SAFETY: `page` is memory of a region, and is protected. `spare` is one granule of memory
        // that only this function uses, because it has been taken from the list; nothing ever makes
        // a reference into it.
        let replaced = unsafe { sys::replace_page(page, spare.address(), GRANULE_BYTES) };
        lock(&self.spare_pages).push(spare);
        replaced?;
        Ok(self.userfault.register(page, GRANULE_BYTES).is_ok())
    }

    fn run(&self) {
        // The pages whose faults could not be handled. Allocated now, because there may be no
        // memory when a page is added.
        let mut postponed = Vec::with_capacity(INITIAL_POSTPONED_CAPACITY);
        let mut retried_at = Instant::now();
        loop {
            let timeout = (!postponed.is_empty()).then_some(RETRY_INTERVAL);
            match self.userfault.next_fault(timeout) {
                Ok(Some(address)) => {
                    let page = address / GRANULE_BYTES * GRANULE_BYTES;
                    if !postponed.contains(&page) && !self.handle_fault(page) {
                        postponed.push(page);
                    }
                }
                Ok(None) => {}
                Err(errno) => {
                    eprintln!("uncopied: can no longer read write faults ({errno}); aborting");
                    process::abort();
                }
            }
            if !postponed.is_empty() && retried_at.elapsed() >= RETRY_INTERVAL {
                postponed.retain(|&page| !self.handle_fault(page));
                retried_at = Instant::now();
            }
        }
    }

    /// Makes the huge page at address `page` writable, and wakes the threads that wait to write to
    /// it. Returns false if that failed because there is no memory: the threads then still wait.
    fn handle_fault(&self, page: usize) -> bool {
        if let Some(region) = self.region_at(page) {
            return region.make_writable(page).is_ok();
        }
        // The region has been dropped. The write was not made by user code of this process, which
        // would have kept the region alive, but for example by `process_vm_writev(2)`. Once woken,
        // it fails or writes to whatever is mapped there now.
        self.wake(page);
        true
    }

    /// Wakes the threads that wait to write to the huge page at address `page`.
    pub(super) fn wake(&self, page: usize) {
        // Waking fails only for an invalid range of addresses, which cannot occur here.
        let _ = self.userfault.wake(page, GRANULE_BYTES);
    }

    fn region_at(&self, address: usize) -> Option<Arc<RegionState>> {
        let regions = lock(&self.regions);
        let (_, region) = regions.range(..=address).next_back()?;
        let region = region.upgrade()?;
        // Must come first: if `region` has become the last handle, dropping it takes the same lock,
        // and would wait forever.
        drop(regions);
        region.contains(address).then_some(region)
    }
}

#[allow(unsafe_code)]
fn allocate_spare_page() -> Result<Granules> {
    let spare = AddressSpace::get()?.allocate(GRANULE_BYTES, true)?;
    // SAFETY: the range is the memory of `spare`, which holds copies of the plain bytes of a
    // region.
    unsafe { sys::wipe_on_fork(spare.address(), spare.len())? };
    Ok(spare)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock may still be used: each change is a single call, so a panic cannot have left
    // the content inconsistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::super::Region;
    use super::*;
    use crate::sys::fork::tests::in_child;

    /// Fails if the handler does not wake the writers of a page that belongs to no region.
    #[test]
    #[allow(unsafe_code)]
    fn a_writer_continues_when_the_region_is_gone() {
        let handler = FaultHandler::of_this_process().expect("userfaultfd is allowed");
        let [page, spare] = [(); 2].map(|()| allocate_spare_page().expect("allocated"));
        // SAFETY: the page belongs to this test, and is accessible.
        unsafe { sys::populate(page.address(), GRANULE_BYTES) }.expect("populated");
        let userfault = handler.userfault();
        let registered = userfault.register(page.address(), GRANULE_BYTES);
        registered.expect("registered");
        let protected = userfault.protect(page.address(), GRANULE_BYTES);
        protected.expect("protected");
        let (done, is_done) = mpsc::channel();
        let address = page.address();
        thread::spawn(move || {
            // SAFETY: the page is accessible memory. Nothing else uses it until the channel reports
            // that the write is done, except for the copy that `replace_page` makes below, during
            // which the protection blocks the write.
            unsafe { std::ptr::with_exposed_provenance_mut::<u8>(address).write_volatile(7) };
            done.send(())
        });
        // Gives the thread time to start the write, which then waits because the page is protected.
        thread::sleep(Duration::from_millis(100));
        // Puts an unprotected frame in place of the page, without waking anything.
        //
        // SAFETY: both pages belong to this test, the first one is protected, and nothing uses the
        // second one.
        let replaced = unsafe { sys::replace_page(page.address(), spare.address(), GRANULE_BYTES) };
        replaced.expect("replaced");
        let written = is_done.recv_timeout(Duration::from_secs(60));
        assert_eq!(written, Ok(()), "the writer still waits");
    }

    /// The parent holds the lock of the list of regions during the fork, so the child hangs if it
    /// takes that lock.
    #[test]
    fn a_child_can_drop_a_region_of_its_parent() {
        let mut handles = Some(Region::new(GRANULE_BYTES).expect("allocated"));
        let handler = FaultHandler::of_this_process().expect("userfaultfd is allowed");
        let regions = lock(&handler.regions);
        let result = in_child(|| {
            drop(handles.take());
            u8::from(Region::new(GRANULE_BYTES).is_err())
        });
        drop(regions);
        assert_eq!(result, 0);
    }
}
