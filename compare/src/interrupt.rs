//! Turns Ctrl-C and SIGTERM into a flag, so that everything is undone in order: child processes are
//! stopped, files are removed, and the congestion control is restored.

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
            // The runtime stays alive. Dropping it would not restore the default action, and a
            // second Ctrl-C must not cut the cleanup short either.
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

/// Returns an error once the user has asked to stop.
pub(crate) fn check() -> Result<(), Error> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}
