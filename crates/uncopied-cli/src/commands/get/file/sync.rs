//! Syncs files before they get their final names: many small ones together.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{spawn_blocking, spawn_local, yield_now};
use tokio::time::timeout;

/// From this number of files on, the file system is synced as a whole: each `fsync` would wait for
/// a commit of the journal of its own.
const MIN_FILES_FOR_SYNCFS: usize = 8;

/// The pause between two batches. Downloads of small files fill the next batch meanwhile, so that
/// the disk commits hundreds of them at a time.
const PAUSE_BETWEEN_BATCHES: Duration = Duration::from_millis(20);

/// After how many finished files the event loop gets a turn.
const FILES_PER_TURN: usize = 16;

/// What is called with the outcome of a sync.
type Done = Box<dyn FnOnce(io::Result<()>)>;

/// A file on a device that waits to be synced.
struct Waiting {
    file: Arc<File>,
    device: u64,
}

/// Syncs files on another thread. While one batch is synced, the next one is collected.
#[derive(Clone, Default)]
pub(crate) struct Syncer(Rc<State>);

#[derive(Default)]
struct State {
    waiting: RefCell<Vec<(Waiting, Done)>>,
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

    /// Calls `done` once the content of a file on a device is on the disk, or with the error if the
    /// file system could not write it. In a batch, the fault may be that of another file.
    pub(crate) fn sync(
        &self,
        file: Arc<File>,
        device: u64,
        done: impl FnOnce(io::Result<()>) + 'static,
    ) {
        let waiting = Waiting { file, device };
        let done: Done = Box::new(done);
        self.0.waiting.borrow_mut().push((waiting, done));
        if !self.0.is_running.replace(true) {
            spawn_local(run(Rc::clone(&self.0)));
        }
    }
}

async fn run(state: Rc<State>) {
    loop {
        let batch = state.waiting.take();
        if batch.is_empty() {
            break;
        }
        let (files, done): (Vec<_>, Vec<Done>) = batch.into_iter().unzip();
        // If the thread panics, there is no outcome.
        let outcomes = spawn_blocking(move || sync_batch(&files)).await;
        let mut outcomes = outcomes.unwrap_or_default().into_iter();
        for (number, done) in done.into_iter().enumerate() {
            let lost = || Err(io::Error::other("the thread that syncs files has ended"));
            done(outcomes.next().unwrap_or_else(lost));
            if number % FILES_PER_TURN == FILES_PER_TURN - 1 {
                yield_now().await;
            }
        }
        if !state.is_complete.get() {
            // It makes no difference whether the time or the files have come to an end.
            let _ = timeout(PAUSE_BETWEEN_BATCHES, state.completed.notified()).await;
        }
    }
    state.is_running.set(false);
}

/// Returns one outcome for each file.
fn sync_batch(batch: &[Waiting]) -> Vec<io::Result<()>> {
    let is_one_device = batch
        .windows(2)
        .all(|pair| pair[0].device == pair[1].device);
    if batch.len() >= MIN_FILES_FOR_SYNCFS && is_one_device {
        // syncfs(2) reports failures to write since Linux 5.8.
        let outcome = rustix::fs::syncfs(&*batch[0].file);
        batch.iter().map(|_| outcome.map_err(Into::into)).collect()
    } else {
        batch
            .iter()
            .map(|waiting| waiting.file.sync_all())
            .collect()
    }
}
