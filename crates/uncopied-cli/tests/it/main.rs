//! The command as its users run it: the real program, real sockets, real signals.
//!
//! | module | what it holds the command to |
//! |---|---|
//! | `start` | addresses, passed sockets, limits, mistakes on the command line |
//! | `content` | bytes, headers, index, fallback and error pages |
//! | `files` | which files are served, and as of when; the switch |
//! | `repeats` | requests that come again, byte for byte: the same answer while it is right, and no longer |
//! | `framing` | requests that could be read in two ways, bodies nobody asked for |
//! | `deadlines` | the time-outs, and that a slow but healthy client meets none |
//! | `ending` | signals, the grace period, the totals |
//! | `access_log` | its formats, escapes, and readers that are slow or gone |
//! | `parking` | idle connections: what they cost, and that they come back |
//! | `pages` | help, completions, the manual |
//! | `system_calls` | what each mechanism asks of the kernel, and what a cache hit and a cold file cost |
//! | `faults` | refusals of the kernel: the bytes stay the same, and the totals tell the way |
//! | `clients` | curl, wget and a browser get what is there |
//! | `garbage` | bytes that are no requests end nothing but their own connection |
//! | `churn` | 200 clients that come and vanish: every body is whole, nothing is left behind |
//!
//! `server` starts the program and stops it, `trace` does so under strace; `client` speaks HTTP over a
//! plain socket; `process` counts what a process holds; `dice` throws what a seed repeats.

#![allow(clippy::unwrap_used)]

mod access_log;
mod churn;
mod client;
mod clients;
mod content;
mod deadlines;
mod dice;
mod ending;
mod faults;
mod files;
mod framing;
mod garbage;
mod pages;
mod parking;
mod process;
mod repeats;
mod server;
mod skip;
mod start;
mod system_calls;
mod trace;
