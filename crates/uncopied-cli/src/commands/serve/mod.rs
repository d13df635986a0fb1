//! `uncopied serve`: serves files over HTTP/1.1.
//!
//! Each worker has its own event loop, counters and connection table, so that workers do not
//! contend for them. The control thread enforces the deadlines, so that no connection needs a
//! timer; see [`control`].

mod config;
mod connection;
mod control;
#[doc(hidden)]
pub mod fuzz;
mod log_line;
mod urls;
mod worker;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::descriptor_limit::raise_descriptor_limit;
use crate::error::Error;
use crate::flags::ServeFlags;
use crate::output::say;
use crate::server::access_log::AccessLog;
use crate::server::control::{Signals, Supervisor};
use crate::server::listening::{self, PassedSockets};
use crate::server::warning;

use config::Config;
use control::{Control, RootFollower, Server, TotalsLine};
use urls::urls;
use worker::{Worker, WorkerSetup};

/// Serves until SIGTERM or SIGINT, then prints the totals.
pub(crate) fn run(flags: ServeFlags, passed: PassedSockets) -> Result<(), Error> {
    // Rust already ignores SIGPIPE. This also promises that SIGPIPE stays ignored, so the library
    // need not look that up before each `sendfile` and `splice`.
    uncopied::ignore_sigpipe().map_err(Error::setup("ignore SIGPIPE"))?;
    // Before anything is printed: a user who has seen the address may close the terminal.
    let is_on_terminal = io::stderr().is_terminal();
    let descriptors = raise_descriptor_limit();
    let config = Config::check(flags, descriptors)?;
    let listeners = listening::open(&config.listen, config.socket_mode, passed.into_listeners()?)?;
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
        Some(format) => Some(AccessLog::open(format, config.log_file.as_deref())?),
    };
    let (stop, stopped) = watch::channel(false);
    let (room_requests, room_requested) = mpsc::unbounded_channel();
    let setup = WorkerSetup {
        files: config.files,
        permits: Arc::new(Semaphore::new(config.max_connections)),
        room_requests,
        log: log.clone(),
        forced_plan: config.forced_plan,
        stopped,
    };
    let (exit_sender, worker_exits) = mpsc::unbounded_channel();
    let workers = (0..config.threads)
        .map(|n| Worker::start(n, &setup, &listeners, &exit_sender))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(lowered) = &config.lowered_limit {
        say(lowered);
    }
    for url in listeners.iter().flat_map(urls) {
        say(&format_args!("serving {} on {url}", config.path.display()));
    }
    if let Some(hint) = &config.root_hint {
        say(hint);
    }

    let control = Control {
        supervisor: Supervisor {
            signals,
            worker_count: workers.len(),
            worker_exits,
            stop,
            is_on_terminal,
        },
        room_requested,
        server: Server {
            workers: &workers,
            listeners,
            max_connections: config.max_connections,
            deadlines: config.deadlines,
            log: log.as_deref(),
            root: RootFollower::new(setup.files.clone(), config.path),
            is_on_terminal,
        },
    };
    let outcome = runtime.block_on(control.run());
    // Close the access log first, so that its last lines are written before the totals are printed.
    if let Some(log) = &log {
        log.close();
    }
    warning::tell_suppressed(true);
    say(&TotalsLine::of(&workers, log.as_deref()));
    outcome
}
