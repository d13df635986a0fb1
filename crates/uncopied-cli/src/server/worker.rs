//! Worker threads, and how they tell the control thread that they have ended.

use std::thread;

use tokio::sync::mpsc;

use crate::error::Error;

/// The way in which a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerExit {
    /// The worker was told to stop, and all its connections have been closed.
    Clean,
    /// The worker panicked.
    Panicked,
}

/// Tells the control thread that a worker has ended. Sends the message when dropped, so that a
/// worker that panics is reported too.
struct ExitReporter {
    exit: WorkerExit,
    sender: mpsc::UnboundedSender<WorkerExit>,
}

impl ExitReporter {
    /// Reports a clean exit. Takes `self` by value, so that the thread's closure captures the whole
    /// reporter, and drops it even if the worker panics.
    fn report_clean(mut self) {
        self.exit = WorkerExit::Clean;
    }
}

impl Drop for ExitReporter {
    fn drop(&mut self) {
        // Ignore an error: the receiver is gone only if the process is about to exit.
        let _ = self.sender.send(self.exit);
    }
}

/// Starts a thread that calls `run`. When the thread ends, it reports its exit to `exit_sender`.
///
/// # Errors
///
/// The thread cannot be started.
pub(crate) fn start_worker(
    name: String,
    exit_sender: &mpsc::UnboundedSender<WorkerExit>,
    run: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    let reporter = ExitReporter {
        exit: WorkerExit::Panicked,
        sender: exit_sender.clone(),
    };
    thread::Builder::new()
        .name(name)
        .spawn(move || {
            run();
            reporter.report_clean();
        })
        .map_err(Error::setup("start a worker thread"))?;
    Ok(())
}
