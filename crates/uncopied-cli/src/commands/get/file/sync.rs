//! Syncs files before they get their final names: many small ones together.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::oneshot;
use tokio::task::{spawn_blocking, spawn_local};

/// From this number of files on, the file system is synced as a whole: each `fsync` would wait for
/// a commit of the journal of its own.
const MIN_FILES_FOR_SYNCFS: usize = 8;

type Waiting = (Arc<File>, oneshot::Sender<io::Result<()>>);

/// Syncs files on another thread. While one batch is synced, the next one is collected.
#[derive(Clone, Default)]
pub(crate) struct Syncer(Rc<State>);

#[derive(Default)]
struct State {
    waiting: RefCell<Vec<Waiting>>,
    is_running: Cell<bool>,
}

impl Syncer {
    /// Waits until the content of a file is on the disk.
    ///
    /// # Errors
    ///
    /// The file system could not write it. In a batch, the fault may be that of another file.
    ///
    /// # Cancellation
    ///
    /// Dropping the future changes nothing: the file is synced nevertheless.
    pub(crate) async fn sync(&self, file: Arc<File>) -> io::Result<()> {
        let (done, outcome) = oneshot::channel();
        self.0.waiting.borrow_mut().push((file, done));
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
    }
    state.is_running.set(false);
}

fn sync_batch(batch: Vec<Waiting>) {
    let device = |file: &File| file.metadata().map(|metadata| metadata.dev()).ok();
    let first = batch.first().and_then(|(file, _)| device(file));
    let is_one_device = || batch.iter().all(|(file, _)| device(file) == first);
    if batch.len() >= MIN_FILES_FOR_SYNCFS && first.is_some() && is_one_device() {
        // syncfs(2) reports failures to write since Linux 5.8.
        let outcome = rustix::fs::syncfs(&*batch[0].0);
        for (_, done) in batch {
            // The download may have been given up meanwhile.
            let _ = done.send(outcome.map_err(Into::into));
        }
    } else {
        for (file, done) in batch {
            let _ = done.send(file.sync_all());
        }
    }
}
