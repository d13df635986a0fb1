//! What the service above hyper and the stream below it say to each other.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use http_body::Body as _;
use uncopied_http::{Basis, FileBody};

/// After so many repeats in a row a connection does without hyper's part, until there is need for it.
const ENOUGH: u8 = 8;

/// How the service above hyper tells what its answer stands on.
#[derive(Default)]
pub(crate) struct Tape {
    is_recording: AtomicBool,
    /// And how long its body is.
    basis: Mutex<Option<(Basis, u64)>>,
    /// How many requests in a row were repeats.
    repeats: AtomicU8,
}

impl Tape {
    /// Whether hyper has had nothing to do lately, and is worth sending away.
    pub(crate) fn repeats_only(&self) -> bool {
        self.repeats.load(Ordering::Relaxed) >= ENOUGH
    }

    pub(super) fn note_repeat(&self) {
        let repeats = self.repeats.load(Ordering::Relaxed);
        self.repeats
            .store(repeats.saturating_add(1), Ordering::Relaxed);
    }

    pub(super) fn note_other(&self) {
        self.repeats.store(0, Ordering::Relaxed);
    }

    /// Notes on what the answer stands that is about to be written, if that is asked for.
    pub(crate) fn note(&self, body: &FileBody) {
        if self.is_recording.load(Ordering::Relaxed) {
            let length = body.size_hint().exact();
            *self.lock() = body.basis().cloned().zip(length);
        }
    }

    pub(super) fn start(&self) {
        *self.lock() = None;
        self.is_recording.store(true, Ordering::Relaxed);
    }

    pub(super) fn stop(&self) -> Option<(Basis, u64)> {
        self.is_recording.store(false, Ordering::Relaxed);
        self.lock().take()
    }

    fn lock(&self) -> MutexGuard<'_, Option<(Basis, u64)>> {
        // It is whole between any two of the statements that could panic.
        self.basis.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
