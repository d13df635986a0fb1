//! Leases on the memory that the kernel may still read.
//!
//! A sender takes a [`Lease`] before the kernel sees the address of the pages, and keeps the lease
//! until a notification says that the kernel is done with these pages. While the lease exists, the
//! page frames can be neither written to nor freed. If the notification can never be read, the
//! lease is leaked: dropping the lease early would allow the memory to change while the kernel
//! reads it.

use std::sync::Arc;

use super::limits::{BytesInFlight, Quota};
use crate::arena::Memory;

/// A lease on memory in flight, which counts against a [`Quota`]. Dropping the lease declares that
/// the kernel is done with the memory.
#[derive(Debug)]
#[must_use = "dropping a lease frees the memory"]
pub(crate) struct Lease {
    memory: Memory,
    /// The bytes that count against the quota: the total size of the pages that the memory touches.
    bytes: BytesInFlight,
}

impl Lease {
    /// Takes a lease on `memory`. Returns `None` if that would exceed the limit of the sender or of
    /// the process.
    ///
    /// Always succeeds while nothing else is in flight, so that even a send that is longer than the
    /// limit can be made.
    pub(crate) fn take(memory: Memory, quota: &Arc<Quota>) -> Option<Self> {
        let bytes = quota.reserve(&memory)?;
        Some(Self { memory, bytes })
    }

    /// Takes a lease on `memory`, even if that exceeds a limit. For memory that the limits have
    /// already allowed.
    pub(crate) fn take_unchecked(memory: Memory, quota: &Arc<Quota>) -> Self {
        let bytes = quota.reserve_unchecked(&memory);
        Self { memory, bytes }
    }

    /// Ends the lease, but not the count of its bytes, because the memory was gifted.
    pub(crate) fn into_bytes(self) -> BytesInFlight {
        self.bytes
    }

    pub(crate) fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Shortens the lease to the first `len` bytes, because the kernel accepted no more than these.
    /// The pages after these bytes no longer count against the quota. May be called while the
    /// [prepared call](Memory::prepare) still exists.
    pub(crate) fn shorten(&mut self, len: usize) {
        self.memory.shorten(len);
        self.bytes.shrink_to(&self.memory);
    }
}

/// The leases of one send: always at least one, and usually only one.
#[derive(Debug)]
pub(crate) struct Leases {
    first: Lease,
    rest: Vec<Lease>,
}

impl Leases {
    /// Collects the leases of a send, in the order in which their bytes are sent. Returns `None` if
    /// there are no leases.
    pub(crate) fn of(leases: impl IntoIterator<Item = Lease>) -> Option<Self> {
        let mut leases = leases.into_iter();
        let first = leases.next()?;
        let rest = leases.collect();
        Some(Self { first, rest })
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Lease> {
        std::iter::once(&self.first).chain(&self.rest)
    }

    /// Returns how many bytes of the send are in pages of a region that were written to while they
    /// were leased, and so had to be copied.
    pub(super) fn copied_on_write(&self) -> u64 {
        self.iter()
            .map(|lease| lease.memory().copied_on_write())
            .sum()
    }

    /// Shortens the leases to the first `len` bytes of the whole send, because the kernel accepted
    /// no more than these. Returns the leases of which no byte was accepted, if there are any, so
    /// that the caller can drop them when it holds no lock.
    #[must_use = "dropping leases frees their memory"]
    pub(crate) fn shorten(&mut self, len: usize) -> Option<Self> {
        let mut left = len;
        for lease in std::iter::once(&mut self.first).chain(&mut self.rest) {
            let kept = left.min(lease.memory().len());
            lease.shorten(kept);
            left -= kept;
        }
        let kept = self.rest.iter().take_while(|it| it.memory().len() > 0);
        Self::of(self.rest.split_off(kept.count()))
    }
}

impl From<Lease> for Leases {
    fn from(first: Lease) -> Self {
        let rest = Vec::new();
        Self { first, rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::PageBuffer;
    use crate::in_flight::in_flight_bytes;
    use crate::sys::fork::tests::in_child;

    fn zeroed_memory(len: usize) -> Memory {
        Memory::Pages(PageBuffer::zeroed(len).expect("allocated").freeze())
    }

    #[test]
    fn leases_count_whole_pages_against_the_quota_until_they_are_dropped() {
        let quota = Quota::new(10_000);
        let first = Lease::take(zeroed_memory(5000), &quota).expect("within the limit");
        assert_eq!(quota.in_flight_bytes(), 8192);
        assert!(Lease::take(zeroed_memory(1), &quota).is_none());
        drop(first);
        let mut long = Lease::take(zeroed_memory(100_000), &quota).expect("the only one");
        long.shorten(4097);
        assert_eq!((quota.in_flight_bytes(), long.memory().len()), (8192, 4097));
        drop(long);
        assert_eq!(quota.in_flight_bytes(), 0);
    }

    /// The copy of a lease in a forked child is not counted there, so dropping it must not make the
    /// counts of the child negative.
    #[test]
    fn dropping_an_inherited_lease_changes_no_count_of_the_child() {
        let quota = Quota::new(1 << 20);
        let mut lease = Lease::take(zeroed_memory(5000), &quota);
        let failed_check = in_child(|| {
            let own = Lease::take(zeroed_memory(1), &quota);
            drop(lease.take());
            let counts = [quota.in_flight_bytes(), in_flight_bytes()];
            drop(own);
            let counts_at_end = [quota.in_flight_bytes(), in_flight_bytes()];
            u8::from((counts, counts_at_end) != ([4096; 2], [0; 2]))
        });
        assert_eq!((failed_check, quota.in_flight_bytes()), (0, 8192));
    }

    #[test]
    fn leased_pages_do_not_become_a_buffer_again() {
        let pages = PageBuffer::copy_from_slice(b"leased")
            .expect("allocated")
            .freeze();
        let quota = Quota::new(1 << 20);
        let lease = Lease::take(Memory::Pages(pages.clone()), &quota).expect("within the limit");
        let pages = pages.try_into_buffer().expect_err("leased");
        drop(lease);
        pages.try_into_buffer().expect("no longer leased");
    }

    /// The kernel accepts a prefix of the bytes of a send, which may end within any of its leases.
    #[test]
    fn leases_are_shortened_to_the_bytes_that_were_accepted() {
        let quota = Quota::new(1 << 20);
        let lens = |leases: &Leases| -> Vec<usize> {
            leases.iter().map(|lease| lease.memory().len()).collect()
        };
        for (accepted, kept, unaccepted) in [
            (15_000, &[5000, 5000, 5000][..], 0),
            (10_001, &[5000, 5000, 1], 0),
            (10_000, &[5000, 5000], 1),
            (7000, &[5000, 2000], 1),
            (4000, &[4000], 2),
        ] {
            let leases = [(); 3].map(|()| Lease::take(zeroed_memory(5000), &quota));
            let mut leases = Leases::of(leases.into_iter().flatten()).expect("leases");
            let rest = leases.shorten(accepted);
            assert_eq!(lens(&leases), kept, "{accepted}");
            assert_eq!(rest.map_or(0, |rest| lens(&rest).len()), unaccepted);
        }
        assert!(Leases::of([]).is_none());
        assert_eq!(quota.in_flight_bytes(), 0);
    }
}
