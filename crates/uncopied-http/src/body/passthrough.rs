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
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::frame_watch::FrameWatch;

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

/// Empty until a stream is asked to write the marked bytes from their original address. From then
/// on, it contains that stream's watch.
#[derive(Clone, Debug, Default)]
pub(crate) struct PassthroughProof(Arc<OnceLock<FrameWatch>>);

impl PassthroughProof {
    /// Returns the watch of the stream that has confirmed the proof.
    pub(crate) fn confirmed_by(&self) -> Option<&FrameWatch> {
        self.0.get()
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
/// about to write. `watch` returns the stream's watch. Returns whether the frame is the last slice
/// and the body can yield more bytes at once. If so, the stream holds back an incomplete packet, so
/// that those bytes can fill it.
pub(crate) fn confirm_passthrough(
    slices: &[IoSlice<'_>],
    watch: impl FnOnce() -> FrameWatch,
) -> bool {
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
        // The proof is still empty: this is the only place that fills it, and the mark is removed
        // below.
        let _ = marked.proof.0.set(watch());
        let more_follows = marked.more_follows && at + 1 == slices.len();
        *slot = None;
        more_follows
    })
}
