//! `uncopied relay`: relays TCP connections to other servers.
//!
//! Each worker has its own event loop, counters and connection table, so that workers do not
//! contend for them. The targets are shared by all. The control thread checks and resolves targets,
//! enforces the deadlines, so that no connection needs a timer, and serves the metrics.

mod balance;
mod budget;
mod config;
mod connection;
mod control;
mod health;
mod listener;
mod log;
mod metrics;
mod proxy_protocol;
mod stats;
mod target;
mod totals;
mod worker;

use std::io::{self, IsTerminal as _};
use std::sync::Arc;

use tokio::sync::{Semaphore, mpsc, watch};

use crate::descriptor_limit::raise_descriptor_limit;
use crate::error::Error;
use crate::flags::{RelayFlags, RelayLogFormat};
use crate::output::{print, say};
use crate::server::access_log::{AccessLog, LineFormat};
use crate::server::control::{Signals, Supervised as _, Supervisor};
use crate::server::listening::{BoundListener, PassedSockets};
use crate::server::warning;

use budget::RelayBudget;
use config::{ProcessConfig, RelayConfig};
use control::{Control, Server, Targets, open_listeners};
use metrics::MetricsServer;
use worker::WorkerSetup;

pub(crate) use config::ConfigError;

/// Relays until SIGTERM or SIGINT, then prints the totals. With `--check`, only checks the
/// configuration.
pub(crate) fn run(flags: &RelayFlags, passed: PassedSockets) -> Result<(), Error> {
    let config = RelayConfig::load(flags)?;
    if flags.check {
        return print(format!("{config}\n").as_bytes()).map_err(Error::Output);
    }
    uncopied::ignore_sigpipe().map_err(Error::setup("ignore SIGPIPE"))?;
    let budget = budget_of(flags, &config.process)?;
    uncopied::relay::set_pipe_limit(budget.pipes);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::setup("start the event loop"))?;
    runtime.block_on(relay(flags, config, &budget, passed.into_listeners()?))
}

async fn relay(
    flags: &RelayFlags,
    config: RelayConfig,
    budget: &RelayBudget,
    mut passed: Vec<BoundListener>,
) -> Result<(), Error> {
    let signals = Signals::listen().map_err(Error::setup("listen for signals"))?;
    // Before anything is printed: a user who has seen the address may close the terminal.
    let is_on_terminal = io::stderr().is_terminal();
    let (events, target_events) = mpsc::unbounded_channel();
    let mut targets = Targets::new(&config, events);
    let open = open_listeners(&config, &targets.pools(), &[], &mut passed)?;
    if let Some(unused) = passed.first() {
        return Err(Error::PassedSockets(format!(
            "no listener has the address of a passed socket, {}",
            listener::name_of(unused)
        )));
    }
    let process = config.process;
    let metrics = match &process.metrics {
        None => None,
        Some(address) => Some(MetricsServer::bind(address, process.socket_mode)?),
    };
    let log = match log_format(&process) {
        None => None,
        Some(format) => Some(AccessLog::open(format, process.access_log_file.as_deref())?),
    };
    targets.start().await;
    let (stop, stopped) = watch::channel(false);
    let (listeners, listeners_receiver) = watch::channel(Arc::clone(&open));
    let setup = WorkerSetup {
        permits: Arc::new(Semaphore::new(budget.connections)),
        max_connections: budget.connections,
        log: log.clone(),
        listeners: listeners_receiver,
        stopped,
    };
    let (exit_sender, worker_exits) = mpsc::unbounded_channel();
    let threads = process.threads.map_or_else(cores, usize::from);
    let workers = (0..threads)
        .map(|number| worker::start(number, &setup, &exit_sender))
        .collect::<Result<Vec<_>, _>>()?;
    drop(setup);
    if let Some(lowered) = &budget.lowered {
        say(lowered);
    }
    for open in &*open {
        say(&format_args!(
            "relaying to {} on {}",
            open.listener.targets(),
            open.listener.name
        ));
    }
    drop(open);

    let server = Server {
        flags,
        workers,
        listeners,
        targets,
        process,
        log,
    };
    if let Some(metrics) = metrics {
        say(&format_args!("serving metrics on {}", metrics.url()));
        metrics.start(server.observed(budget.connections));
    }
    let mut control = Control {
        supervisor: Supervisor {
            signals,
            worker_count: threads,
            worker_exits,
            stop,
            is_on_terminal,
        },
        target_events,
        server,
    };
    let outcome = control.run().await;
    // Close the access log first, so that its last lines are written before the totals are printed.
    if let Some(log) = &control.server.log {
        log.close();
    }
    warning::tell_suppressed(true);
    control.server.print_totals();
    outcome
}

fn budget_of(flags: &RelayFlags, process: &ProcessConfig) -> Result<RelayBudget, Error> {
    let limit = raise_descriptor_limit();
    let requested = process.max_connections.map(|requested| requested as usize);
    RelayBudget::divide(limit, requested).map_err(|needed| Error::TooManyConnections {
        flag: flags.environment.name_of("--max-connections"),
        requested: requested.unwrap_or_default(),
        needed,
        limit,
    })
}

/// Returns the format of the access log. A file alone is a wish for a log, and a person at a
/// terminal wants to see what happens.
fn log_format(process: &ProcessConfig) -> Option<LineFormat> {
    match process.access_log {
        Some(RelayLogFormat::Off) => None,
        Some(RelayLogFormat::Text) => Some(LineFormat::Text),
        Some(RelayLogFormat::Json) => Some(LineFormat::Json),
        None => {
            let is_wanted = process.access_log_file.is_some() || io::stdout().is_terminal();
            is_wanted.then_some(LineFormat::Text)
        }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
