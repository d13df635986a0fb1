//! The thread that handles writes to protected pages.
//!
//! A process has one such thread. It is started with the first region and never stopped. Because
//! writers wait for this thread, it must never wait for a writer: it receives no signals, takes no
//! lock that a thread may hold while it writes to a region, and makes no system call that such a
//! thread could block. For example, a write fault can stop a thread in the middle of a `recv(2)`
//! into a region, while the thread keeps the socket locked. If the handler waited for that socket,
//! both threads would wait forever.
//!
//! If there is no memory for a copy, the handler retries until there is, and the writer waits. The
//! process is aborted if the handler panics, or if the handler can no longer read write faults
//! because something has closed its descriptor (which removes all protection). Otherwise peers
//! would get wrong bytes, or writers would wait forever.

use std::collections::BTreeMap;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, Result};

use super::state::RegionState;
use crate::arena::space::{AddressSpace, GRANULE_BYTES};
use crate::sys::fork::{OwnerProcess, PerProcess};
use crate::sys::{self, Userfault};

const THREAD_NAME: &str = "uncopied-faults";

/// The delay before the handler tries again to make a page writable.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The handler of this process. A forked child process starts its own.
static FAULT_HANDLER: PerProcess<OnceLock<Result<&'static FaultHandler>>> = PerProcess::new();

/// The handler of write faults, and the regions whose faults it handles.
#[derive(Debug)]
pub(super) struct FaultHandler {
    userfault: Userfault,
    owner_process: OwnerProcess,
    /// The regions, by start address.
    regions: Mutex<BTreeMap<usize, Weak<RegionState>>>,
    /// The addresses of unused huge pages. The copy of a page is made in one of these, and then
    /// moved to the address of that page.
    spare_pages: Mutex<Vec<usize>>,
}

impl FaultHandler {
    /// Returns the handler of this process. The first call starts the handler.
    ///
    /// # Errors
    ///
    /// The errno with which opening the userfaultfd or starting the thread failed. If the first
    /// call fails, all later calls fail with the same error.
    pub(super) fn of_this_process() -> Result<&'static Self> {
        *FAULT_HANDLER
            .get()
            .get_or_init(|| Userfault::open().and_then(Self::start))
    }

    pub(super) fn start(userfault: Userfault) -> Result<&'static Self> {
        let handler: &'static Self = Box::leak(Box::new(Self {
            userfault,
            owner_process: OwnerProcess::current(),
            regions: Mutex::new(BTreeMap::new()),
            spare_pages: Mutex::new(Vec::new()),
        }));
        let thread = thread::Builder::new().name(THREAD_NAME.into());
        sys::without_signals(|| thread.spawn(|| handler.run()))
            .map(|_| handler)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
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

    /// Replaces the frame of the protected huge page at address `page` with a fresh one, and wakes
    /// the threads that wait to write to the page. Returns whether the kernel registered the page
    /// with the userfaultfd again: without that, the page cannot be protected.
    pub(super) fn replace_page(&self, page: usize) -> Result<bool> {
        let spare = lock(&self.spare_pages).pop();
        let spare = spare.map_or_else(allocate_spare_page, Ok)?;
        let replaced = sys::replace_page(page, spare, GRANULE_BYTES);
        lock(&self.spare_pages).push(spare);
        replaced?;
        let is_registered = self.userfault.register(page, GRANULE_BYTES).is_ok();
        self.wake(page);
        Ok(is_registered)
    }

    fn run(&self) {
        let _guard = AbortOnUnwind;
        loop {
            match self.userfault.next_fault() {
                Ok(address) => self.handle_fault(address),
                Err(errno) => {
                    eprintln!("uncopied: can no longer read write faults ({errno}); aborting");
                    process::abort();
                }
            }
        }
    }

    fn handle_fault(&self, address: usize) {
        if let Some(region) = self.region_at(address) {
            while region.make_writable(address).is_err() {
                thread::sleep(RETRY_INTERVAL);
            }
        }
        // The page may already have been made writable, for another thread, after this fault
        // occurred. In that case the code above may wake no thread, so the thread that waits is
        // woken here.
        self.wake(address / GRANULE_BYTES * GRANULE_BYTES);
    }

    fn wake(&self, page: usize) {
        // Waking fails only for an invalid range of addresses, which cannot occur here.
        let _ = self.userfault.wake(page, GRANULE_BYTES);
    }

    fn region_at(&self, address: usize) -> Option<Arc<RegionState>> {
        let regions = lock(&self.regions);
        let (_, region) = regions.range(..=address).next_back()?;
        let region = region.upgrade()?;
        // Dropping `region` below also takes this lock, if that handle is the last one.
        drop(regions);
        region.contains(address).then_some(region)
    }
}

fn allocate_spare_page() -> Result<usize> {
    let spare = AddressSpace::get()?.allocate(GRANULE_BYTES, true)?;
    sys::wipe_on_fork(spare, GRANULE_BYTES)?;
    Ok(spare)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A poisoned lock may still be used: each change is a single call, so a panic cannot have left
    // the content inconsistent.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("uncopied: the thread that handles write faults panicked; aborting");
        process::abort();
    }
}
