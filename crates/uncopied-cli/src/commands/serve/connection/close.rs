//! Closes a connection without destroying what the peer has not read yet.
//!
//! If a socket is closed while bytes of the peer are unread, or if such bytes arrive afterwards,
//! the kernel resets the connection. The peer's kernel then discards what the peer has received but
//! not read. So after the last response, the server only shuts down its sending side, and then
//! reads and drops what still arrives until the peer closes the connection, too (RFC 9112, section
//! 9.6).

use std::future::poll_fn;
use std::time::Duration;

use bytes::BufMut as _;
use rustix::net::Shutdown;
use tokio::time::{Instant, timeout_at};

use super::buffers::RequestBuffer;
use super::request::MAX_HEAD_BYTES;
use super::socket::Socket;

/// The maximum time without a byte from the peer.
const MAX_SILENCE: Duration = Duration::from_secs(5);

/// The maximum time in total.
const MAX_TIME: Duration = Duration::from_secs(30);

/// The maximum number of bytes that are read and dropped.
const MAX_BYTES: u64 = 64 << 20;

/// Shuts down the sending side, and waits until the peer has closed the connection, or until a
/// limit is reached.
pub(super) async fn close_gently(socket: &mut Socket) {
    if rustix::net::shutdown(&*socket, Shutdown::Write).is_err() {
        return;
    }
    let end = Instant::now() + MAX_TIME;
    let mut dropped = 0;
    while dropped < MAX_BYTES {
        let until = end.min(Instant::now() + MAX_SILENCE);
        match timeout_at(until, drop_some(socket)).await {
            Ok(bytes @ 1..) => dropped += bytes,
            // The peer has closed or reset the connection, or a limit is reached.
            Ok(0) | Err(_) => return,
        }
    }
}

/// Reads and drops bytes. Returns 0 at the end of the stream, and if the connection has failed.
async fn drop_some(socket: &mut Socket) -> u64 {
    poll_fn(|cx| {
        std::task::ready!(socket.poll_read_ready(cx)).ok();
        let mut buffer = RequestBuffer::take(&[]);
        let read = socket.poll_read(cx, &mut (&mut buffer.bytes).limit(MAX_HEAD_BYTES));
        buffer.give_back();
        read
    })
    .await
    .map_or(0, |bytes| bytes as u64)
}
