//! One serving thread: an event loop, its listeners, its connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, mpsc, watch};
use uncopied_http::{Address, ServeFiles, Stream, StreamOptions, Totals};

use crate::error::Error;

use super::accept::Listeners;
use super::access_log::{AccessLog, Ledger, LogRefusals, Logged};
use super::connection::{Answers, Place, Serving};
use super::heads::Guarded;
use super::listeners::Bound;
use super::repeats::Repeats;
use super::table::{Seat, Table};

/// How many file reads of one event loop may wait for the disk at the same time.
const MAX_DISK_THREADS: usize = 64;

/// How many tasks are polled before new events are asked for. A request takes two polls, so that
/// tokio's own 61 would ask in the middle of a busy turn; and no poll moves more than 4 MiB.
const POLLS_PER_LOOK: u32 = 128;

/// What every thread is given.
#[derive(Clone)]
pub(crate) struct Plan {
    pub(crate) files: ServeFiles,
    pub(crate) http: Arc<http1::Builder>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) log: Option<Arc<AccessLog>>,
    /// Turns true when no more connections are to be accepted.
    pub(crate) stopped: watch::Receiver<bool>,
}

/// What the control thread sees of a serving thread.
#[derive(Default)]
pub(crate) struct Shared {
    pub(crate) table: Table,
    pub(crate) totals: Arc<Totals>,
    requests: AtomicU64,
}

impl Shared {
    /// Counts a request. Only the serving thread itself may call it: one writer needs no
    /// read-modify-write.
    pub(crate) fn count_request(&self) {
        let before = self.requests.load(Ordering::Relaxed);
        self.requests.store(before + 1, Ordering::Relaxed);
    }

    /// Requests so far.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// A serving thread that has been started.
pub(crate) struct ServingThread {
    pub(crate) shared: Arc<Shared>,
}

/// How a serving thread ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// It was told to stop, and its connections are gone.
    InOrder,
    /// It panicked.
    Lost,
}

/// Tells the control thread how this one ended, even while it unwinds.
struct Farewell {
    how: Ended,
    to: mpsc::UnboundedSender<Ended>,
}

impl Farewell {
    /// The thread has come to its end. (Taken by value, so that the closure owns the whole of it.)
    fn in_order(mut self) {
        self.how = Ended::InOrder;
    }
}

impl Drop for Farewell {
    fn drop(&mut self) {
        // Nobody receives it only if the process is about to end anyhow.
        let _ = self.to.send(self.how);
    }
}

impl ServingThread {
    /// Starts a thread. It accepts connections when this returns.
    pub(crate) fn start(
        number: usize,
        plan: &Plan,
        bound: &[Bound],
        forced_plan: Option<uncopied::policy::Plan>,
        ended: &mpsc::UnboundedSender<Ended>,
    ) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Setup { what, source };
        let runtime = Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(MAX_DISK_THREADS)
            .event_interval(POLLS_PER_LOOK)
            .build()
            .map_err(failed("start the event loop"))?;
        let shared = Arc::new(Shared::default());
        let mut options = StreamOptions::default().totals(Arc::clone(&shared.totals));
        if let Some(plan) = forced_plan {
            options = options.force_mechanisms(plan.mechanisms());
        }
        let listeners = {
            let _entered = runtime.enter();
            bound
                .iter()
                .map(|bound| bound.listener(options.clone()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(failed("watch the listening socket"))?
        };
        let farewell = Farewell {
            how: Ended::Lost,
            to: ended.clone(),
        };
        let (plan, of_thread) = (plan.clone(), Arc::clone(&shared));
        thread::Builder::new()
            .name(format!("serve-{number}"))
            .spawn(move || {
                run(runtime, plan, Listeners::new(listeners), &of_thread);
                farewell.in_order();
            })
            .map_err(failed("start a serving thread"))?;
        Ok(Self { shared })
    }
}

fn run(runtime: Runtime, plan: Plan, listeners: Listeners, shared: &Arc<Shared>) {
    runtime.block_on(async {
        let mut stopped = plan.stopped.clone();
        let accepting = listeners.accept_all(&plan.permits, |stream, from| {
            plan.serve(stream, from, shared)
        });
        tokio::select! {
            never = accepting => match never {},
            // An error means that the control thread is gone, which is a reason to stop as well.
            _ = stopped.wait_for(|stopped| *stopped) => {}
        }
        shared.table.emptied().await;
    });
    // A read that still waits for the disk holds nobody up.
    runtime.shutdown_background();
}

impl Plan {
    /// Serves one connection in a task of its own.
    fn serve(&self, mut stream: Stream, from: Address, thread: &Arc<Shared>) {
        let is_tcp = matches!(from, Address::Tcp(_));
        let seat = Seat::new(stream.activity(), is_tcp);
        let place = Place::take(seat, thread, &self.permits);
        let answers = Answers::new(
            self.files.clone(),
            Arc::clone(&place.seat),
            Arc::clone(thread),
        );
        let ledger = self
            .log
            .as_ref()
            .map(|log| Ledger::new(Arc::clone(log), from));
        // The log's lines tell what hyper has read.
        let counts = ledger.is_none().then(|| Arc::clone(thread));
        let repeats = Repeats::new(stream, Arc::clone(&place.seat), counts);
        let guarded = Guarded::new(repeats, Arc::clone(&place.seat), ledger.clone());
        let io = TokioIo::new(guarded);
        let http = Arc::clone(&self.http);
        match ledger {
            None => {
                tokio::spawn(Serving::new(io, answers, http, (), place));
            }
            Some(ledger) => {
                let logged = Logged::new(answers, Arc::clone(&ledger));
                let refusals = LogRefusals::new(ledger);
                tokio::spawn(Serving::new(io, logged, http, refusals, place));
            }
        }
    }
}
