//! One serving thread: an event loop, its listeners, its connections.

mod setup;

use std::sync::Arc;
use std::thread;

use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc;
use uncopied_http::Options;

use crate::error::Error;

use super::connection::Shared;
use super::listening::{Bound, Listeners};

pub(crate) use setup::Plan;

/// How many file reads of one event loop may wait for the disk at the same time.
const MAX_DISK_THREADS: usize = 64;

/// How many tasks are polled before new events are asked for. A request takes two polls, so that
/// tokio's own 61 would ask in the middle of a busy turn; and no poll moves more than 4 MiB.
const POLLS_PER_LOOK: u32 = 128;

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
        let mut options = Options::default().totals(Arc::clone(&shared.totals));
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
