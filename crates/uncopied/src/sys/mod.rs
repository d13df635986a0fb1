//! The kernel, behind types that make its calls safe.
//!
//! This is the only unsafe code of the library besides the address table of the
//! [arena](crate::arena). It imports nothing from the rest of the library.

mod error_queue;
pub(crate) mod fork;
mod kernel;
mod map;
mod mapped;
mod page_cache;
mod signal;
mod tcp;
pub(crate) mod uring;
mod userfault;

use std::io::IoSlice;
use std::os::fd::AsFd;

use rustix::io::{Errno, Result};
use rustix::net::{SendAncillaryBuffer, SendFlags};

pub(crate) use error_queue::{ErrorQueueEntry, Notification};
pub(crate) use kernel::{Kernel, Linux};
pub(crate) use map::Reservation;
#[cfg(test)]
pub(crate) use map::UnplacedMapping;
pub(crate) use mapped::Mapped;
pub(crate) use page_cache::cached_pages;
#[cfg(test)]
pub(crate) use tcp::Acknowledged;
pub(crate) use userfault::{
    Userfault, populate, replace_page, seal, wipe_on_fork, without_signals,
};

/// `sendmsg(2)` of several buffers, or `send(2)` of one. Never raises SIGPIPE. `more` says that more bytes
/// surely follow at once: without that the kernel would hold the tail back for up to 200 ms.
///
/// # Errors
///
/// Whatever the kernel answers; `EINTR` is not repeated.
pub fn send_vectored(sink: impl AsFd, buffers: &[IoSlice<'_>], more: bool) -> Result<usize> {
    let mut flags = SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more);
    // One buffer needs no list for the kernel to read.
    if let [buffer] = buffers {
        return rustix::net::send(sink, buffer, flags);
    }
    let mut no_control = SendAncillaryBuffer::default();
    rustix::net::sendmsg(sink, buffers, &mut no_control, flags)
}

/// Milliseconds since the machine's start, by a clock that ticks every few of them and costs next to
/// nothing to read.
pub(crate) fn coarse_millis() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
