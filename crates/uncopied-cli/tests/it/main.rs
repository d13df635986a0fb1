//! The command as its users run it: the real program, real sockets, real signals.
//!
//! | module | what it holds the command to |
//! |---|---|
//! | `start` | addresses, passed sockets, limits, mistakes on the command line |
//! | `content` | bytes, headers, index, fallback and error pages |
//! | `framing` | requests that could be read in two ways, bodies nobody asked for |
//! | `deadlines` | the time-outs, and that a slow but healthy client meets none |
//! | `ending` | signals, the grace period, the totals |
//! | `access_log` | its formats, escapes, and readers that are slow or gone |
//! | `parking` | idle connections: what they cost, and that they come back |
//! | `pages` | help, completions, the manual |
//!
//! `server` starts the program and stops it; `client` speaks HTTP over a plain socket.

#![allow(clippy::unwrap_used)]

mod access_log;
mod client;
mod content;
mod deadlines;
mod ending;
mod framing;
mod pages;
mod parking;
mod server;
mod start;
