//! The signals that the command handles.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The handlers of signals. A signal without a handler would end the process.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hang_up: Signal,
    totals: Signal,
    /// Caught, so that they do no harm. SIGXFSZ would end the process when the access log reaches
    /// the limit on the size of files; with a handler, the write fails instead.
    _harmless: [Signal; 2],
}

impl Signals {
    /// Installs the handlers. Must be called within a tokio runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let file_size = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            hang_up: signal(SignalKind::hangup())?,
            totals: signal(SignalKind::user_defined1())?,
            _harmless: [signal(SignalKind::user_defined2())?, signal(file_size)?],
        })
    }
}

/// A signal that the control thread has received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Received {
    /// SIGTERM, SIGINT or SIGQUIT.
    Stop,
    /// SIGHUP.
    Reload,
    /// SIGUSR1.
    Totals,
}

impl Signals {
    /// Waits for the next signal. Dropping the future loses no signal.
    pub(crate) async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.terminate.recv() => Received::Stop,
            _ = self.interrupt.recv() => Received::Stop,
            _ = self.quit.recv() => Received::Stop,
            _ = self.hang_up.recv() => Received::Reload,
            _ = self.totals.recv() => Received::Totals,
        }
    }
}
