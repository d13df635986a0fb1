//! Moves bytes from files and memory to sockets without the CPU copying them, and reports which way
//! each byte went.
//!
//! ```text
//! source ─┐                                ┌─▶ driver (poll, tokio) ─▶ you
//!         ├─▶ plan ─▶ transfer ─▶ mechanism ┤
//! sink ───┘    ▲         ▲                 └─▶ report
//!              │         └─ fallback: the next mechanism continues from the same byte
//!              └─ support ◀─ unsupported
//! ```
//!
//! # What to use
//!
//! - A file and a socket: [`send_file()`], for files of a few KiB or more. The file may still
//!   change until the peer has its bytes: see below.
//! - The same on tokio, or with choices of your own: [`SendFile`]. In an event loop of your own:
//!   [`Transfer`].
//! - Memory and a socket: [`Sender`], for 16 KiB or more to another machine. Memory in flight
//!   cannot be reused until its [`Completion`] says so.
//! - Memory that is sent many times: pages that are
//!   [frozen permanently](arena::PageBuffer::freeze_permanently), for 64 KiB or more, to any peer.
//!   New pages cost more than a copy, so it does not pay for memory that is sent once.
//! - Memory that must stay writable while it is in flight: a [`Region`](arena::Region), for 2 MiB
//!   or more. It needs huge pages.
//! - Memory, and an I/O object that keeps its socket elsewhere: [`Channel`].
//!
//! Anything else is best written as usual.
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
//! [region](arena::Region), which may be overwritten at any time. Each send by a [`Sender`] returns
//! a [`Completion`], which reports when the kernel is done with the pages, and whether it copied
//! them after all. The pages are kept until then, whatever is dropped.
//!
//! # The contract that zero copy drops
//!
//! This is about files. `write(2)` sends the bytes as they are at the call. `sendfile` and `splice`
//! give the socket references to the file's pages instead. Until the peer has acknowledged the
//! bytes (on the same host: has *read* them), a write to the file changes what the peer receives.
//! Files that are replaced rather than rewritten are safe; for others there is
//! [`SendFile::force_copy`].
//!
//! # Switches
//!
//! `UNCOPIED_SEND=off` in the environment, or [`set_zero_copy_send`]`(false)` at any time, makes
//! every transfer go by `copy`, and the reports say so.
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
