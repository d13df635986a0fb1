//! The resources that workers share, and the assembly of a connection from its layers.

use std::sync::Arc;

use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::sync::{Semaphore, watch};
use uncopied_http::{Address, ServeFiles, Stream};

use crate::commands::serve::access_log::{
    AccessLog, AccessLogObserver, DeliveryTracker, LoggedService,
};
use crate::commands::serve::connection::{
    ConnectionGuard, ConnectionState, ConnectionTask, FileService, ReplayStream, StrictHeads,
    WorkerStats,
};

/// The resources that every worker uses. Each worker has a clone.
#[derive(Clone)]
pub(crate) struct WorkerSetup {
    pub(crate) files: ServeFiles,
    pub(crate) http: Arc<http1::Builder>,
    pub(crate) permits: Arc<Semaphore>,
    pub(crate) log: Option<Arc<AccessLog>>,
    /// Becomes true when the workers must stop accepting connections.
    pub(crate) stopped: watch::Receiver<bool>,
}

impl WorkerSetup {
    /// Spawns a task that serves one connection.
    pub(super) fn spawn_connection(
        &self,
        mut stream: Stream,
        client: Address,
        stats: &Arc<WorkerStats>,
    ) {
        let is_tcp = matches!(client, Address::Tcp(_));
        let state = ConnectionState::new(stream.activity(), is_tcp);
        let guard = ConnectionGuard::register(state, stats, &self.permits);
        let state = Arc::clone(&guard.connection);
        let watch = stream.watch();
        let service = FileService::new(
            self.files.clone(),
            Arc::clone(&state),
            Arc::clone(stats),
            watch.clone(),
        );
        let http = Arc::clone(&self.http);
        match &self.log {
            None => {
                let replay_stats = Some(Arc::clone(stats));
                let stream = ReplayStream::new(stream, Arc::clone(&state), replay_stats, watch);
                let io = TokioIo::new(StrictHeads::new(stream, state, ()));
                tokio::spawn(ConnectionTask::new(io, service, http, (), guard));
            }
            Some(log) => {
                let tracker = DeliveryTracker::new(Arc::clone(log), client);
                let service = LoggedService::new(service, Arc::clone(&tracker));
                let observer = AccessLogObserver::new(tracker);
                // `None` turns replay off: a replayed request never reaches hyper, so it would be
                // missing from the log.
                let stream = ReplayStream::new(stream, Arc::clone(&state), None, watch);
                let io = TokioIo::new(StrictHeads::new(stream, state, observer.clone()));
                tokio::spawn(ConnectionTask::new(io, service, http, observer, guard));
            }
        }
    }
}
