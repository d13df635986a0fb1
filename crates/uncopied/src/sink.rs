//! Where bytes go.

use std::os::fd::BorrowedFd;

use rustix::io::{Errno, Result};
use rustix::net::SocketType;

/// Whether a descriptor is a stream socket, which is what every mechanism needs: TCP (also Multipath
/// TCP) or Unix.
///
/// # Errors
///
/// `ENOTSOCK` if it is no socket, `EPROTOTYPE` if its type is another.
pub(crate) fn check(sink: BorrowedFd<'_>) -> Result<()> {
    match rustix::net::sockopt::socket_type(sink)? {
        SocketType::STREAM => Ok(()),
        _ => Err(Errno::PROTOTYPE),
    }
}
