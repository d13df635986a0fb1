//! Received bytes.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

use crate::arena::Memory;
use crate::policy::Mechanism;
use crate::sys::zcrx::{Lease, Signal};

/// Bytes that a [`Queue`](super::Queue) has received. They never change.
///
/// The bytes are in the area of the queue, where the network card has put them. The chunk is a
/// lease on that memory: dropping it, in any thread, gives the memory back to the kernel, which
/// receives further bytes into it. So do not keep chunks for long: if all memory of the area is
/// held, nothing more can be received until a chunk is dropped.
///
/// A chunk may outlive its queue. As long as a chunk exists, the receive queue of the network card
/// stays registered, and the whole area stays allocated. The same holds if a chunk is leaked.
///
/// To send the bytes on, pass the chunk to a [`Sender`](crate::Sender): it becomes a [`Memory`],
/// whose lease ends when the kernel no longer reads the bytes. (A chunk of one page is shorter than
/// what a sender sends without copying, unless that is
/// [forced](crate::SendOptions::force_mechanisms).) To keep a part of it, or to share it, convert
/// it to [`Bytes`].
///
/// If the queue [copies](super::Queue::refusal), the bytes are in memory of their own, which counts
/// against the size of the area all the same.
pub struct Chunk {
    bytes: Content,
}

enum Content {
    Leased(Lease),
    Copied(Copied),
}

/// Bytes that were copied into memory of the program.
struct Copied {
    bytes: Vec<u8>,
    charged: usize,
    budget: Arc<Budget>,
}

impl Drop for Copied {
    fn drop(&mut self) {
        self.budget.held.fetch_sub(self.charged, Ordering::SeqCst);
        self.budget.signal.raise_if_wanted();
    }
}

/// The memory that a queue's copied chunks may take together.
pub(super) struct Budget {
    held: AtomicUsize,
    limit: usize,
    signal: Arc<Signal>,
}

impl Budget {
    pub(super) fn new(limit: usize, signal: Arc<Signal>) -> Self {
        Self {
            held: AtomicUsize::new(0),
            limit,
            signal,
        }
    }

    /// Whether chunks hold all memory. If so, dropping a chunk raises the signal.
    pub(super) fn is_exhausted(&self) -> bool {
        if self.held.load(Ordering::SeqCst) < self.limit {
            return false;
        }
        self.signal.want();
        self.held.load(Ordering::SeqCst) >= self.limit
    }
}

impl Chunk {
    pub(super) fn leased(lease: Lease) -> Self {
        Self {
            bytes: Content::Leased(lease),
        }
    }

    pub(super) fn copied(mut bytes: Vec<u8>, budget: &Arc<Budget>) -> Self {
        if bytes.len() < bytes.capacity() / 2 {
            bytes.shrink_to_fit();
        }
        let charged = bytes.capacity();
        budget.held.fetch_add(charged, Ordering::SeqCst);
        let budget = Arc::clone(budget);
        Self {
            bytes: Content::Copied(Copied {
                bytes,
                charged,
                budget,
            }),
        }
    }

    /// Returns the mechanism that has received the bytes: `zcrx` or `copy`. With `zcrx`, the kernel
    /// may still have copied them: see the [module](super#when-the-kernel-copies).
    #[must_use]
    pub fn mechanism(&self) -> Mechanism {
        match self.bytes {
            Content::Leased(_) => Mechanism::Zcrx,
            Content::Copied(_) => Mechanism::Copy,
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.bytes {
            Content::Leased(lease) => lease,
            Content::Copied(copied) => &copied.bytes,
        }
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Chunk> for Bytes {
    fn from(chunk: Chunk) -> Self {
        Self::from_owner(chunk)
    }
}

/// The bytes are sent from where they are, with `MSG_ZEROCOPY` or `send_zc`. The chunk is dropped
/// once the kernel is done with them.
impl From<Chunk> for Memory {
    fn from(chunk: Chunk) -> Self {
        Self::Bytes(chunk.into())
    }
}

impl fmt::Debug for Chunk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chunk")
            .field("len", &self.len())
            .field("mechanism", &self.mechanism())
            .finish_non_exhaustive()
    }
}

const _: () = {
    const fn is_send_and_sync<T: Send + Sync + 'static>() {}
    is_send_and_sync::<Chunk>();
};
