//! Lets a body find out whether its bytes reach a [`Stream`](crate::Stream) unread.
//!
//! A body cannot see what consumes its frames. The consumer may be hyper, which only passes their
//! addresses on, or a layer that compresses the bytes. So the body reads its first frame into
//! memory and marks the frame here. If the stream is then asked to write from the same address,
//! nothing in between has replaced the bytes.
//!
//! Each thread has one slot for a mark. One is enough, because the same task polls the body and the
//! stream of a connection, one after the other. If another body overwrites the mark in between, the
//! first body gets no proof and continues to read from the file: slower, but still correct.

use std::cell::RefCell;
use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;

thread_local! {
    static MARKED_FRAME: RefCell<Option<MarkedFrame>> = const { RefCell::new(None) };
}

struct MarkedFrame {
    /// Keeps the memory allocated, so that no other bytes can get the same address.
    bytes: Bytes,
    proof: PassthroughProof,
    /// Whether the body can yield its next bytes at once.
    more_follows: bool,
}

/// A flag that becomes true once the stream is asked to write the marked bytes from their original
/// address.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassthroughProof(Arc<AtomicBool>);

impl PassthroughProof {
    pub(crate) fn is_confirmed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Marks `bytes`, and replaces the previous mark of this thread. `more_follows` says that the body
/// can yield its next bytes at once.
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

/// Confirms the proof of the marked frame if that frame is among the slices that the stream is
/// about to write. Returns whether the frame is the last slice and the body can yield more bytes at
/// once. If so, the stream holds back an incomplete packet, so that those bytes can fill it.
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
