//! How a body learns that its bytes reach a [`Stream`](crate::Stream) unread.
//!
//! A body cannot see what consumes its frames: hyper itself, which only passes their addresses on,
//! or a layer that compresses them. So the body marks its first frame here, whose bytes were read
//! into memory. If the stream is then asked to write from the same address, nothing in between has
//! replaced the bytes.
//!
//! There is one slot for a mark per thread, because the body and the stream of a connection are
//! polled by the same task, one after the other. A mark that is overwritten in between proves
//! nothing, and its body continues to read: slower, but still correct.

use std::cell::RefCell;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

thread_local! {
    static MARKED_FRAME: RefCell<Option<MarkedFrame>> = const { RefCell::new(None) };
}

struct MarkedFrame {
    /// Kept alive so that other bytes cannot get its address.
    bytes: Bytes,
    proof: PassthroughProof,
    more_follows: bool,
}

/// Becomes true once the stream writes the marked bytes from where the body left them.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassthroughProof(Arc<AtomicBool>);

impl PassthroughProof {
    pub(crate) fn is_confirmed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Marks `bytes`. `more_follows` says that the body can yield its next bytes at once.
pub(crate) fn mark_frame(bytes: &Bytes, more_follows: bool) -> PassthroughProof {
    let proof = PassthroughProof::default();
    let marked = MarkedFrame {
        bytes: bytes.clone(),
        proof: proof.clone(),
        more_follows,
    };
    MARKED_FRAME.with(|slot| *slot.borrow_mut() = Some(marked));
    proof
}

/// Confirms the proof of the marked frame if the frame is among the slices that the stream is about
/// to write. Returns whether it is the last of them and more follows at once.
pub(crate) fn confirm_passthrough(slices: &[IoSlice<'_>]) -> bool {
    MARKED_FRAME.with(|slot| {
        let mut slot = slot.borrow_mut();
        let Some(marked) = &*slot else {
            return false;
        };
        let (start, len) = (marked.bytes.as_ptr(), marked.bytes.len());
        let is_marked = |slice: &IoSlice<'_>| slice.as_ptr() == start && slice.len() == len;
        let Some(at) = slices.iter().rposition(is_marked) else {
            return false;
        };
        marked.proof.0.store(true, Ordering::Relaxed);
        let more_follows = marked.more_follows && at + 1 == slices.len();
        *slot = None;
        more_follows
    })
}
