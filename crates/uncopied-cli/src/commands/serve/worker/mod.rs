//! A worker: a thread with an event loop, its listeners and its connections.

mod setup;

use std::io;
use std::sync::Arc;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use uncopied_http::{Address, Listener, Stream, StreamOptions};

use crate::error::Error;
use crate::server::listening::{Accept, Acceptor, BoundListener, DuplicateListener};
use crate::server::worker::{WorkerExit, start_worker};

use super::connection::WorkerStats;

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

/// What accepting a connection returns.
pub(crate) type Accepted = (Stream, Address);

impl Accept for Listener {
    type Connection = Accepted;

    fn accept(&self) -> impl Future<Output = io::Result<Accepted>> + Send {
        self.accept()
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
                .map(register)
                .collect::<Result<Vec<_>, _>>()
                .map_err(Error::setup("watch the listening socket"))?
        };
        let (setup, thread_stats) = (setup.clone(), Arc::clone(&stats));
        start_worker(format!("serve-{number}"), exit_sender, move || {
            run(runtime, setup, Acceptor::new(listeners), &thread_stats);
        })?;
        Ok(Self { stats })
    }
}

/// Registers a duplicate of the socket with the current event loop.
fn register(listener: &BoundListener) -> io::Result<Listener> {
    let options = StreamOptions::default();
    match listener.duplicate()? {
        DuplicateListener::Tcp(listener) => Listener::from_tcp(listener, options),
        DuplicateListener::Unix(listener) => Listener::from_unix(listener, options),
    }
}

fn run(
    runtime: Runtime,
    setup: WorkerSetup,
    acceptor: Acceptor<Listener>,
    stats: &Arc<WorkerStats>,
) {
    runtime.block_on(async {
        let mut stopped = setup.stopped.clone();
        let settings = setup.connection_settings(stats);
        let accepting = acceptor.accept_all(
            &setup.permits,
            || setup.ask_for_room(),
            |accepted| setup.spawn_connection(accepted, &settings),
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
