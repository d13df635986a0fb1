//! How far a TCP peer has acknowledged.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Result;

use super::last_errno;

/// What a connection has been told and not told of its bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// So many bytes were written and not acknowledged.
    pub(crate) outstanding: u64,
    /// So many were acknowledged in all, a moment later.
    pub(crate) bytes: u64,
    /// Whether the connection is gone, so that none will follow.
    pub(crate) is_closed: bool,
}

/// `TCP_CLOSE` of `linux/tcp_states.h`.
const CLOSED: u8 = 7;

/// Of `struct tcp_info` (`linux/tcp.h`), which only grows at its end: where `tcpi_state` and
/// `tcpi_bytes_acked` stand, and how much of it is wanted.
const STATE: usize = 0;
const BYTES_ACKED: usize = 120;
const WANTED: usize = 128;

/// `SIOCOUTQ`, then `TCP_INFO` (`tcp(7)`).
pub(super) fn acknowledged(socket: BorrowedFd<'_>) -> Result<Acknowledged> {
    let mut outstanding: libc::c_int = 0;
    // SAFETY: the request, which is SIOCOUTQ for sockets, writes an int to the local that it is given.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut outstanding) };
    if answer != 0 {
        return Err(last_errno());
    }
    let mut info = [0_u8; WANTED];
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to a local of that length, of any content.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if answer != 0 {
        return Err(last_errno());
    }
    let acked = info[BYTES_ACKED..].first_chunk().copied();
    Ok(Acknowledged {
        outstanding: u64::try_from(outstanding).unwrap_or(0),
        bytes: acked.map_or(0, u64::from_ne_bytes),
        is_closed: info[STATE] == CLOSED,
    })
}
