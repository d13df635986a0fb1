//! The resources that workers share.

use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};
use uncopied::policy::Plan;
use uncopied_http::{ServeFiles, StreamOptions};

use crate::commands::serve::connection::{
    Connection, ConnectionGuard, ConnectionSettings, ConnectionState, WorkerStats,
};
use crate::server::access_log::AccessLog;

use super::Accepted;

/// The resources that every worker uses. Each worker has a clone.
#[derive(Clone)]
pub(crate) struct WorkerSetup {
    pub(crate) files: ServeFiles,
    pub(crate) permits: Arc<Semaphore>,
    /// Tells the control thread that a connection waits for a permit.
    pub(crate) room_requests: mpsc::UnboundedSender<()>,
    pub(crate) log: Option<Arc<AccessLog>>,
    /// The plan for sending every file. `None` lets the library choose.
    pub(crate) forced_plan: Option<Plan>,
    /// Becomes true when the workers must stop accepting connections.
    pub(crate) stopped: watch::Receiver<bool>,
}

impl WorkerSetup {
    /// Returns the settings of the connections of one worker.
    pub(super) fn connection_settings(&self, stats: &Arc<WorkerStats>) -> Arc<ConnectionSettings> {
        Arc::new(ConnectionSettings {
            files: self.files.clone(),
            stats: Arc::clone(stats),
            log: self.log.clone(),
            options: match &self.forced_plan {
                Some(plan) => StreamOptions::default().force_mechanisms(plan.mechanisms()),
                None => StreamOptions::default(),
            },
        })
    }

    /// Asks the control thread to close an idle connection, because only it knows the connections
    /// of all workers. Each worker asks at most once per interval, so the channel stays short.
    pub(super) fn ask_for_room(&self) {
        // Ignore an error: the control thread is gone only if the process is about to exit.
        let _ = self.room_requests.send(());
    }

    /// Spawns a task that serves one connection.
    pub(super) fn spawn_connection(
        &self,
        (stream, client): Accepted,
        settings: &Arc<ConnectionSettings>,
    ) {
        let state = ConnectionState::new();
        let guard = ConnectionGuard::register(state, &settings.stats, &self.permits);
        let connection = Connection::new(stream.into_inner(), client, &guard, settings);
        tokio::spawn(connection.run(guard));
    }
}
