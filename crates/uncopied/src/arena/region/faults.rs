//! The thread that answers writes to protected pages.
//!
//! There is one for the process, started with the first region and never stopped. It is alone with what
//! it needs: it takes no signal, waits for no lock that a thread could hold while it writes to a region,
//! and for no call that could be stopped by such a thread. That matters, as a thread can be stopped in
//! the middle of `recv(2)` into a region, with the socket locked.
//!
//! Where there is no memory for a copy the writer waits, and the handler tries again until there is.
//! Where the handler cannot go on at all (it panics, or somebody has closed its descriptor, which lifts
//! all protection) the process is aborted: every other way ends in wrong bytes, or in writers that
//! hang.

use std::collections::BTreeMap;
use std::process;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use rustix::io::{Errno, Result};

use super::shared::RegionState;
use crate::arena::space::{AddressSpace, GRANULE};
use crate::sys::fork::{OwnerProcess, PerProcess};
use crate::sys::{self, Userfault};

const THREAD_NAME: &str = "uncopied-faults";

/// After so long the handler looks again whether there is memory.
const TRY_AGAIN: Duration = Duration::from_millis(5);

/// The handler of this process. A child starts its own.
static HANDLER: PerProcess<OnceLock<Result<&'static Faults>>> = PerProcess::new();

/// The handler of write faults, and the regions whose faults it handles.
#[derive(Debug)]
pub(super) struct Faults {
    userfault: Userfault,
    owner_process: OwnerProcess,
    regions: Mutex<BTreeMap<usize, Weak<RegionState>>>,
    /// Rooms for a huge page each, for whoever replaces one.
    spares: Mutex<Vec<usize>>,
}

impl Faults {
    /// The handler of this process, started at the first call.
    ///
    /// # Errors
    ///
    /// What the kernel answered then, at every call.
    pub(super) fn of_process() -> Result<&'static Self> {
        *HANDLER
            .get()
            .get_or_init(|| Userfault::open().and_then(Self::start))
    }

    pub(super) fn start(userfault: Userfault) -> Result<&'static Self> {
        let faults: &'static Self = Box::leak(Box::new(Self {
            userfault,
            owner_process: OwnerProcess::current(),
            regions: Mutex::new(BTreeMap::new()),
            spares: Mutex::new(Vec::new()),
        }));
        let thread = thread::Builder::new().name(THREAD_NAME.into());
        sys::without_signals(|| thread.spawn(|| faults.run()))
            .map(|_| faults)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))
    }

    pub(super) fn userfault(&self) -> &Userfault {
        &self.userfault
    }

    /// Whether this is the process that the handler answers for. A child has the memory of its parent,
    /// and a descriptor that would change the parent's protection.
    pub(super) fn is_ours(&self) -> bool {
        self.owner_process.is_current()
    }

    pub(super) fn enter(&self, address: usize, region: &Arc<RegionState>) {
        lock(&self.regions).insert(address, Arc::downgrade(region));
    }

    pub(super) fn leave(&self, address: usize) {
        lock(&self.regions).remove(&address);
    }

    /// Puts a fresh huge page in the place of the protected one at `page`, and answers whether that can
    /// be protected again.
    pub(super) fn replace(&self, page: usize) -> Result<bool> {
        let spare = lock(&self.spares).pop();
        let spare = spare.map_or_else(new_spare, Ok)?;
        let replaced = sys::replace_page(page, spare, GRANULE);
        lock(&self.spares).push(spare);
        replaced?;
        let is_registered = self.userfault.register(page, GRANULE).is_ok();
        self.wake(page);
        Ok(is_registered)
    }

    fn run(&self) {
        let _guard = AbortOnUnwind;
        loop {
            match self.userfault.next_fault() {
                Ok(address) => self.answer(address),
                Err(errno) => {
                    eprintln!("uncopied: the userfaultfd is gone ({errno}); aborting");
                    process::abort();
                }
            }
        }
    }

    fn answer(&self, address: usize) {
        if let Some(region) = self.region_of(address) {
            while region.make_writable(address).is_err() {
                thread::sleep(TRY_AGAIN);
            }
        }
        // For those whose page was made writable for another, between their fault and now.
        self.wake(address / GRANULE * GRANULE);
    }

    fn wake(&self, page: usize) {
        // It is refused for a range that cannot be one of addresses only.
        let _ = self.userfault.wake(page, GRANULE);
    }

    fn region_of(&self, address: usize) -> Option<Arc<RegionState>> {
        let regions = lock(&self.regions);
        let (_, region) = regions.range(..=address).next_back()?;
        let region = region.upgrade()?;
        // Dropping the last handle takes the same lock.
        drop(regions);
        region.contains(address).then_some(region)
    }
}

fn new_spare() -> Result<usize> {
    let spare = AddressSpace::get()?.open(GRANULE, true)?;
    sys::wipe_on_fork(spare, GRANULE)?;
    Ok(spare)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What these hold is whole between any two of the statements that could panic.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        eprintln!("uncopied: the thread that answers write faults has panicked; aborting");
        process::abort();
    }
}
