//! A worker: a thread with an event loop, its listeners and its connections.

mod setup;

use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use uncopied_http::StreamOptions;

use crate::error::Error;

use super::connection::WorkerStats;
use super::listening::{Acceptor, BoundListener};

pub(crate) use setup::WorkerSetup;

/// The maximum number of file reads per worker that wait for the disk at the same time. Each
/// occupies a thread of tokio's blocking pool.
const MAX_DISK_THREADS: usize = 64;

/// The number of task polls between two checks for I/O events. A request takes two polls, so with
/// tokio's default of 61, a worker with more than 30 ready connections would check before it has
/// served all of them. Checking less often delays new events, but only by a bounded time, because
/// no single poll moves more than 4 MiB.
const POLLS_PER_EVENT_CHECK: u32 = 128;

/// A running worker thread.
pub(crate) struct Worker {
    pub(crate) stats: Arc<WorkerStats>,
}

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

impl Worker {
    /// Starts a worker thread, which accepts connections on all `listeners`. When the thread ends,
    /// it reports its exit to `exit_sender`.
    pub(crate) fn start(
        number: usize,
        setup: &WorkerSetup,
        listeners: &[BoundListener],
        exit_sender: &mpsc::UnboundedSender<WorkerExit>,
    ) -> Result<Self, Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_DISK_THREADS)
            .event_interval(POLLS_PER_EVENT_CHECK)
            .build()
            .map_err(Error::setup("start the event loop"))?;
        let stats = Arc::new(WorkerStats::default());
        let listeners = {
            let _entered = runtime.enter();
            listeners
                .iter()
                .map(|listener| listener.register(StreamOptions::default()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(Error::setup("watch the listening socket"))?
        };
        let reporter = ExitReporter {
            exit: WorkerExit::Panicked,
            sender: exit_sender.clone(),
        };
        let (setup, thread_stats) = (setup.clone(), Arc::clone(&stats));
        thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || {
                run(runtime, setup, Acceptor::new(listeners), &thread_stats);
                reporter.report_clean();
            })
            .map_err(Error::setup("start a worker thread"))?;
        Ok(Self { stats })
    }
}

fn run(runtime: Runtime, setup: WorkerSetup, acceptor: Acceptor, stats: &Arc<WorkerStats>) {
    runtime.block_on(async {
        let mut stopped = setup.stopped.clone();
        let settings = setup.connection_settings(stats);
        let accepting = acceptor.accept_all(
            &setup.permits,
            || setup.ask_for_room(),
            |stream, client| setup.spawn_connection(stream, client, &settings),
        );
        tokio::select! {
            never = accepting => match never {},
            // `wait_for` fails if the control thread has ended, which is also a reason to stop.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        stats.connections.wait_until_empty().await;
    });
    // Unlike dropping the runtime, this does not wait for reads that are still waiting for the
    // disk.
    runtime.shutdown_background();
}
