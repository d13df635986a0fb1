//! Tests the command the way its users run it: the real program, real sockets, real signals.
//!
//! | module | what it checks |
//! |---|---|
//! | `start` | addresses, passed sockets, limits, mistakes on the command line |
//! | `content` | bytes, headers, index, fallback and error pages |
//! | `files` | which files are served, how changes to them appear, `UNCOPIED_SEND=off` |
//! | `framing` | ambiguous requests, unexpected request bodies |
//! | `closing` | closing a connection destroys nothing that the client has not read yet |
//! | `deadlines` | the timeouts, and that none of them affects a slow but healthy client |
//! | `shutdown` | signals, the grace period, the totals |
//! | `access_log` | formats, escapes, log readers that are slow or have gone away |
//! | `warnings` | failures of the server are told on standard error and in the access log |
//! | `idle` | the memory of idle connections, and that they still serve requests |
//! | `help` | help, completions, the manual page |
//! | `system_calls` | the calls made by each mechanism, for a cache hit, for an uncached file |
//! | `tuning` | `UNCOPIED_TUNING`: the thresholds of the mechanisms, and files that are wrong |
//! | `faults` | kernel errors: all bytes arrive, and the totals name the mechanism that sent them |
//! | `real_clients` | curl, wget and a browser receive the right content |
//! | `garbage` | bytes that are not requests affect only their own connection |
//! | `fuzz_replay` | the inputs of the fuzz targets, and changed copies of them |
//! | `endurance` | many connections, slow readers, a signal under load; ignored by default |
//! | `get` | the command `get`: bodies, lies, resumption, many files, TLS and proxies |
//! | `relay` | the command `relay`: streams, targets, limits, reloads, metrics, real databases |
//! | `probe` | the command `probe`: it agrees with the library, and names the cause of refusals |
//! | `audit` | the command `audit`: shares of copying, output, ordinary users |
//! | `bench` | the command `bench`: rows, exact counts, listeners, refusals, ends |
//! | `churn` | 200 clients that connect and vanish: bodies are complete, nothing leaks |
//!
//! Helpers: `server` starts and stops the program, `trace` does so under strace, `terminal` is a
//! terminal for it, `client` speaks HTTP over a plain socket, `process` reads the resources of a
//! process, `data` generates the content of files, `rng` generates random numbers from a seed,
//! `fuzz_checks` says what must hold for any bytes, `seccomp` forbids system calls, `skip` reports
//! skipped tests.

#![allow(clippy::unwrap_used)]

mod access_log;
mod audit;
mod bench;
mod churn;
mod client;
mod closing;
mod content;
mod data;
mod deadlines;
mod endurance;
mod faults;
mod files;
mod framing;
mod fuzz_checks;
mod fuzz_replay;
mod garbage;
mod get;
mod help;
mod idle;
mod probe;
mod process;
mod real_clients;
mod relay;
mod rng;
mod seccomp;
mod server;
mod shutdown;
mod skip;
mod start;
mod system_calls;
mod terminal;
mod trace;
mod tuning;
mod warnings;
