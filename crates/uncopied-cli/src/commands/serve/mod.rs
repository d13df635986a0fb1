//! `uncopied serve`: serves files over HTTP/1.1.
//!
//! ```text
//!   control (main thread): signals, deadlines, totals
//!      | stop, commands            ^ counters
//!      v                           |
//!   worker 0, worker 1, ...           one event loop each
//!      accept -> connections          every listener on every worker
//! ```
//!
//! Each worker has its own event loop, counters and connection table, so that workers do not
//! contend for them. The control thread enforces the deadlines, so that no connection needs a
//! timer; see [`control`].

mod access_log;
mod config;
mod connection;
mod control;
mod listening;
mod worker;

use std::sync::Arc;

use hyper::server::conn::http1;
use tokio::sync::{Semaphore, mpsc, watch};

use crate::error::Error;
use crate::flags::ServeFlags;
use crate::output::say;

use access_log::AccessLog;
use config::Config;
use control::{Control, Signals, TotalsLine};
use worker::{Worker, WorkerSetup};

pub(crate) use listening::PassedSockets;

/// The maximum size of a request head. A larger head gets status 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Serves until SIGTERM or SIGINT, then prints the totals.
pub(crate) fn run(flags: ServeFlags, passed: PassedSockets) -> Result<(), Error> {
    // Rust already ignores SIGPIPE. This also promises that SIGPIPE stays ignored, so the library
    // need not look that up before each `sendfile` and `splice`.
    uncopied::ignore_sigpipe().map_err(Error::setup("ignore SIGPIPE"))?;
    let descriptors = listening::raise_descriptor_limit();
    let config = Config::check(flags, descriptors)?;
    let listeners = listening::open(&config.listen, passed.into_listeners()?)?;
    if let Some(time) = config.deadlines.send {
        for listener in &listeners {
            listener
                .set_send_timeout(time)
                .map_err(Error::setup("set the send timeout"))?;
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::setup("start the event loop"))?;
    let signals = {
        let _entered = runtime.enter();
        Signals::listen().map_err(Error::setup("listen for signals"))?
    };
    let log = match config.log_format {
        None => None,
        Some(format) => {
            Some(AccessLog::start(format).map_err(Error::setup("start the access log thread"))?)
        }
    };
    let (stop, stopped) = watch::channel(false);
    let setup = WorkerSetup {
        files: config.files,
        http: Arc::new(http_builder()),
        permits: Arc::new(Semaphore::new(config.max_connections)),
        log: log.clone(),
        stopped,
    };
    let (exit_sender, worker_exits) = mpsc::unbounded_channel();
    let workers = (0..config.threads)
        .map(|n| Worker::start(n, &setup, &listeners, config.forced_plan, &exit_sender))
        .collect::<Result<Vec<_>, _>>()?;
    for listener in &listeners {
        say(&format_args!(
            "serving {} on {}",
            config.path.display(),
            listener.url()
        ));
    }

    let control = Control {
        signals,
        workers: &workers,
        listeners,
        worker_exits,
        stop,
        deadlines: config.deadlines,
        log: log.as_deref(),
    };
    let outcome = runtime.block_on(control.run());
    // Close the access log first, so that its last lines are written before the totals are printed.
    if let Some(log) = &log {
        log.close();
    }
    say(&TotalsLine::of(&workers, log.as_deref()));
    outcome
}

/// Configures hyper so that everything that a peer can make grow has a limit. The number of headers
/// is limited to 100 by hyper's default; setting the limit explicitly would cost an allocation per
/// request.
fn http_builder() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.max_header_size(MAX_HEAD_BYTES);
    // Turn off hyper's timer, because the control thread enforces the deadlines without a timer per
    // connection.
    http.header_read_timeout(None);
    // A client may close its sending side after its last request, as `nc -N` does, and must still
    // get its responses. A client that has exited looks the same at first, but its host resets the
    // connection when the next bytes arrive.
    http.half_close(true);
    http
}
