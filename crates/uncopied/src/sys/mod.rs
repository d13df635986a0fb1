//! System calls, behind types that make them safe.
//!
//! All unsafe code of the library is in this module, except that of the [arena](crate::arena),
//! which manages the arena's memory and hands out references to it. This module imports nothing
//! from the rest of the library.

mod bpf;
mod descriptors;
mod errno;
mod error_queue;
mod ethtool;
pub(crate) mod fork;
mod genetlink;
mod interface;
mod kernel;
mod map;
mod mapped;
mod page_cache;
mod perf;
mod region_memory;
mod signal;
mod socket_window;
mod tcp;
pub(crate) mod uring;
mod userfault;
pub(crate) mod zcrx;

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use rustix::net::{SendAncillaryBuffer, SendFlags};

#[doc(hidden)]
pub use bpf::{BpfMap, BpfMapKind, BpfProgram};
pub(crate) use descriptors::has_other_descriptor;
pub use errno::Errno;
pub(crate) use error_queue::{ErrorQueueEntry, Notification};
pub(crate) use ethtool::{Ethtool, Features, Rings};
pub(crate) use interface::{
    driver, gathers, index_of_address, interface_flags, interface_indices, mtu,
};
pub(crate) use kernel::{Kernel, Linux};
pub(crate) use map::{MappedWindow, Reservation};
pub(crate) use mapped::{Mapped, PipeWriter, write_at};
pub(crate) use page_cache::cached_pages;
pub use perf::share_perf_ring;
pub(crate) use region_memory::{make_inaccessible, populate, replace_page, wipe_on_fork};
pub use signal::ignore_sigpipe;
pub(crate) use signal::without_signals;
pub(crate) use socket_window::{MapReceived, SocketWindow};
pub(crate) use tcp::{
    Acknowledged, has_upper_protocol, payload_of_peer, set_low_water_mark, set_max_segment,
    uses_tcp_timestamps,
};
#[doc(hidden)]
pub use tcp::{TcpFacts, tcp_facts};
pub(crate) use userfault::Userfault;

/// Sends several buffers with one `sendmsg(2)`, or one buffer with `send(2)`, and returns the
/// number of bytes sent.
///
/// Never raises SIGPIPE. Set `more` (`MSG_MORE`) only if more bytes follow immediately: otherwise
/// the kernel holds back the last, partly filled packet for up to 200 ms.
///
/// # Errors
///
/// The errno of the system call, unchanged. The call is not repeated after `EINTR`.
pub fn send_vectored(sink: impl AsFd, buffers: &[IoSlice<'_>], more: bool) -> io::Result<usize> {
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more);
    // With `send(2)`, the kernel need not read a list of buffers.
    if let [buffer] = buffers {
        return Ok(rustix::net::send(sink, buffer, flags)?);
    }
    let mut no_control = SendAncillaryBuffer::default();
    let sent = rustix::net::sendmsg(sink, buffers, &mut no_control, flags)?;
    Ok(sent)
}

/// Returns how many bytes that were written to the socket have not left it: those that a TCP peer
/// has not acknowledged, or that the peer of a Unix socket has not read (`SIOCOUTQ`, see `tcp(7)`
/// and `unix(7)`). If the number falls between two calls, the peer is reading.
///
/// ```
/// use std::io::{Read, Write};
/// use std::os::unix::net::UnixStream;
///
/// let (mut here, mut there) = UnixStream::pair()?;
/// here.write_all(b"hello")?;
/// assert!(uncopied::queued_bytes(&here)? > 0);
/// there.read_exact(&mut [0; 5])?;
/// assert_eq!(uncopied::queued_bytes(&here)?, 0);
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # Errors
///
/// The errno of `ioctl(2)`, such as `ENOTTY` for a descriptor that is no socket.
pub fn queued_bytes(socket: impl AsFd) -> io::Result<u64> {
    Ok(tcp::queued_bytes(socket.as_fd())?)
}

/// Returns the milliseconds since the machine started, from a clock that advances only every few
/// milliseconds and costs next to nothing to read.
pub(crate) fn coarse_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// Returns the errno of the system call that has just failed in this thread.
fn last_errno() -> rustix::io::Errno {
    let error = io::Error::last_os_error();
    rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::time::{ClockId, clock_gettime};

    use super::*;

    #[test]
    fn coarse_millis_are_those_of_the_clock() {
        let now = || {
            let now = clock_gettime(ClockId::MonotonicCoarse);
            Duration::try_from(now).expect("not negative").as_millis()
        };
        let before = now();
        let millis = u128::from(coarse_millis());
        assert!((before..=now()).contains(&millis), "{millis} is not now");
    }
}
