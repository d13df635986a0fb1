//! Bytes from files and memory to sockets without the CPU copying them, with a report of which way each
//! byte went.
//!
//! ```text
//! source ─┐                          ┌─ moved, blocked, done ─▶ driver (poll, tokio) ─▶ you
//!         ├─▶ plan ─▶ mechanism ─▶ transfer ─▶ report
//! sink ───┘    ▲          │
//!              └─ support ◀┘ unsupported: the next mechanism goes on from the same byte
//! ```
//!
//! [`send_file()`] is the paved path, [`SendFile`] the same with every choice open, and [`Transfer`]
//! the state machine under both, for event loops of your own:
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
//! Memory is sent by lending it: [pages](arena::Pages) that are immutable once they are filled, or parts of
//! a [region](arena::Region) that may be overwritten at any time. A [`Sender`] answers each send with a
//! [`Completion`], which tells when the kernel is done with the pages and whether it copied them after
//! all; the pages are kept until then, whatever is dropped. [`Channel`] is the same for I/O objects that have
//! their socket elsewhere.
//!
//! # The contract that zero copy drops
//!
//! This is about files. `write(2)` sends the bytes as they are at the call. `sendfile` and `splice` lend the file's pages
//! to the kernel instead: until the peer has acknowledged them (on the same host: has *read* them)
//! whoever writes to the file changes what the peer gets. Files that are replaced rather than
//! rewritten are safe; for others there is [`SendFile::copied`].
//!
//! # Switches
//!
//! `UNCOPIED_SEND=off` in the environment, or [`set_send`]`(false)` at any time, sends every transfer
//! by `copy`, and the reports say so.
//!
//! # Features
//!
//! - `tokio`: the driver for tokio's sockets, [`SendFile::to_tokio`] and [`Sender::send_tokio`].

mod acknowledgements;
pub mod arena;
mod channel;
mod completion;
pub mod drive;
mod error;
mod error_queue;
#[cfg(test)]
mod faults;
mod lease;
mod lenders;
mod mechanism;
mod memory_transfer;
pub mod plan;
mod reaper;
mod report;
pub mod residency;
mod send_file;
mod sender;
mod sink;
mod source;
mod support;
#[allow(unsafe_code)]
mod sys;
mod transfer;

pub use channel::Channel;
pub use completion::{Completion, Rule, Settled};
pub use error::{Error, ErrorKind};
pub use lease::{LEASED_BY_PROCESS, LEASED_BY_SENDER, Memory, leased_bytes, set_leased_at_most};
pub use mechanism::Side;
pub use plan::Mechanism;
pub use report::{Report, StepDown};
pub use rustix::io::Errno;
pub use send_file::{SendFile, send_file};
pub use sender::{OverQuota, SendOptions, Sender, Sent, StreamSocket};
pub use support::{Support, send_is_on, set_send};
pub use sys::send_vectored;
pub use transfer::{Progress, Transfer};
