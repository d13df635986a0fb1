//! The queue of sends that wait to be submitted together, in one system call.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Result;

use super::ring::{QueuedSend, Ring};

/// The sends of one ring that wait for the next batch.
#[derive(Default)]
pub(super) struct BatchQueue(Mutex<Vec<Arc<BatchEntry>>>);

/// A send in the queue. The queue and the future of the send share it.
pub(super) struct BatchEntry(Mutex<EntryState>);

enum EntryState {
    Queued(QueuedSend),
    Finished(Result<usize>),
    /// The send is being submitted, or has been cancelled, or its result has been returned.
    Taken,
}

impl BatchQueue {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<BatchEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, entry: Arc<BatchEntry>) {
        self.lock().push(entry);
    }

    /// Submits all queued sends to `ring`, and stores the results in their entries.
    pub(super) fn send_all(&self, ring: &Ring) {
        let queued = mem::take(&mut *self.lock());
        let mut entries = Vec::with_capacity(queued.len());
        let mut sends = Vec::with_capacity(queued.len());
        for entry in queued {
            if let Some(send) = entry.take() {
                entries.push(entry);
                sends.push(send);
            }
        }
        let mut entries = entries.into_iter();
        ring.send_all(sends, |result| {
            // The futures need not be woken here: each of them woke its own task when it queued its
            // send, so that task will poll the future again.
            if let Some(entry) = entries.next() {
                *entry.lock() = EntryState::Finished(result);
            }
        });
    }
}

impl BatchEntry {
    pub(super) fn new(send: QueuedSend) -> Self {
        Self(Mutex::new(EntryState::Queued(send)))
    }

    fn lock(&self) -> MutexGuard<'_, EntryState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_queued(&self) -> bool {
        matches!(*self.lock(), EntryState::Queued(_))
    }

    /// Takes the result out of the entry. Returns `None` if there is no result yet, or if it has
    /// already been taken.
    pub(super) fn take_result(&self) -> Option<Result<usize>> {
        let mut state = self.lock();
        let EntryState::Finished(result) = *state else {
            return None;
        };
        *state = EntryState::Taken;
        Some(result)
    }

    /// Takes the send out of the entry. Returns `None` if it has been taken before.
    pub(super) fn take(&self) -> Option<QueuedSend> {
        let mut state = self.lock();
        match mem::replace(&mut *state, EntryState::Taken) {
            EntryState::Queued(send) => Some(send),
            other => {
                *state = other;
                None
            }
        }
    }
}
