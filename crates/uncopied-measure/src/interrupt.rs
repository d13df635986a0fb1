//! Catches Ctrl-C and SIGTERM and sets a flag instead of ending the process. A run checks the flag
//! and ends with an error, and so cleans up on its way out: it stops child processes, removes
//! temporary files, and restores settings.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Starts a thread that watches for SIGINT and SIGTERM.
///
/// # Errors
///
/// The thread or its event loop cannot be started, or a signal cannot be handled.
pub fn watch() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )
    };
    let wait = move || {
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
    };
    thread::Builder::new()
        .name("signals".into())
        .spawn(wait)
        .map(drop)
}

/// Whether SIGINT or SIGTERM has arrived since [`watch`].
#[must_use]
pub fn is_interrupted() -> bool {
    INTERRUPTED.load(Ordering::Relaxed)
}
