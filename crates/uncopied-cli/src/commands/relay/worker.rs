//! A worker: a thread with an event loop, its listeners and its connections.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::{unconstrained, yield_now};
use tokio::time::interval;

use crate::error::{Error, kernel_text};
use crate::server::access_log::AccessLog;
use crate::server::listening::Acceptor;
use crate::server::warning::{WarningKind, warn_limited};
use crate::server::worker::{WorkerExit, start_worker};

use super::connection::{WorkerContext, refuse, spawn};
use super::listener::{Accepted, OpenListener, RegisteredListener};
use super::stats::WorkerStats;

/// The maximum number of connections that are accepted from the queues of listeners before these
/// are closed. As many as a queue may hold.
const MAX_QUEUED: usize = 4096;

/// The time between two ticks of a timer that does nothing else than be due before the time limits
/// for connecting. If such a limit were the next timer that is due, tokio would write to an eventfd
/// when it is set, and wait for that: two system calls for each connection.
const TIMER_TICK: Duration = Duration::from_secs(1);

/// What all workers share. Each worker has a clone.
#[derive(Clone)]
pub(super) struct WorkerSetup {
    pub(super) permits: Arc<Semaphore>,
    pub(super) max_connections: usize,
    pub(super) log: Option<Arc<AccessLog>>,
    /// The current listeners.
    pub(super) listeners: watch::Receiver<Arc<[OpenListener]>>,
    /// Becomes true when the workers must stop accepting connections.
    pub(super) stopped: watch::Receiver<bool>,
}

/// Starts a worker thread. When the thread ends, it reports its exit to `exit_sender`.
pub(super) fn start(
    number: usize,
    setup: &WorkerSetup,
    exit_sender: &mpsc::UnboundedSender<WorkerExit>,
) -> Result<Arc<WorkerStats>, Error> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::setup("start the event loop"))?;
    let stats = Arc::new(WorkerStats::default());
    let mut setup = setup.clone();
    let acceptor = {
        let _entered = runtime.enter();
        let listeners = Arc::clone(&setup.listeners.borrow_and_update());
        register(&listeners).map_err(Error::setup("watch the listening socket"))?
    };
    let context = Arc::new(WorkerContext {
        stats: Arc::clone(&stats),
        log: setup.log.clone(),
    });
    start_worker(format!("relay-{number}"), exit_sender, move || {
        run(&runtime, setup, acceptor, &context);
    })?;
    Ok(stats)
}

fn register(listeners: &[OpenListener]) -> io::Result<Acceptor<RegisteredListener>> {
    let registered: Result<Vec<_>, _> = listeners.iter().map(OpenListener::register).collect();
    registered.map(Acceptor::new)
}

fn run(
    runtime: &Runtime,
    mut setup: WorkerSetup,
    mut acceptor: Acceptor<RegisteredListener>,
    context: &Arc<WorkerContext>,
) {
    runtime.block_on(async {
        let mut stopped = setup.stopped.clone();
        let mut timer = interval(TIMER_TICK);
        loop {
            tokio::select! {
                _ = timer.tick() => {}
                accepted = acceptor.next() => start_connection(accepted, &setup, context),
                // `wait_for` fails if the control thread has ended, which is also a reason to stop.
                _ = stopped.wait_for(|stopped| *stopped) => break,
                Ok(()) = setup.listeners.changed() => {
                    let listeners = Arc::clone(&setup.listeners.borrow_and_update());
                    match register(&listeners) {
                        Ok(new) => {
                            let mut old = std::mem::replace(&mut acceptor, new);
                            accept_queued(&mut old, &setup, context).await;
                        }
                        Err(error) => warn_limited(
                            WarningKind::Accept,
                            &format_args!(
                                "cannot watch the new listening sockets: {}; one thread goes on \
                                 with the old ones",
                                kernel_text(&error)
                            ),
                        ),
                    }
                }
            }
        }
        accept_queued(&mut acceptor, &setup, context).await;
        drop(acceptor);
        context.stats.connections.wait_until_empty().await;
    });
}

fn start_connection(accepted: Accepted, setup: &WorkerSetup, context: &Arc<WorkerContext>) {
    match Arc::clone(&setup.permits).try_acquire_owned() {
        Ok(permit) => spawn(accepted, permit, context),
        Err(_) => {
            warn_limited(
                WarningKind::TableFull,
                &format_args!(
                    "all {} connections are in use, and new ones are refused; raise \
                     --max-connections",
                    setup.max_connections
                ),
            );
            refuse(accepted, context);
        }
    }
}

/// Accepts the connections that already wait in the queues, because closing a listener resets
/// those.
async fn accept_queued(
    acceptor: &mut Acceptor<RegisteredListener>,
    setup: &WorkerSetup,
    context: &Arc<WorkerContext>,
) {
    // Let the event loop look which sockets are readable.
    yield_now().await;
    for _ in 0..MAX_QUEUED {
        let mut next = pin!(unconstrained(acceptor.next()));
        let accepted = poll_fn(|cx| match next.as_mut().poll(cx) {
            Poll::Ready(accepted) => Poll::Ready(Some(accepted)),
            Poll::Pending => Poll::Ready(None),
        })
        .await;
        match accepted {
            Some(accepted) => start_connection(accepted, setup, context),
            None => return,
        }
    }
}
