//! The link between the service above hyper and the replaying stream below it.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http_body::Body as _;
use uncopied_http::{Basis, FileBody};

/// The number of consecutive repeats after which a connection is parked and served without hyper.
const REPEATS_BEFORE_PARKING: u8 = 8;

/// Carries what a response depends on from the service, which knows it, to the stream, which
/// records the head that hyper writes. Also counts consecutive repeats.
#[derive(Default)]
pub(crate) struct ReplayRecorder {
    is_recording: AtomicBool,
    /// What the response depends on, and the length of its body.
    basis: Mutex<Option<(Basis, u64)>>,
    consecutive_repeats: AtomicU8,
}

impl ReplayRecorder {
    /// Whether all recent requests were repeats, so that parking hyper's part pays.
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

    /// Records what the response about to be written depends on, if a recording is in progress.
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
        // The value is consistent between any two statements that could panic.
        self.basis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
