//! Sending a file as a method of the socket.

use std::ops::RangeBounds;
use std::os::fd::AsFd;

use super::SendFile;
use crate::endpoint::StreamSocket;
use crate::error::Error;
use crate::report::Report;

/// Adds a method that sends a file to every [`StreamSocket`].
pub trait StreamSocketExt: StreamSocket + Sized {
    /// Does the same as [`send_file()`](crate::send_file()) with this socket.
    ///
    /// ```
    /// use std::{fs::File, os::unix::net::UnixStream};
    /// use uncopied::StreamSocketExt;
    ///
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let report = socket.send_file(&File::open("Cargo.toml")?, ..100)?;
    /// assert_eq!(report.bytes(), 100);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind). The error says how many bytes the socket had accepted.
    fn send_file(&self, file: &impl AsFd, range: impl RangeBounds<u64>) -> Result<Report, Error> {
        SendFile::new(file).range(range).to(self)
    }
}

impl<S: StreamSocket> StreamSocketExt for S {}
