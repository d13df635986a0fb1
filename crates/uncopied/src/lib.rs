//! Moves bytes from files and memory to sockets without the CPU copying them, and reports which way
//! each byte went.
//!
//! ```text
//! source ─┐                          ┌─ moved, blocked, done ─▶ driver (poll, tokio) ─▶ you
//!         ├─▶ plan ─▶ mechanism ─▶ transfer ─▶ report
//! sink ───┘    ▲          │
//!              └─ support ◀┘ unsupported: the next mechanism goes on from the same byte
//! ```
//!
//! # What to use
//!
//! | you have | use | it pays from | beware |
//! |---|---|---|---|
//! | a file, a socket | [`send_file()`] | a few KiB | the file may still change: see below |
//! | the same, with choices or on tokio | [`SendFile`] | | |
//! | the same, in an event loop of your own | [`Transfer`] | | |
//! | memory, a socket | [`Sender`] | 16 KiB, to another machine | memory in flight cannot be reused yet |
//! | memory that is sent many times | [`PageBuffer::freeze_permanently`](arena::PageBuffer::freeze_permanently) | 64 KiB | new pages cost more than a copy |
//! | memory that must stay writable | [`Region`](arena::Region) | 2 MiB | it needs huge pages |
//! | memory, an I/O object that keeps its socket elsewhere | [`Channel`] | | |
//!
//! Memory of any other kind, or less of it, is best written as usual.
//!
//! ```no_run
//! use std::{fs::File, net::TcpListener};
//! use uncopied::Mechanism;
//!
//! let file = File::open("video.mp4")?;
//! let listener = TcpListener::bind("127.0.0.1:9000")?;
//! for socket in listener.incoming() {
//!     let report = uncopied::send_file(&file, .., &socket?)?;
//!     assert!(report.by(Mechanism::Sendfile) > 0, "this file system cannot: {report}");
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Memory
//!
//! The kernel reads memory that is sent until the peer has acknowledged it. It is kept in
//! [pages](arena::Pages), which are immutable once they are filled, or in a
//! [region](arena::Region), which may be overwritten at any time. Each send by a [`Sender`] returns a
//! [`Completion`], which reports when the kernel is done with the pages, and whether it copied them
//! after all. The pages are kept until then, whatever is dropped.
//!
//! # The contract that zero copy drops
//!
//! This is about files. `write(2)` sends the bytes as they are at the call. `sendfile` and `splice`
//! give the socket references to the file's pages instead. Until the peer has acknowledged the bytes
//! (on the same host: has *read* them), a write to the file changes what the peer receives. Files
//! that are replaced rather than rewritten are safe; for others there is [`SendFile::force_copy`].
//!
//! # Switches
//!
//! `UNCOPIED_SEND=off` in the environment, or [`set_zero_copy_send`]`(false)` at any time, makes every
//! transfer go by `copy`, and the reports say so.
//!
//! # Features
//!
//! - `tokio`: the driver for tokio's sockets, [`SendFile::to_tokio`] and [`Sender::send_tokio`].

pub mod arena;
pub mod driver;
mod endpoint;
mod error;
mod in_flight;
mod mechanism;
pub mod policy;
mod report;
pub mod residency;
mod send;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;

pub use arena::Memory;
pub use error::{Error, ErrorKind};
pub use in_flight::{
    Completion, DEFAULT_PROCESS_IN_FLIGHT_LIMIT, DEFAULT_SENDER_IN_FLIGHT_LIMIT, FreeReason,
    LimitAction, SendOutcome, in_flight_bytes, set_process_in_flight_limit,
};
pub use mechanism::Side;
pub use policy::{Mechanism, Support, set_zero_copy_send, zero_copy_send_enabled};
pub use report::{Fallback, Report};
pub use rustix::io::Errno;
pub use send::{Channel, SendFile, SendOptions, Sender, Sent, StreamSocket, send_file};
pub use sys::send_vectored;
pub use transfer::{Progress, Transfer};
