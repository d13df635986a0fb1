//! The simple API for receiving into files: receive a part of a stream, or all of it, into a file.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::net::ipproto;
use rustix::net::sockopt::socket_protocol;

use crate::driver;
use crate::endpoint::{self, StreamSocket};
use crate::error::{Error, ErrorKind};
use crate::policy::{
    Direction, Length, Mechanism, Plan, ReceiveFilePlanInput, SinkKind, Support, plan_receive_file,
    zero_copy_receive_enabled,
};
use crate::report::Report;
use crate::sys::{Kernel, Linux};
use crate::transfer::ReceiveTransfer;

/// Receives from a stream socket into a file, a pipe or a device with the best mechanism that
/// works, and waits until the sink has every byte.
///
/// A file is written from its start, and is not truncated. Its own position is neither used nor
/// changed. With [`Length::Exact`], bytes of the stream after the length stay in the socket. The
/// socket may be blocking or non-blocking. The receive timeout of the socket (`SO_RCVTIMEO`)
/// applies.
///
/// ```no_run
/// use std::{fs::File, net::TcpStream};
/// use uncopied::policy::Length;
///
/// let socket = TcpStream::connect("192.0.2.1:9000")?;
/// let file = File::create("video.mp4")?;
/// let report = uncopied::receive_file(&socket, &file, Length::UntilEof)?;
/// println!("{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`ErrorKind`]. The error says how many bytes are in the sink. Bytes that were taken from the
/// socket after these, at most 2 MiB, are lost. To keep them, use a [`ReceiveTransfer`].
pub fn receive_file(
    socket: &impl StreamSocket,
    file: &impl AsFd,
    length: Length,
) -> Result<Report, Error> {
    ReceiveFile::new(file).length(length).from(socket)
}

/// Receives from a socket into a file, a pipe or a device, like [`receive_file()`], but with the
/// options that `receive_file` does not offer.
///
/// ```
/// use std::{io::Write, os::unix::net::UnixStream};
/// use uncopied::{ReceiveFile, policy::Length};
///
/// let (mut peer, socket) = UnixStream::pair()?;
/// peer.write_all(b"hello, world")?;
/// let file = tempfile::tempfile()?;
/// let report = ReceiveFile::new(&file)
///     .at(100)
///     .length(Length::Exact(5))
///     .reserve(true)
///     .from(&socket)?;
/// assert_eq!((report.bytes(), file.metadata()?.len()), (5, 105));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # The file
///
/// What the report counts has been written, as by `write(2)`: it is in the page cache, and reaches
/// the disk later, or with `fsync(2)`. The file is not truncated. If another process truncates it
/// meanwhile, the next write extends it again, and leaves a hole in place of the bytes that were
/// cut off.
///
/// If the file was opened with `O_DIRECT`, whole blocks of 4 KiB bypass the page cache. What comes
/// before the first block boundary and after the last one of each write goes through it, by a
/// second descriptor, which is opened by way of `/proc` when it is first needed.
///
/// # Stability of the bytes
///
/// Bytes in a file do not change any more. A pipe that was spliced into holds references to the
/// memory of the packets. If the peer is on the same host and has sent a file with `sendfile`,
/// these are the pages of its file, and a change to the file shows until the pipe has been read.
#[derive(Clone, Debug)]
#[must_use = "nothing is received before `from`"]
pub struct ReceiveFile<'a> {
    sink: BorrowedFd<'a>,
    offset: Option<u64>,
    length: Length,
    reserve: bool,
    forced: Option<Plan>,
    force_copy: bool,
}

impl<'a> ReceiveFile<'a> {
    /// Prepares to receive into this file, pipe or device, up to the end of the stream.
    pub fn new(sink: &'a impl AsFd) -> Self {
        Self {
            sink: sink.as_fd(),
            offset: None,
            length: Length::UntilEof,
            reserve: false,
            forced: None,
            force_copy: false,
        }
    }

    /// Sets the offset in the file at which the first byte is written. The default is 0. Several
    /// transfers may fill different parts of a file at the same time.
    ///
    /// A sink without offsets, such as a pipe or a file that was opened with `O_APPEND`, is written
    /// to as by `write(2)`. With an offset, receiving into it fails with
    /// [`ErrorKind::SinkNotSeekable`].
    pub fn at(mut self, offset: u64) -> Self {
        self.offset = Some(offset);
        self
    }

    /// Sets how many bytes to receive. The default is [`Length::UntilEof`].
    pub fn length(mut self, length: Length) -> Self {
        self.length = length;
        self
    }

    /// Sets whether the space for an exact length is reserved first (`fallocate(2)`), so that a
    /// full disk is an error before any byte is taken from the socket. The size of the file does
    /// not change. If the file system cannot reserve space, nothing is reserved. The default is
    /// false.
    ///
    /// If receiving fails later, the space stays reserved until the file is truncated or removed.
    pub fn reserve(mut self, reserve: bool) -> Self {
        self.reserve = reserve;
        self
    }

    /// Forces these mechanisms, in this order, and no others. If none of them is supported, the
    /// transfer fails. Add [`Mechanism::Copy`] to prevent that. If the list is empty, the
    /// mechanisms are chosen automatically.
    ///
    /// [`force_copy`](Self::force_copy) overrides this list, and so does the
    /// [switch](crate::set_zero_copy_receive) while zero-copy receiving is off.
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Receives every byte into memory, and writes it from there.
    pub fn force_copy(mut self) -> Self {
        self.force_copy = true;
        self
    }

    /// Receives the bytes, and waits until the sink has all of them.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error says how many bytes are in the sink. Bytes that were taken from
    /// the socket after these, at most 2 MiB, are lost.
    pub fn from(&self, socket: &impl StreamSocket) -> Result<Report, Error> {
        let mut transfer = self.transfer(socket)?;
        driver::blocking::run_receive(&mut transfer, socket, self.sink)?;
        Ok(transfer.into_report())
    }

    /// Receives the bytes on tokio. The socket can be used as usual before and afterwards.
    ///
    /// If the sink is a pipe or a terminal, it should be non-blocking: otherwise, a write to it may
    /// make the event loop wait. A write to a file waits for the disk if too much of the page cache
    /// has not been written to the disk yet. If that must not happen, use [`from`](Self::from) on a
    /// thread of its own.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error says how many bytes are in the sink. Bytes that were taken from
    /// the socket after these, at most 2 MiB, are lost.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the transfer. Bytes that were taken from the socket and are not in
    /// the sink are lost, and so is the number of those that are. If you may want to continue, keep
    /// a [`ReceiveTransfer`] and use [`driver::tokio::run_receive`].
    #[cfg(feature = "tokio")]
    pub async fn from_tokio(
        &self,
        socket: &impl driver::tokio::ReadSocket,
    ) -> Result<Report, Error> {
        let mut transfer = self.transfer(socket.read_fd())?;
        driver::tokio::run_receive(&mut transfer, socket, self.sink).await?;
        Ok(transfer.into_report())
    }

    /// Returns the transfer from `socket` without running it, for a driver of your own. Reserves
    /// the space, if it is to be [reserved](Self::reserve).
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::NotAStreamSocket`]
    /// - [`ErrorKind::SinkNotSeekable`]
    /// - [`ErrorKind::Sink`] if the space cannot be reserved
    pub fn transfer(&self, socket: impl AsFd) -> Result<ReceiveTransfer, Error> {
        let socket = socket.as_fd();
        endpoint::check_stream_socket(socket)
            .map_err(|errno| failed(ErrorKind::NotAStreamSocket, "getsockopt", errno))?;
        let sink_kind = endpoint::sink_kind(self.sink);
        let has_offsets = matches!(sink_kind, SinkKind::File | SinkKind::Direct);
        if self.offset.is_some() && !has_offsets {
            return Err(Error::before_transfer(
                ErrorKind::SinkNotSeekable,
                None,
                None,
            ));
        }
        let offset = has_offsets.then_some(self.offset.unwrap_or(0));
        if self.reserve {
            reserve(&Linux, self.sink, offset, self.length)?;
        }
        let is_tcp = socket_protocol(socket).is_ok_and(|it| it == Some(ipproto::TCP));
        let zero_copy_enabled = zero_copy_receive_enabled();
        let input = ReceiveFilePlanInput {
            is_tcp,
            force_copy: self.force_copy,
            zero_copy_enabled,
            ..ReceiveFilePlanInput::new(sink_kind, self.length)
        };
        let plan = match self.forced {
            Some(forced) if zero_copy_enabled && !self.force_copy => forced,
            _ => plan_receive_file(&input, &Support::of_process()),
        };
        let mut transfer = ReceiveTransfer::new(offset, self.length, plan);
        if !zero_copy_enabled {
            transfer.set_switched_off();
        }
        Ok(transfer)
    }
}

/// Reserves space for an exact length, if the sink has offsets and its file system can.
pub(crate) fn reserve(
    kernel: &impl Kernel,
    sink: BorrowedFd<'_>,
    offset: Option<u64>,
    length: Length,
) -> Result<(), Error> {
    let (Some(offset), Length::Exact(len @ 1..)) = (offset, length) else {
        return Ok(());
    };
    loop {
        return match kernel.reserve(sink, offset, len) {
            Ok(()) => Ok(()),
            Err(Errno::INTR) => continue,
            // The file system or the device cannot, or a seccomp filter refuses the call.
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::NODEV) => Ok(()),
            Err(errno) => Err(failed(ErrorKind::Sink, "fallocate", errno)),
        };
    }
}

fn failed(kind: ErrorKind, call: &'static str, errno: Errno) -> Error {
    Error::before_transfer(kind, Some(call), Some(errno.into()))
        .in_direction(Direction::SocketToFile)
}
