//! `uncopied serve`: files over HTTP/1.1.
//!
//! ```text
//!            control (main thread): signals, deadlines, totals
//!               │ stop, orders                 ▲ counters
//!   ┌───────────┴────────────┬─────────────────┴──────┐
//!   thread 0                 thread 1                 …     one event loop each
//!   accept → connection …    accept → connection …          every listener on every thread
//! ```
//!
//! A serving thread shares nothing with the others that a request touches: it has its own event loop,
//! counters and table of connections. Deadlines cost a connection nothing while it works; see
//! [`control`].

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
use control::{Control, Report, Signals};
use worker::{Plan, ServingThread};

pub(crate) use listening::PassedSockets;

/// The largest request head, in bytes. Beyond it: 431.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Serves until SIGTERM or SIGINT, then prints the totals.
pub(crate) fn run(flags: ServeFlags, passed: PassedSockets) -> Result<(), Error> {
    let descriptors = listening::raise_limit();
    let config = Config::check(flags, descriptors)?;
    let listeners = listening::open(&config.listen, passed.take()?)?;
    if let Some(time) = config.deadlines.send {
        for listener in &listeners {
            let limited = listener.limit_unacknowledged(time);
            limited.map_err(|source| Error::Setup {
                what: "limit how long a peer may take nothing",
                source,
            })?;
        }
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| Error::Setup {
            what: "start the event loop",
            source,
        })?;
    let signals = {
        let _entered = runtime.enter();
        Signals::listen().map_err(|source| Error::Setup {
            what: "listen for signals",
            source,
        })?
    };
    let log = match config.log_format {
        None => None,
        Some(format) => Some(AccessLog::start(format).map_err(|source| Error::Setup {
            what: "start the log's thread",
            source,
        })?),
    };
    let (stop, stopped) = watch::channel(false);
    let plan = Plan {
        files: config.files,
        http: Arc::new(http()),
        permits: Arc::new(Semaphore::new(config.max_connections)),
        log: log.clone(),
        stopped,
    };
    let (farewells, ended) = mpsc::unbounded_channel();
    let threads = (0..config.threads)
        .map(|n| ServingThread::start(n, &plan, &listeners, config.forced_plan, &farewells))
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
        threads: &threads,
        listeners,
        ended,
        stop,
        deadlines: config.deadlines,
        log: log.as_deref(),
    };
    let outcome = runtime.block_on(control.run());
    // The log's last lines go out before the totals, and the sockets' files are removed last.
    if let Some(log) = &log {
        log.close();
    }
    say(&Report::of(&threads, log.as_deref()));
    outcome
}

/// How hyper reads requests. Everything that a peer can make grow has a limit; hyper's own limit of
/// 100 headers stays, because setting it would cost each request an allocation.
fn http() -> http1::Builder {
    let mut http = http1::Builder::new();
    http.max_header_size(MAX_HEAD_BYTES);
    // Deadlines are kept outside, without a timer for each connection.
    http.header_read_timeout(None);
    // A client that has sent its last request may close its side (`nc -N` does): it still gets its
    // answers. One that is gone for good answers the next bytes with a reset.
    http.half_close(true);
    http
}
