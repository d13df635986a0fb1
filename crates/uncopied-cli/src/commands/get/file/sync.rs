//! Syncs files before they get their final names: many small ones together.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::task::{spawn_blocking, spawn_local};
use tokio::time::timeout;

/// From this number of files on, the file system is synced as a whole: each `fsync` would wait for
/// a commit of the journal of its own.
const MIN_FILES_FOR_SYNCFS: usize = 8;

/// The pause between two batches. Downloads of small files fill the next batch meanwhile, so that
/// the disk commits hundreds of them at a time.
const PAUSE_BETWEEN_BATCHES: Duration = Duration::from_millis(20);

/// A file that waits to be synced.
struct Waiting {
    file: Arc<File>,
    device: u64,
    done: oneshot::Sender<io::Result<()>>,
}

/// Syncs files on another thread. While one batch is synced, the next one is collected.
#[derive(Clone, Default)]
pub(crate) struct Syncer(Rc<State>);

#[derive(Default)]
struct State {
    waiting: RefCell<Vec<Waiting>>,
    is_running: Cell<bool>,
    /// Whether no file comes that is not waiting already.
    is_complete: Cell<bool>,
    completed: Notify,
}

impl Syncer {
    /// Says that no file comes that is not waiting already, so that the last batch begins at once.
    pub(crate) fn expect_no_more(&self) {
        self.0.is_complete.set(true);
        self.0.completed.notify_one();
    }

    /// Waits until the content of a file on a device is on the disk.
    ///
    /// # Errors
    ///
    /// The file system could not write it. In a batch, the fault may be that of another file.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing: the file is synced nevertheless.
    pub(crate) async fn sync(&self, file: Arc<File>, device: u64) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        self.0
            .waiting
            .borrow_mut()
            .push(Waiting { file, device, done });
        if !self.0.is_running.replace(true) {
            spawn_local(run(Rc::clone(&self.0)));
        }
        match outcome.await {
            Ok(outcome) => outcome,
            Err(_) => Err(io::Error::other("the thread that syncs files has ended")),
        }
    }
}

async fn run(state: Rc<State>) {
    loop {
        let batch = state.waiting.take();
        if batch.is_empty() {
            break;
        }
        // If the thread panics, the batch is dropped, which every waiting download finds out.
        let _ = spawn_blocking(move || sync_batch(batch)).await;
        if !state.is_complete.get() {
            // It makes no difference whether the time or the files have come to an end.
            let _ = timeout(PAUSE_BETWEEN_BATCHES, state.completed.notified()).await;
        }
    }
    state.is_running.set(false);
}

fn sync_batch(batch: Vec<Waiting>) {
    let is_one_device = batch
        .windows(2)
        .all(|pair| pair[0].device == pair[1].device);
    if batch.len() >= MIN_FILES_FOR_SYNCFS && is_one_device {
        // syncfs(2) reports failures to write since Linux 5.8.
        let outcome = rustix::fs::syncfs(&*batch[0].file);
        for waiting in batch {
            // The download may have been given up meanwhile.
            let _ = waiting.done.send(outcome.map_err(Into::into));
        }
    } else {
        for waiting in batch {
            let _ = waiting.done.send(waiting.file.sync_all());
        }
    }
}
