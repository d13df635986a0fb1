//! The signals that the command handles.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The handlers for SIGTERM, SIGINT and SIGUSR1.
pub(crate) struct Signals {
    pub(super) terminate: Signal,
    pub(super) interrupt: Signal,
    pub(super) totals: Signal,
}

impl Signals {
    /// Installs the handlers. Must be called within a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            totals: signal(SignalKind::user_defined1())?,
        })
    }
}
