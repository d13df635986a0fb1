//! Tests of the command `audit`.
//!
//! | module | what it checks |
//! |---|---|
//! | `programs` | programs that copy are told apart from others, children are followed |
//! | `bytes` | bytes are counted exactly, nothing is left in tracefs |
//! | `output` | text, JSON, folded stacks, files, the ends of a program and of the audit |
//! | `usage` | mistakes on the command line, programs that cannot be started |
//! | `unprivileged` | what an ordinary user gets |
//!
//! The helper `watched` runs programs under the command, and puts them under load.

mod bytes;
mod output;
mod programs;
mod unprivileged;
mod usage;
mod watched;
