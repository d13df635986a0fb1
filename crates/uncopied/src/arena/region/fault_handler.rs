//! The thread that handles writes to protected pages.
//!
//! A process has one such thread, started with the first region and never stopped. It depends on
//! nothing that a writer could hold up: it receives no signals, and it waits neither for a lock
//! that a thread may hold while it writes to a region, nor for a system call that such a thread
//! could block. This matters because a thread can be stopped in the middle of a `recv(2)` into a
//! region, with the socket locked.
//!
//! If there is no memory for a copy, the writer waits, and the handler retries until there is. If
//! the handler cannot go on at all, the process is aborted. That is so if the handler panics, or if
//! something has closed its descriptor, which removes all protection. The alternatives would be
//! wrong bytes, or writers that hang.

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

/// How long the handler waits before it retries an allocation that failed.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// The handler of this process. A child process starts its own.
static FAULT_HANDLER: PerProcess<OnceLock<Result<&'static FaultHandler>>> = PerProcess::new();

/// The handler of write faults, and the regions whose faults it handles.
#[derive(Debug)]
pub(super) struct FaultHandler {
    userfault: Userfault,
    owner_process: OwnerProcess,
    /// The regions, by their addresses.
    regions: Mutex<BTreeMap<usize, Weak<RegionState>>>,
    /// The addresses of unused huge pages, in which a fresh page is made before it replaces one.
    spare_pages: Mutex<Vec<usize>>,
}

impl FaultHandler {
    /// The handler of this process, which the first call starts.
    ///
    /// # Errors
    ///
    /// The errno that userfaultfd or the thread was refused with. If the first call fails, all
    /// later ones fail with the same error.
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

    /// Whether the handler belongs to this process. If not, it is that of the parent: this process
    /// has a copy of the parent's memory, but the descriptor would change the protection in the
    /// parent.
    pub(super) fn is_of_this_process(&self) -> bool {
        self.owner_process.is_current()
    }

    pub(super) fn register(&self, address: usize, region: &Arc<RegionState>) {
        lock(&self.regions).insert(address, Arc::downgrade(region));
    }

    pub(super) fn unregister(&self, address: usize) {
        lock(&self.regions).remove(&address);
    }

    /// Replaces the frame of the protected huge page at `page` by a fresh one, and wakes the
    /// threads that wait to write to it. Returns whether the page can be protected again.
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
                    eprintln!("uncopied: cannot read write faults any more ({errno}); aborting");
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
        // The page may have been made writable for another thread after this fault occurred, and
        // then nothing else wakes the thread that waits.
        self.wake(address / GRANULE_BYTES * GRANULE_BYTES);
    }

    fn wake(&self, page: usize) {
        // This only fails for an invalid range of addresses.
        let _ = self.userfault.wake(page, GRANULE_BYTES);
    }

    fn region_at(&self, address: usize) -> Option<Arc<RegionState>> {
        let regions = lock(&self.regions);
        let (_, region) = regions.range(..=address).next_back()?;
        let region = region.upgrade()?;
        // If the returned handle becomes the last one, its drop takes the same lock.
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
    // A panic cannot leave the content inconsistent: each change is a single call.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("uncopied: the thread that handles write faults panicked; aborting");
        process::abort();
    }
}
