//! Ctrl-C and SIGTERM as a flag, so that everything is unwound in order: servers ended, files
//! removed, the congestion control put back.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context, Error};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Watches for SIGINT and SIGTERM from now on, in a thread of its own.
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
            let first_of_two = std::future::poll_fn(|context| {
                let interrupted = interrupt.poll_recv(context).is_ready();
                if interrupted || terminate.poll_recv(context).is_ready() {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            });
            first_of_two.await;
            INTERRUPTED.store(true, Ordering::Relaxed);
            // The runtime stays: dropping it would not bring the default action back, and a
            // second Ctrl-C must not cut the cleaning up short either.
            std::future::pending::<()>().await;
        });
    });
    Ok(())
}

/// An error once the user has asked to stop.
pub(crate) fn check() -> Result<(), Error> {
    if INTERRUPTED.load(Ordering::Relaxed) {
        Err(Error::Interrupted)
    } else {
        Ok(())
    }
}
