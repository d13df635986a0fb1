//! Passes information from the service above hyper to the replaying stream below hyper.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http_body::Body as _;
use uncopied_http::{Basis, FileBody};

/// The number of consecutive replayed requests after which a connection is parked, so that it is
/// served without hyper.
const REPEATS_BEFORE_PARKING: u8 = 8;

/// Passes the [`Basis`] of a response from the service to the stream, which stores it together with
/// the head that hyper writes. The basis can tell later whether the response is still valid. Also
/// counts consecutive repeats, which are requests whose responses were replayed.
#[derive(Default)]
pub(crate) struct ReplayRecorder {
    is_recording: AtomicBool,
    /// The basis of the current response, and the length of the response's body.
    basis: Mutex<Option<(Basis, u64)>>,
    consecutive_repeats: AtomicU8,
}

impl ReplayRecorder {
    /// Whether at least the last [`REPEATS_BEFORE_PARKING`] requests were repeats. If so, the
    /// connection should be parked, because repeats do not need hyper.
    pub(crate) fn receives_only_repeats(&self) -> bool {
        self.consecutive_repeats.load(Ordering::Relaxed) >= REPEATS_BEFORE_PARKING
    }

    pub(super) fn note_repeat(&self) {
        let repeats = self.consecutive_repeats.load(Ordering::Relaxed);
        self.consecutive_repeats
            .store(repeats.saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn note_other_request(&self) {
        self.consecutive_repeats.store(0, Ordering::Relaxed);
    }

    /// If a recording is in progress, records the basis of the response that is about to be
    /// written.
    pub(crate) fn record_basis(&self, body: &FileBody) {
        if self.is_recording.load(Ordering::Relaxed) {
            let length = body.size_hint().exact();
            *self.lock() = body.basis().cloned().zip(length);
        }
    }

    pub(super) fn start_recording(&self) {
        *self.lock() = None;
        self.is_recording.store(true, Ordering::Relaxed);
    }

    pub(super) fn stop_recording(&self) -> Option<(Basis, u64)> {
        self.is_recording.store(false, Ordering::Relaxed);
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Basis, u64)>> {
        // Ignore poisoning, because a panic cannot leave the value half updated.
        self.basis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
