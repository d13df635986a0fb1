//! Sends files and memory to sockets, and receives from them, without copying the bytes on the CPU,
//! and reports how many bytes each mechanism moved.
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
//! | you have | use | it pays from |
//! |---|---|---|
//! | a call of `std::io::copy` | [`copy()`], with the same arguments | a few KiB |
//! | a file | [`send_file()`], [`SendFile`] for options | a few KiB |
//! | memory that is sent once, to another machine | [`Sender`] | 16 KiB |
//! | memory that is sent often and never changes | [permanent pages] and a [`Sender`] | 64 KiB |
//! | memory that changes while in flight | a [`Region`](arena::Region), a [`Sender`] | 2 MiB |
//! | a socket that another object owns | [`Channel`] | as for a [`Sender`] |
//! | an event loop of your own | [`Transfer`], [`Sender::try_send`] | as above |
//! | a socket of tokio | the same names in the module `uncopied::tokio` | as above |
//! | hyper or axum | the crate `uncopied-http` | 16 KiB |
//! | bytes to receive into a file or a pipe | [`receive_file()`], [`ReceiveFile`] | not measured |
//! | two sockets whose bytes go both ways | [`relay::copy_bidirectional`] | 16 KiB at a time |
//! | bytes to receive that are sent on or stored | a [`Receiver`] and [`PagePayload`] | 16 KiB |
//! | bytes to receive that are read in place | a [`zcrx::Queue`] | not measured |
//!
//! [permanent pages]: arena::PageBuffer::freeze_permanently
//!
//! What to beware of:
//!
//! - Later changes to a file can still reach the peer: see
//!   [below](#the-contract-that-zero-copy-drops).
//! - Memory is not free until the [`Completion`] says so.
//! - Permanent pages pay for any peer, but not for memory that is sent once: new pages cost more
//!   than a copy.
//! - Regions need huge pages, and bytes that are rewritten before each send are better copied.
//! - With a [`Channel`], a [`Transfer`] or [`Sender::try_send`], you wait for the socket.
//! - With tokio, dropping a future ends the send.
//! - In hyper or axum, layers that change the bytes, such as compression, copy them.
//! - Received bytes are copied unless the network card puts them into whole pages: see
//!   [below](#receiving).
//!
//! For anything else, an ordinary write is best.
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
//! The kernel may read the memory of a zero-copy send until the peer has acknowledged the bytes.
//! Such [`Memory`] is either immutable, such as `Bytes`, a `Vec<u8>` that the library owns from
//! then on, or [pages](arena::Pages) that were filled before; or it is a [region](arena::Region),
//! which may be overwritten at any time. Each send by a [`Sender`] returns a [`Completion`], which
//! reports when the kernel is done with the memory, and whether the kernel copied it after all. The
//! memory stays allocated until then, even if the sender, the completion or the socket is dropped.
//!
//! A program that sends memory, and then replaces itself with another program, should do so with
//! [`exec()`]: `execve(2)` may wait for the peers.
//!
//! # The contract that zero copy drops
//!
//! This section is about files. `write(2)` sends the bytes as they are at the time of the call.
//! `sendfile` and `splice` instead give the socket references to the file's pages. Until the peer
//! has acknowledged the bytes (or, on the same host, *read* them), a write to the file changes what
//! the peer receives. A file is safe if updates replace it with a new file instead of rewriting it
//! in place. For other files, use [`SendFile::force_copy`].
//!
//! # Before receiving
//!
//! Whether bytes can be received without a copy depends on the network card.
//! [`interface::Interface`] says in words what an interface lacks, with the commands that change
//! it. A [`PagePayload`] makes the TCP payloads of a listener or of a connection consist of whole
//! pages.
//!
//! # Receiving
//!
//! A [`Receiver`] returns [chunks](Chunk). Their bytes are in pages that the kernel has mapped into
//! this process, if payloads fill whole pages: that needs [`PagePayload`], and a network card that
//! splits headers from payloads ([`interface`] tells whether it does). Otherwise the bytes are
//! copied, as by `recv(2)`, and [`Receiver::map_obstacle`] says why.
//!
//! To receive into a file, use a [`ReceiveFile`], or a [`ReceiveTransfer`] in an event loop of your
//! own. The bytes need not pass through memory of this process, but the kernel copies them into the
//! pages of the file, and the report says so. A pipe and `/dev/null` need no copy.
//!
//! A chunk can be sent on and be written to a file without copying it. Code that reads the bytes
//! itself needs `unsafe`: see [`ReceivedPages`](arena::ReceivedPages).
//!
//! A [`zcrx::Queue`] receives from several sockets into memory to which the network card writes
//! directly. Safe code reads the bytes in place. It needs a network card that supports that.
//!
//! # Switches
//!
//! `UNCOPIED_SEND=off` in the environment switches zero-copy sending off for the whole process.
//! [`set_zero_copy_send`]`(false)` does the same at run time. Every transfer that begins afterwards
//! uses `copy`, and its report says that zero-copy sending is switched off. `UNCOPIED_RECEIVE=off`
//! and [`set_zero_copy_receive`]`(false)` do the same for receiving.
//!
//! # Thresholds
//!
//! From how many bytes on a mechanism pays depends on the machine. The table above shows the
//! defaults. [`Tuning::set`] changes them for the whole process, [`Tuning::measure`] measures some
//! of them in less than 100 ms, and `UNCOPIED_TUNING` in the environment names a file with them.
//!
//! # Features
//!
//! - `tokio`: the module `uncopied::tokio`, `SendFile::to_tokio` and `ReceiveFile::from_tokio`.
//! - `mio`: implements [`StreamSocket`] for the sockets of mio.
//! - `serde`: implements `Serialize` for [`Report`], [`Fallback`] and [`Mechanism`].
//! - `tracing`: emits an event with the target `uncopied` and the level `DEBUG` for each
//!   [`Fallback`] that a [`Report`] lists.

// docs.rs shows which feature each item needs.
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(not(target_os = "linux"))]
compile_error!(
    "uncopied works on Linux only; depend on it with \
     [target.'cfg(target_os = \"linux\")'.dependencies]"
);

pub mod arena;
mod copy;
pub mod driver;
mod endpoint;
mod error;
mod exec;
mod in_flight;
pub mod interface;
mod measure;
mod mechanism;
pub mod policy;
mod receive;
pub mod relay;
mod report;
pub mod residency;
mod send;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
mod tests;
mod transfer;
mod uring;

/// Sending files and memory, and receiving, on tokio. Requires the feature `tokio`.
///
/// The functions and types here are those of the crate's root, with `async` functions. They take
/// tokio's sockets and the halves of split sockets, which those of the root do not.
#[cfg(feature = "tokio")]
pub mod tokio {
    pub use crate::copy::tokio::{CopySink, CopySource, copy};
    pub use crate::driver::tokio::relay::DuplexSocket;
    pub use crate::driver::tokio::{ReadSocket, Socket, run, run_receive};
    pub use crate::receive::tokio::{Receiver, receive_file};
    pub use crate::relay::tokio::{Relay, copy_bidirectional};
    pub use crate::send::tokio::{Sender, SocketExt, send_file};
}

pub use arena::{ChunkPart, Memory};
pub use copy::{CopySink, CopySource, Through, copy};
pub use endpoint::{Side, StreamSocket};
pub use error::{Error, ErrorKind};
pub use exec::exec;
pub use in_flight::{
    Completion, DEFAULT_PROCESS_IN_FLIGHT_LIMIT, DEFAULT_SENDER_IN_FLIGHT_LIMIT, FreeReason,
    LimitAction, SendOutcome, in_flight_bytes, set_process_in_flight_limit,
};
pub use measure::MeasureError;
pub use policy::{
    Mechanism, ParseMechanismError, Support, Tuning, TuningError, set_zero_copy_receive,
    set_zero_copy_send, zero_copy_receive_enabled, zero_copy_send_enabled,
};
pub use receive::zcrx;
pub use receive::{
    Chunk, MapObstacle, PagePayload, ReceiveFile, ReceiveOptions, Receiver, receive_file,
};
pub use report::{Fallback, Report};
pub use send::{Channel, SendFile, SendOptions, Sender, Sent, StreamSocketExt, send_file};
#[doc(hidden)]
pub use sys::{BpfMap, BpfMapKind, BpfProgram, TcpFacts, share_perf_ring, tcp_facts};
pub use sys::{Errno, ignore_sigpipe, queued_bytes, send_vectored};
pub use transfer::{Progress, ReceiveTransfer, RelayTransfer, Transfer};
