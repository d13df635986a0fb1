//! What the commands that serve connections have in common: `serve` and `relay`.
//!
//! ```text
//!   control (main thread): signals, sweeps, totals, the shutdown
//!      | stop, commands            ^ counters
//!      v                           |
//!   worker 0, worker 1, ...           one event loop each
//!      accept -> connections          every listener on every worker
//! ```
//!
//! Nothing here knows a protocol. What a connection does, what its log line says, and which
//! deadlines it has, is up to the command.

pub(crate) mod access_log;
mod coarse_clock;
pub(crate) mod connections;
pub(crate) mod control;
pub(crate) mod listening;
mod second_text;
pub(crate) mod totals;
pub(crate) mod warning;
pub(crate) mod worker;

pub(crate) use coarse_clock::coarse_now;
pub(crate) use second_text::SecondText;
