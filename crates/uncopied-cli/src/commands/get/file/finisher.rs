//! Syncs whole files and gives them their final names: many small ones together.

use std::cell::{Cell, RefCell};
use std::io;
use std::mem;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::join;
use tokio::sync::Notify;
use tokio::task::{spawn_blocking, spawn_local, yield_now};
use tokio::time::timeout;

use super::whole::Whole;
use crate::commands::get::error::GetError;

/// From this number of files on, the file system is synced as a whole: each `fsync` would wait for
/// a commit of the journal of its own.
const MIN_FILES_FOR_SYNCFS: usize = 8;

/// The pause between two batches. Downloads of small files fill the next batch meanwhile, so that
/// the disk commits hundreds of them at a time.
const PAUSE_BETWEEN_BATCHES: Duration = Duration::from_millis(20);

/// After how many finished files the event loop gets a turn.
const FILES_PER_TURN: usize = 16;

type Outcome = Result<(), GetError>;

/// Syncs and names files on other threads. While one batch is at work, the next one is collected.
#[derive(Clone, Default)]
pub(crate) struct Finisher(Rc<State>);

struct Waiting {
    whole: Arc<Whole>,
    done: Box<dyn FnOnce(Outcome)>,
}

#[derive(Default)]
struct State {
    waiting: RefCell<Vec<Waiting>>,
    is_running: Cell<bool>,
    /// Whether no file comes that is not waiting already.
    is_complete: Cell<bool>,
    completed: Notify,
}

impl Finisher {
    /// Says that no file comes that is not waiting already, so that the last batch begins at once.
    pub(crate) fn expect_no_more(&self) {
        self.0.is_complete.set(true);
        self.0.completed.notify_one();
    }

    /// Calls `done` once a file is on the disk and has its final name, or with the error that has
    /// prevented it. In a batch, the fault may be that of another file. All files must be on one
    /// file system.
    pub(super) fn finish(&self, whole: Whole, done: impl FnOnce(Outcome) + 'static) {
        self.0.waiting.borrow_mut().push(Waiting {
            whole: Arc::new(whole),
            done: Box::new(done),
        });
        if !self.0.is_running.replace(true) {
            spawn_local(run(Rc::clone(&self.0)));
        }
    }
}

async fn run(state: Rc<State>) {
    let mut synced = Vec::new();
    loop {
        let batch = state.waiting.take();
        if batch.is_empty() && synced.is_empty() {
            break;
        }
        // One batch is written to the disk while the one before gets its names. The kernel writes
        // on any CPU, possibly on that of the server, from which nothing arrives meanwhile.
        let (batch, named) = join!(
            on_thread(batch, sync),
            on_thread(mem::take(&mut synced), give_names),
        );
        for (number, (waiting, outcome)) in named.into_iter().enumerate() {
            (waiting.done)(outcome);
            if number % FILES_PER_TURN == FILES_PER_TURN - 1 {
                yield_now().await;
            }
        }
        for (waiting, outcome) in batch {
            match outcome {
                Ok(()) => synced.push(waiting),
                Err(error) => (waiting.done)(Err(error)),
            }
        }
        if !state.is_complete.get() && !state.waiting.borrow().is_empty() {
            // It makes no difference whether the time or the files have come to an end.
            let _ = timeout(PAUSE_BETWEEN_BATCHES, state.completed.notified()).await;
        }
    }
    state.is_running.set(false);
}

/// Takes a step with the files of a batch on another thread. Returns each of them with its outcome.
async fn on_thread(
    batch: Vec<Waiting>,
    step: fn(&[Arc<Whole>]) -> Vec<Outcome>,
) -> Vec<(Waiting, Outcome)> {
    if batch.is_empty() {
        return Vec::new();
    }
    let files: Vec<_> = batch.iter().map(|file| Arc::clone(&file.whole)).collect();
    // If the thread panics, there is no outcome.
    let outcomes = spawn_blocking(move || step(&files)).await;
    let mut outcomes = outcomes.unwrap_or_default().into_iter();
    let with_outcome = |waiting: Waiting| {
        let outcome = outcomes.next().unwrap_or_else(|| {
            let ended = io::Error::other("the thread that syncs and names files has ended");
            Err(GetError::file("finish", waiting.whole.path())(ended))
        });
        (waiting, outcome)
    };
    batch.into_iter().map(with_outcome).collect()
}

/// Writes files to the disk.
fn sync(files: &[Arc<Whole>]) -> Vec<Outcome> {
    // syncfs(2) reports failures to write since Linux 5.8.
    let together =
        (files.len() >= MIN_FILES_FOR_SYNCFS).then(|| rustix::fs::syncfs(&*files[0].file));
    let sync_one = |whole: &Arc<Whole>| {
        let synced = match together {
            Some(outcome) => outcome.map_err(io::Error::from),
            None => whole.file.sync_all(),
        };
        synced.map_err(|error| GetError::file("sync", whole.path())(error))
    };
    files.iter().map(sync_one).collect()
}

fn give_names(files: &[Arc<Whole>]) -> Vec<Outcome> {
    files.iter().map(|whole| whole.give_name()).collect()
}
