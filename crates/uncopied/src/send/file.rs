//! The simple API for files: send a file, or a range of it, to a socket.

use std::ops::RangeBounds;
use std::os::fd::{AsFd, BorrowedFd};

use bytes::Bytes;
use rustix::io::Errno;
use rustix::net::sockopt::{set_tcp_cork, tcp_cork};

use crate::arena::is_of_a_file;
use crate::endpoint::{BackwardRange, StreamSocket};
use crate::error::{Error, ErrorKind};
use crate::policy::{
    FilePlanInput, Length, Mechanism, Plan, Support, plan_file, zero_copy_send_enabled,
};
use crate::report::Report;
use crate::transfer::Transfer;
use crate::{driver, endpoint};

/// Sends a range of a file to a stream socket with the best mechanism that works, and waits until
/// the socket has accepted every byte.
///
/// `..` sends up to the end of the file. A range with an end sends exactly as many bytes as it
/// contains. The file's own position is neither used nor changed. The socket may be blocking or
/// non-blocking. The send timeout of the socket (`SO_SNDTIMEO`) applies.
///
/// ```no_run
/// use std::{fs::File, net::TcpStream};
///
/// let file = File::open("video.mp4")?;
/// let socket = TcpStream::connect("192.0.2.1:9000")?;
/// let report = uncopied::send_file(&file, .., &socket)?;
/// println!("{report}");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// See [`ErrorKind`]. The error says how many bytes the socket had accepted.
///
/// # Stability of the bytes
///
/// `sendfile` and `splice` give the socket references to the file's pages. Until the peer has
/// acknowledged the bytes (on the same host: has read them), a write to the file may change what
/// the peer receives. To prevent that, use [`SendFile::force_copy`].
pub fn send_file(
    file: &impl AsFd,
    range: impl RangeBounds<u64>,
    socket: &impl StreamSocket,
) -> Result<Report, Error> {
    SendFile::new(file).range(range).to(socket)
}

/// Sends a file to a socket, like [`send_file()`], but with the options that `send_file` does not
/// offer.
///
/// ```
/// use std::{fs::File, os::unix::net::UnixStream};
/// use uncopied::{Mechanism, SendFile};
///
/// let file = File::open("Cargo.toml")?;
/// let (socket, _peer) = UnixStream::pair()?;
/// let report = SendFile::new(&file)
///     .range(10..110)
///     .force_mechanisms(&[Mechanism::Splice, Mechanism::Copy])
///     .to(&socket)?;
/// assert_eq!(report.by(Mechanism::Splice), 100);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `to`"]
pub struct SendFile<'a> {
    file: BorrowedFd<'a>,
    /// The offset and the length of the range, or the range if it is invalid.
    range: Result<(u64, Length), BackwardRange>,
    /// The length to use in place of that of the range.
    length: Option<Length>,
    header: Bytes,
    trailer: Bytes,
    forced: Option<Plan>,
    force_copy: bool,
}

impl<'a> SendFile<'a> {
    /// Prepares to send the whole file, up to its end.
    pub fn new(file: &'a impl AsFd) -> Self {
        Self {
            file: file.as_fd(),
            range: Ok((0, Length::UntilEof)),
            length: None,
            header: Bytes::new(),
            trailer: Bytes::new(),
            forced: None,
            force_copy: false,
        }
    }

    /// Sets which bytes to send. A range with an end sends exactly as many bytes as it contains. A
    /// range without an end sends everything up to the end of the file.
    ///
    /// If the range ends before it starts, sending fails with
    /// [`ErrorKind::RangeEndsBeforeStart`].
    pub fn range(mut self, range: impl RangeBounds<u64>) -> Self {
        self.range = endpoint::offset_and_length(range);
        self
    }

    /// Sets how many bytes to send, starting where the [`range`](Self::range) starts.
    ///
    /// If the range has an end, and therefore a length of its own, sending fails with
    /// [`ErrorKind::LengthContradictsRange`] unless the two lengths are equal.
    pub fn length(mut self, length: Length) -> Self {
        self.length = Some(length);
        self
    }

    /// Fails if the kernel cannot read the header or the trailer.
    fn check_slices(&self) -> Result<(), ErrorKind> {
        match is_of_a_file(&self.header) || is_of_a_file(&self.trailer) {
            true => Err(ErrorKind::MappedFile),
            false => Ok(()),
        }
    }

    /// Returns the offset of the first byte to send, and the number of bytes.
    fn offset_and_length(&self) -> Result<(u64, Length), ErrorKind> {
        let (offset, of_range) =
            self.range.map_err(
                |BackwardRange { start, end }| ErrorKind::RangeEndsBeforeStart { start, end },
            )?;
        let length = self.length.unwrap_or(of_range);
        match of_range {
            Length::Exact(range) if length != of_range => {
                Err(ErrorKind::LengthContradictsRange { range, length })
            }
            _ => Ok((offset, length)),
        }
    }

    /// Sends these bytes before those of the file, in the same packet as the first of them if they
    /// fit (`MSG_MORE`). The report counts them as copied. FreeBSD's `sendfile(2)` has the same.
    ///
    /// ```
    /// use std::{fs::File, os::unix::net::UnixStream};
    /// use uncopied::SendFile;
    ///
    /// let file = File::open("Cargo.toml")?;
    /// let (socket, _peer) = UnixStream::pair()?;
    /// let length = 100_u32;
    /// let report = SendFile::new(&file)
    ///     .range(..u64::from(length))
    ///     .header(length.to_be_bytes().to_vec())
    ///     .trailer("\r\n")
    ///     .to(&socket)?;
    /// assert_eq!(report.bytes(), 106);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn header(mut self, header: impl Into<Bytes>) -> Self {
        self.header = header.into();
        self
    }

    /// Sends these bytes after those of the file. They share a packet with the last of them if they
    /// fit: [`to`](Self::to) and `to_tokio` cork a TCP socket (`TCP_CORK` of
    /// `tcp(7)`) while they send, unless the program has. The report counts the bytes as copied.
    ///
    /// If the file turns out to be too short, the transfer fails, and the trailer is not sent.
    pub fn trailer(mut self, trailer: impl Into<Bytes>) -> Self {
        self.trailer = trailer.into();
        self
    }

    /// Forces these mechanisms, in this order, and no others. If none of them is supported, the
    /// transfer fails. Add [`Mechanism::Copy`] to prevent that. If the list is empty, the
    /// mechanisms are chosen automatically.
    ///
    /// [`force_copy`](Self::force_copy) overrides this list, and so does the
    /// [switch](crate::set_zero_copy_send) while zero-copy sending is off.
    pub fn force_mechanisms(mut self, mechanisms: &[Mechanism]) -> Self {
        self.forced = (!mechanisms.is_empty()).then(|| Plan::of(mechanisms));
        self
    }

    /// Copies every byte when it is read from the file, so that later changes to the file do not
    /// affect the bytes that have been read. The file is read as the transfer proceeds, at most 128
    /// KiB ahead of the socket.
    pub fn force_copy(mut self) -> Self {
        self.force_copy = true;
        self
    }

    /// Sends the bytes, and waits until the socket has accepted all of them.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error says how many bytes the socket had accepted.
    pub fn to(&self, socket: &impl StreamSocket) -> Result<Report, Error> {
        let mut transfer = self.transfer(socket)?;
        let _cork = Cork::new(socket.as_fd(), &self.trailer);
        driver::blocking::run(&mut transfer, self.file, socket)?;
        Ok(transfer.into_report())
    }

    /// Sends the bytes on tokio. Bytes that were written to the socket before are sent first, and
    /// the socket can be used as usual afterwards. If the file is not in the page cache, a thread
    /// of tokio's blocking pool reads it, so that the event loop does not wait for the disk.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. The error says how many bytes the socket had accepted.
    ///
    /// # Cancellation
    ///
    /// Dropping the future ends the transfer. The bytes that the socket has accepted still reach
    /// the peer, which cannot know that more were to come, so close the connection. The number of
    /// these bytes is lost. If you may want to continue, keep a [`Transfer`] and use
    /// [`driver::tokio::run`].
    #[cfg(feature = "tokio")]
    pub async fn to_tokio(&self, socket: &impl driver::tokio::Socket) -> Result<Report, Error> {
        let mut transfer = self.transfer(socket.socket_fd())?;
        let _cork = Cork::new(socket.socket_fd(), &self.trailer);
        driver::tokio::run(&mut transfer, self.file, socket).await?;
        Ok(transfer.into_report())
    }

    /// Returns the transfer to `socket` without running it, for a driver of your own.
    ///
    /// # Errors
    ///
    /// - [`ErrorKind::RangeEndsBeforeStart`] and [`ErrorKind::LengthContradictsRange`]
    /// - [`ErrorKind::MappedFile`] if the header or the trailer is one
    /// - [`ErrorKind::NotAStreamSocket`]
    /// - [`ErrorKind::Source`] if `fstat(2)` of the file fails
    pub fn transfer(&self, socket: impl AsFd) -> Result<Transfer, Error> {
        let (offset, length) = self
            .check_slices()
            .and_then(|()| self.offset_and_length())
            .map_err(|kind| Error::before_transfer(kind, None, None))?;
        let fail =
            |kind, call, errno: Errno| Error::before_transfer(kind, Some(call), Some(errno.into()));
        endpoint::check_stream_socket(socket.as_fd())
            .map_err(|errno| fail(ErrorKind::NotAStreamSocket, "getsockopt", errno))?;
        let source = endpoint::source_kind(self.file)
            .map_err(|errno| fail(ErrorKind::Source, "fstat", errno))?;
        let zero_copy_enabled = zero_copy_send_enabled();
        let input = FilePlanInput {
            force_copy: self.force_copy,
            zero_copy_enabled,
            ..FilePlanInput::new(source, length)
        };
        let plan = match self.forced {
            Some(forced) if zero_copy_enabled && !self.force_copy => forced,
            _ => plan_file(&input, &Support::of_process()),
        };
        let (header, trailer) = (self.header.clone(), self.trailer.clone());
        let transfer = Transfer::new(offset, length, plan);
        let mut transfer = transfer.with_header_and_trailer(header, trailer);
        if !zero_copy_enabled {
            transfer.set_switched_off();
        }
        Ok(transfer)
    }
}

/// Keeps a TCP socket corked: until this value is dropped, the kernel holds back partly filled
/// packets, so that the end of the file and the trailer share one. Does nothing for a Unix socket,
/// and for a socket that the program has corked itself.
struct Cork<'a>(Option<BorrowedFd<'a>>);

impl<'a> Cork<'a> {
    fn new(socket: BorrowedFd<'a>, trailer: &Bytes) -> Self {
        let is_needed = !trailer.is_empty() && tcp_cork(socket) == Ok(false);
        Self((is_needed && set_tcp_cork(socket, true).is_ok()).then_some(socket))
    }
}

impl Drop for Cork<'_> {
    fn drop(&mut self) {
        if let Some(socket) = self.0 {
            // If this fails, what is held back arrives up to 200 ms later.
            let _ = set_tcp_cork(socket, false);
        }
    }
}
