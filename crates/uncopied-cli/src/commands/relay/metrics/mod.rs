//! Metrics for Prometheus, in its text format, served over HTTP by the control thread.

mod responder;
mod text;

use std::sync::Arc;

use tokio::sync::watch;

use crate::server::access_log::AccessLog;

use super::stats::{Totals, WorkerStats};
use super::target::Pool;

pub(super) use responder::MetricsServer;

/// What the metrics are about.
pub(super) struct Observed {
    pub(super) workers: Vec<Arc<WorkerStats>>,
    pub(super) pools: watch::Receiver<Vec<Arc<Pool>>>,
    pub(super) log: Option<Arc<AccessLog>>,
    pub(super) max_connections: usize,
}

impl Observed {
    fn totals(&self) -> Totals {
        Totals::of(self.workers.iter().map(Arc::as_ref))
    }

    fn open_connections(&self) -> usize {
        let mut count = 0;
        for stats in &self.workers {
            stats.connections.for_each(|_| count += 1);
        }
        count
    }
}
