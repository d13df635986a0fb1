//! Reads how many bytes are in the queue of a socket, and how many a TCP peer has acknowledged,
//! limits the size of segments, and discards received bytes.

use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::{Errno, Result};

use super::last_errno;

/// The numbers of acknowledged and unacknowledged bytes of a TCP connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    /// The number of bytes that were written to the socket and are not acknowledged yet.
    pub(crate) outstanding: u64,
    /// The number of bytes that have been acknowledged since the connection was made. This is read
    /// a moment after `outstanding`, so bytes that are acknowledged in between are counted in both.
    pub(crate) bytes: u64,
    /// Whether the connection is closed, so that no more bytes will be acknowledged.
    pub(crate) is_closed: bool,
}

/// `TCP_CLOSE` of `net/tcp_states.h`.
const TCP_CLOSE: u8 = 7;

/// What the kernel knows about a TCP connection (`TCP_INFO`, `tcp(7)`). For this project's own
/// measuring programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[doc(hidden)]
#[non_exhaustive]
pub struct TcpFacts {
    /// Bytes that the peer has acknowledged.
    pub acknowledged_bytes: u64,
    /// Bytes that have arrived, in the order of the stream.
    pub received_bytes: u64,
    /// How long there was something to send, in microseconds. The kernel counts in ticks of its
    /// clock, of 1 to 10 ms. 0 before Linux 4.10, as the next two.
    pub busy_us: u64,
    /// The part of that time in which the peer's receive window was full.
    pub receive_window_us: u64,
    /// The part of that time in which the socket's send buffer was full.
    pub send_buffer_us: u64,
}

/// The offsets of fields in `struct tcp_info` of `linux/tcp.h`, in bytes. They never change,
/// because the structure only grows at its end.
const TCPI_STATE_OFFSET: usize = 0;
const TCPI_RCV_MSS_OFFSET: usize = 20;
const TCPI_BYTES_ACKED_OFFSET: usize = 120;
const TCPI_BYTES_RECEIVED_OFFSET: usize = 128;
const TCPI_BUSY_TIME_OFFSET: usize = 168;
const TCPI_RWND_LIMITED_OFFSET: usize = 176;
const TCPI_SNDBUF_LIMITED_OFFSET: usize = 184;

/// The length, in bytes, of the part of `struct tcp_info` that ends with `tcpi_sndbuf_limited`. A
/// kernel that knows less leaves the rest as it is.
const TCP_INFO_BYTES: usize = 192;

/// See [`Kernel::queued_bytes`](super::Kernel::queued_bytes).
pub(super) fn queued_bytes(socket: BorrowedFd<'_>) -> Result<u64> {
    let mut queued: libc::c_int = 0;
    // SAFETY: TIOCOUTQ, which is SIOCOUTQ for sockets, writes one int, and is given a pointer to a
    // local int.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
    if result != 0 {
        return Err(last_errno());
    }
    Ok(u64::try_from(queued).unwrap_or(0))
}

/// See [`Kernel::discard`](super::Kernel::discard).
pub(super) fn discard(socket: BorrowedFd<'_>, count: usize, may_wait: bool) -> Result<usize> {
    let wait = if may_wait { 0 } else { libc::MSG_DONTWAIT };
    let flags = libc::MSG_TRUNC | wait;
    // SAFETY: the kernel writes to no memory of this process. Bytes that it discards do not advance
    // the address, so the first byte that it tried to write would go to null, where nothing is
    // mapped: the call would end there, with EFAULT.
    let received = unsafe { libc::recv(socket.as_raw_fd(), ptr::null_mut(), count, flags) };
    usize::try_from(received).map_err(|_| last_errno())
}

/// See [`Kernel::acknowledged`](super::Kernel::acknowledged).
pub(super) fn acknowledged(socket: BorrowedFd<'_>) -> Result<Acknowledged> {
    let outstanding = queued_bytes(socket)?;
    let info = tcp_info(socket)?;
    let acked = info[TCPI_BYTES_ACKED_OFFSET..].first_chunk().copied();
    Ok(Acknowledged {
        outstanding,
        bytes: acked.map_or(0, u64::from_ne_bytes),
        is_closed: info[TCPI_STATE_OFFSET] == TCP_CLOSE,
    })
}

/// Returns what the kernel knows about a TCP connection.
///
/// # Errors
///
/// Those of `getsockopt(2)`: the descriptor is not a TCP socket.
#[doc(hidden)]
pub fn tcp_facts(socket: BorrowedFd<'_>) -> std::io::Result<TcpFacts> {
    let info = tcp_info(socket)?;
    let at = |offset: usize| {
        let bytes = info[offset..].first_chunk().copied();
        bytes.map_or(0, u64::from_ne_bytes)
    };
    Ok(TcpFacts {
        acknowledged_bytes: at(TCPI_BYTES_ACKED_OFFSET),
        received_bytes: at(TCPI_BYTES_RECEIVED_OFFSET),
        busy_us: at(TCPI_BUSY_TIME_OFFSET),
        receive_window_us: at(TCPI_RWND_LIMITED_OFFSET),
        send_buffer_us: at(TCPI_SNDBUF_LIMITED_OFFSET),
    })
}

/// Returns how many bytes of payload the packets of the peer have, as the kernel estimates it.
pub(crate) fn payload_of_peer(socket: BorrowedFd<'_>) -> Result<u32> {
    let info = tcp_info(socket)?;
    let payload = info[TCPI_RCV_MSS_OFFSET..].first_chunk().copied();
    Ok(payload.map_or(0, u32::from_ne_bytes))
}

/// Whether a protocol on top of TCP, such as kernel TLS, processes the bytes of the socket
/// (`TCP_ULP`).
pub(crate) fn has_upper_protocol(socket: BorrowedFd<'_>) -> Result<bool> {
    // The kernel writes the name of the protocol, or sets the length to 0.
    let mut name = [0_u8; 16];
    let mut len = mem::size_of_val(&name) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, to a local array of that length.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_ULP,
            name.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    match result {
        0 => Ok(len > 0 && name[0] != 0),
        _ => Err(last_errno()),
    }
}

unsafe extern "C" {
    /// `sockatmark(3)`, which the crate libc does not declare for Linux.
    fn sockatmark(socket: libc::c_int) -> libc::c_int;
}

/// See [`Kernel::is_at_mark`](super::Kernel::is_at_mark).
pub(super) fn is_at_mark(socket: BorrowedFd<'_>) -> Result<bool> {
    // SAFETY: the function takes a descriptor and accesses no memory of the caller.
    match unsafe { sockatmark(socket.as_raw_fd()) } {
        -1 => Err(last_errno()),
        at_mark => Ok(at_mark != 0),
    }
}

/// Sets how many bytes must have arrived before the socket is readable (`SO_RCVLOWAT`,
/// `socket(7)`).
pub(crate) fn set_low_water_mark(socket: BorrowedFd<'_>, bytes: usize) -> Result<()> {
    let bytes = libc::c_int::try_from(bytes).unwrap_or(libc::c_int::MAX);
    // SAFETY: the kernel reads an int, and is given a pointer to a local int and its length.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVLOWAT,
            (&raw const bytes).cast(),
            mem::size_of_val(&bytes) as libc::socklen_t,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(last_errno()),
    }
}

/// Returns the beginning of the `struct tcp_info` of a socket.
fn tcp_info(socket: BorrowedFd<'_>) -> Result<[u8; TCP_INFO_BYTES]> {
    let mut info = [0_u8; TCP_INFO_BYTES];
    let mut len = mem::size_of_val(&info) as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, to a local array of that length, whose
    // elements may have any value.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    Ok(info)
}

/// Limits the segments of connections that are made with this socket, or accepted by it, to `bytes`
/// bytes of TCP options and payload (`TCP_MAXSEG`).
///
/// # Errors
///
/// - `EINVAL`: `bytes` is less than 88 or more than 32767.
/// - `ENOPROTOOPT`, `EOPNOTSUPP`: the socket is not a TCP socket.
pub(crate) fn set_max_segment(socket: BorrowedFd<'_>, bytes: u32) -> Result<()> {
    let value = libc::c_int::try_from(bytes).map_err(|_| Errno::INVAL)?;
    // SAFETY: the kernel reads one int, and is given a pointer to a local int.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_MAXSEG,
            (&raw const value).cast(),
            mem::size_of_val(&value) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    Ok(())
}

/// Whether new TCP connections in the network namespace of this thread use timestamps, if the peer
/// does so, too. Returns true, which is the default of Linux, if that cannot be determined.
pub(crate) fn uses_tcp_timestamps() -> bool {
    let setting = std::fs::read_to_string("/proc/sys/net/ipv4/tcp_timestamps");
    setting.map_or(true, |setting| setting.trim() != "0")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn the_low_water_mark_is_set() {
        let socket = TcpListener::bind("127.0.0.1:0").expect("bound");
        set_low_water_mark(socket.as_fd(), 1234).expect("set");
        let mut mark: libc::c_int = 0;
        let mut len = mem::size_of_val(&mark) as libc::socklen_t;
        // SAFETY: the kernel writes an int, and is given a pointer to a local int and its length.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVLOWAT,
                (&raw mut mark).cast(),
                &raw mut len,
            )
        };
        assert_eq!((result, mark), (0, 1234));
        let pipe = rustix::pipe::pipe().expect("created").0;
        assert_eq!(set_low_water_mark(pipe.as_fd(), 1), Err(Errno::NOTSOCK));
    }
}
