//! Moving bytes between two sockets, in both directions, without copying bulk data.
//!
//! [`copy_bidirectional`] is for blocking code, and `uncopied::tokio::copy_bidirectional` (feature
//! `tokio`) for tokio. Both carry the end of each stream across: once one side has sent everything,
//! the other socket is shut down for writing, and the bytes of the other direction go on.
//!
//! Small messages go by `recv` and `send`, and bulk data by `splice` through a pipe. A stream
//! changes between the two whenever that pays. Between two messages, it holds no pipe and no
//! buffer. If the sink is full, at most what a pipe holds is kept for it, and nothing more is taken
//! from the source.
//!
//! ```no_run
//! use std::net::{TcpListener, TcpStream};
//!
//! let listener = TcpListener::bind("127.0.0.1:5433")?;
//! for client in listener.incoming() {
//!     let (client, server) = (client?, TcpStream::connect("10.0.0.7:5432")?);
//!     std::thread::spawn(move || match uncopied::relay::copy_bidirectional(&client, &server) {
//!         Ok(relayed) => println!("to the server: {}; back: {}", relayed.a_to_b, relayed.b_to_a),
//!         Err(error) => eprintln!("{error} (so far: {})", error.relayed().a_to_b),
//!     });
//! }
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! # Pipes
//!
//! A pipe is in use only while it holds bytes that a full socket does not accept. At most 192 pipes
//! of 256 KiB are in use at the same time, unless [`set_pipe_limit`] says otherwise; beyond that,
//! bytes are copied, and the report says so (`EUSERS`).

mod bidirectional;
#[cfg(feature = "tokio")]
pub(crate) mod tokio;

pub use bidirectional::{
    RelayEnd, RelayError, RelayOptions, Relayed, copy_bidirectional, copy_bidirectional_with,
};

use crate::mechanism::socket_to_socket::pipe_pool;

/// Sets how many pipes may be in use at the same time in this process. The default is 192. Each
/// takes two descriptors and holds at most 256 KiB.
///
/// An unprivileged user's pipes may hold 64 MiB in total (`/proc/sys/fs/pipe-user-pages-soft`,
/// `pipe(7)`). Once this is reached, bytes are copied, and the report says so (`EPERM`).
pub fn set_pipe_limit(pipes: usize) {
    pipe_pool::set_limit(pipes);
}

/// Returns how many pipes are in use.
#[must_use]
pub fn pipes_in_use() -> usize {
    pipe_pool::in_use()
}
