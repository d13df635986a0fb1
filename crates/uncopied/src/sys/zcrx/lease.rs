//! Received bytes that the kernel has handed out.

use std::fmt;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::slice;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::memory::PageMemory;
use super::refill::{Entry, Refill};
use super::signal::Signal;
use crate::sys::fork::OwnerProcess;

/// What the owner of a ring and the leases share. It lives until all of them are gone.
pub(super) struct Shared {
    /// Keeps the ring open. It comes before the memory, so that the ring is closed before the
    /// memory is unmapped.
    _ring: OwnedFd,
    area: PageMemory,
    /// What the kernel calls the area in the refill ring.
    area_token: u64,
    refill: Mutex<Refill>,
    signal: Arc<Signal>,
    owner_process: OwnerProcess,
}

impl Shared {
    /// Shares the memory of a registered interface queue. `ring` is a descriptor of the ring that
    /// it is registered with, other than that of the ring's owner.
    pub(super) fn new(
        ring: OwnedFd,
        area: PageMemory,
        area_token: u64,
        refill: Refill,
        signal: Arc<Signal>,
    ) -> Self {
        Self {
            _ring: ring,
            area,
            area_token,
            refill: Mutex::new(refill),
            signal,
            owner_process: OwnerProcess::current(),
        }
    }

    pub(super) fn area_bytes(&self) -> usize {
        self.area.len()
    }

    pub(super) fn signal(&self) -> &Signal {
        &self.signal
    }

    /// Returns the refill ring. Must not be called in a forked child of the process that created
    /// the ring, where the lock may be held for ever.
    pub(super) fn lock_refill(&self) -> MutexGuard<'_, Refill> {
        // Nothing that can panic runs while the lock is held, other than an allocation.
        self.refill.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn owner_process(&self) -> OwnerProcess {
        self.owner_process
    }

    #[cfg(test)]
    pub(super) fn area(&self) -> &PageMemory {
        &self.area
    }
}

/// Received bytes. They never change while the lease exists. Dropping it gives the memory back to
/// the kernel, from any thread.
pub(crate) struct Lease {
    shared: Arc<Shared>,
    offset: usize,
    len: usize,
}

impl Lease {
    /// Takes over bytes of the area that the kernel has handed out. Returns `None` if they are not
    /// within the area, which would be an error of the kernel.
    ///
    /// # Safety
    ///
    /// The kernel must have handed out these bytes with a completion that was not turned into a
    /// lease before.
    pub(super) unsafe fn new(shared: &Arc<Shared>, offset: u64, len: usize) -> Option<Self> {
        let offset = usize::try_from(offset).ok()?;
        let end = offset.checked_add(len)?;
        (end <= shared.area.len()).then(|| Self {
            shared: Arc::clone(shared),
            offset,
            len,
        })
    }
}

impl Deref for Lease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `new` has checked that the bytes lie within the area.
        let start = unsafe { self.shared.area.at(self.offset) };
        // SAFETY: the bytes lie within the area, which `self.shared` keeps mapped. They are
        // initialised: the area started with zeroes.
        //
        // Nothing writes to them while `self` is borrowed:
        // - The kernel and the network card write only to buffers that are not handed out. The
        //   caller of `new` has guaranteed that the kernel has handed out this range for this
        //   lease. It stays handed out until it is given back, which only `drop` does, or until the
        //   ring is closed, which cannot happen while `self.shared` has a descriptor of it. If a
        //   buffer holds several ranges, each was written before the kernel handed it out, and they
        //   do not overlap.
        // - This process does not write to the area: it makes no other pointers into it, and the
        //   area is read-only for it.
        // - In a forked child, this is the child's own copy of the memory, to which nothing writes.
        unsafe { slice::from_raw_parts(start.as_ptr(), self.len) }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        // The parent still has this lease, and gives the memory back itself.
        if !self.shared.owner_process.is_current() {
            return;
        }
        let entry = Entry {
            offset: self.offset as u64 | self.shared.area_token,
            len: self.len as u32,
            reserved: 0,
        };
        self.shared.lock_refill().give_back(entry);
        self.shared.signal.raise_if_wanted();
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}
