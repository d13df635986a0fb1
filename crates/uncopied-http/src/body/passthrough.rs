//! How a body learns that its bytes flow into a [`Stream`](crate::Stream) unread.
//!
//! A body cannot see what reads its frames: hyper itself, which only passes their addresses on, or a
//! layer that compresses them. So it marks the first frame, bytes that were read into memory, here;
//! and if the stream is then asked to write from the very same address, nothing between the two has
//! replaced them.
//!
//! The mark is one slot per thread, as a connection's body and stream are polled by the same task,
//! one after the other. A mark that is overwritten meanwhile proves nothing, and the body goes on
//! reading: slower, still right.

use std::cell::RefCell;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

thread_local! {
    static WATCHED: RefCell<Option<Watched>> = const { RefCell::new(None) };
}

struct Watched {
    /// Kept, so that its address cannot become that of other bytes.
    bytes: Bytes,
    proof: Proof,
    more_follows: bool,
}

/// Set once the marked bytes have come by.
#[derive(Clone, Debug, Default)]
pub(crate) struct Proof(Arc<AtomicBool>);

impl Proof {
    pub(crate) fn is_given(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Marks `bytes`. `more_follows` says that the body has its next bytes at hand.
pub(crate) fn watch(bytes: &Bytes, more_follows: bool) -> Proof {
    let proof = Proof::default();
    let watched = Watched {
        bytes: bytes.clone(),
        proof: proof.clone(),
        more_follows,
    };
    WATCHED.with(|slot| *slot.borrow_mut() = Some(watched));
    proof
}

/// Proves what was marked if it is among the slices that the stream is about to write. Answers
/// whether it is the last of them, and more follows at once.
pub(crate) fn recognise(slices: &[IoSlice<'_>]) -> bool {
    WATCHED.with(|slot| {
        let mut slot = slot.borrow_mut();
        let Some(watched) = &*slot else {
            return false;
        };
        let (start, len) = (watched.bytes.as_ptr(), watched.bytes.len());
        let is_it = |slice: &IoSlice<'_>| slice.as_ptr() == start && slice.len() == len;
        let Some(at) = slices.iter().rposition(is_it) else {
            return false;
        };
        watched.proof.0.store(true, Ordering::Relaxed);
        let more_follows = watched.more_follows && at + 1 == slices.len();
        *slot = None;
        more_follows
    })
}
