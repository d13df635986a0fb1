//! The sends of a thread that wait to be made in one system call.

use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Result;

use super::ring::{QueuedSend, Ring};

/// The sends of a thread that wait for the next batch.
#[derive(Default)]
pub(super) struct BatchQueue(Mutex<Vec<Arc<BatchEntry>>>);

/// A send in the queue, which the queue shares with its future.
pub(super) struct BatchEntry(Mutex<EntryState>);

enum EntryState {
    Queued(QueuedSend),
    Finished(Result<usize>),
    /// The send is being made, or was cancelled, or its result has been returned.
    Taken,
}

impl BatchQueue {
    fn lock(&self) -> MutexGuard<'_, Vec<Arc<BatchEntry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn push(&self, entry: Arc<BatchEntry>) {
        self.lock().push(entry);
    }

    /// Makes all queued sends by `ring`.
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
            // Every future woke itself when it was queued, so that none is woken here.
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

    /// Takes the result out of the entry, if the send has been made.
    pub(super) fn take_result(&self) -> Option<Result<usize>> {
        let mut state = self.lock();
        let EntryState::Finished(result) = *state else {
            return None;
        };
        *state = EntryState::Taken;
        Some(result)
    }

    /// Takes the send out of the entry, unless that has happened before.
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
