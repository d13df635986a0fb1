//! Catches Ctrl-C and SIGTERM and sets a flag instead of ending the process. The run checks the
//! flag, returns an error, and so cleans up on its way out: it stops child processes, removes
//! temporary files, and restores the congestion control.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context, Error};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Starts a thread that watches for SIGINT and SIGTERM.
pub(crate) fn watch() -> Result<(), Error> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .context(|| "cannot start the signal thread".into())?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt()).context(|| "cannot watch SIGINT".into())?,
            signal(SignalKind::terminate()).context(|| "cannot watch SIGTERM".into())?,
        )
    };
    thread::spawn(move || {
        runtime.block_on(async {
            let first_signal = std::future::poll_fn(|context| {
                let interrupted = interrupt.poll_recv(context).is_ready();
                if interrupted || terminate.poll_recv(context).is_ready() {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            });
            first_signal.await;
            INTERRUPTED.store(true, Ordering::Relaxed);
            // Ignore all further signals: a second Ctrl-C must not end the process during the
            // cleanup. tokio never restores the default action of a signal that it has handled, so
            // it is enough to do nothing here.
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

/// Returns [`Error::Interrupted`] if SIGINT or SIGTERM has arrived.
pub(crate) fn check() -> Result<(), Error> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}
