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

/// The number of file reads of one event loop that may wait for the disk at the same time.
const MAX_DISK_THREADS: usize = 64;

/// The number of tasks polled between two checks for new events. A request takes two polls, so
/// tokio's default of 61 would check in the middle of a busy turn. No poll moves more than 4 MiB.
const POLLS_PER_EVENT_CHECK: u32 = 128;

/// A running worker thread.
pub(crate) struct Worker {
    pub(crate) stats: Arc<WorkerStats>,
}

/// How a worker ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerExit {
    /// It was told to stop, and its connections are closed.
    Clean,
    /// It panicked.
    Panicked,
}

/// Reports the end of a worker to the control thread when dropped, so also while it unwinds.
struct ExitReporter {
    exit: WorkerExit,
    sender: mpsc::UnboundedSender<WorkerExit>,
}

impl ExitReporter {
    /// Reports a clean exit. Takes `self` by value, so that the thread's closure owns the whole
    /// reporter.
    fn report_clean(mut self) {
        self.exit = WorkerExit::Clean;
    }
}

impl Drop for ExitReporter {
    fn drop(&mut self) {
        // The receiver is gone only if the process is about to exit.
        let _ = self.sender.send(self.exit);
    }
}

impl Worker {
    /// Starts a worker. It accepts connections once this returns.
    pub(crate) fn start(
        number: usize,
        setup: &WorkerSetup,
        listeners: &[BoundListener],
        forced_plan: Option<uncopied::policy::Plan>,
        exit_sender: &mpsc::UnboundedSender<WorkerExit>,
    ) -> Result<Self, Error> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_DISK_THREADS)
            .event_interval(POLLS_PER_EVENT_CHECK)
            .build()
            .map_err(Error::setup("start the event loop"))?;
        let stats = Arc::new(WorkerStats::default());
        let mut options = StreamOptions::default().totals(Arc::clone(&stats.totals));
        if let Some(plan) = forced_plan {
            options = options.force_mechanisms(plan.mechanisms());
        }
        let listeners = {
            let _entered = runtime.enter();
            listeners
                .iter()
                .map(|listener| listener.register(options.clone()))
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
        let accepting = acceptor.accept_all(&setup.permits, |stream, client| {
            setup.spawn_connection(stream, client, stats);
        });
        tokio::select! {
            never = accepting => match never {},
            // An error means that the control thread is gone, which is also a reason to stop.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        stats.connections.wait_until_empty().await;
    });
    // Does not wait for reads that still wait for the disk.
    runtime.shutdown_background();
}
