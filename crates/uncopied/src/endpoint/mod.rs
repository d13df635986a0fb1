//! The types of sockets, checks of which kind of file or socket a descriptor refers to, and the
//! conversion of ranges of bytes to offsets and lengths.

mod stream_socket;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::ops::{Bound, RangeBounds};
use std::os::fd::BorrowedFd;

use rustix::fs::{FileType, OFlags, SeekFrom, major, minor};
use rustix::io::{Errno, Result};
use rustix::net::{SocketAddrAny, SocketType, getpeername, getsockname};

use crate::policy::{DescriptorKind, Length, SinkKind, SourceKind};
use crate::sys::{coarse_millis, gathers};
pub use stream_socket::StreamSocket;

/// One of the two ends of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the bytes come from.
    Source,
    /// Where the bytes go.
    Sink,
}

/// Checks that a descriptor is a stream socket, which every mechanism needs: TCP (including
/// Multipath TCP) or Unix.
///
/// # Errors
///
/// `ENOTSOCK` if it is not a socket, `EPROTOTYPE` if it is a socket of another type.
pub(crate) fn check_stream_socket(sink: BorrowedFd<'_>) -> Result<()> {
    match rustix::net::sockopt::socket_type(sink)? {
        SocketType::STREAM => Ok(()),
        _ => Err(Errno::PROTOTYPE),
    }
}

/// Whether calls wait for the socket (`O_NONBLOCK` is not set).
pub(crate) fn is_blocking(socket: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(socket).is_ok_and(|flags| !flags.contains(OFlags::NONBLOCK))
}

/// The addresses of an IP socket.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IpAddresses {
    own: Option<SocketAddr>,
    peer: Option<SocketAddr>,
}

impl IpAddresses {
    pub(crate) fn of(socket: BorrowedFd<'_>) -> Self {
        let ip = |address: SocketAddrAny| SocketAddr::try_from(address).ok();
        Self {
            own: getsockname(socket).ok().and_then(ip),
            peer: getpeername(socket).ok().flatten().and_then(ip),
        }
    }

    /// Whether this is an IP socket with a peer. For a stream socket, this means that it is TCP.
    pub(crate) fn is_connected(&self) -> bool {
        self.peer.is_some()
    }

    /// Returns the socket's own address.
    pub(crate) fn own(&self) -> Option<IpAddr> {
        self.own.map(|own| own.ip().to_canonical())
    }

    /// Whether the peer's address belongs to this machine. (If it does not, the peer may still be
    /// on this machine, in a container.)
    pub(crate) fn is_local(&self) -> bool {
        self.peer.is_some_and(|peer| {
            let peer = peer.ip().to_canonical();
            peer.is_loopback() || self.own() == Some(peer)
        })
    }
}

/// Whether a stream socket has never had a peer: it is listening, or it is an IP socket that has
/// neither been bound nor connected. Returns false if that cannot be determined.
pub(crate) fn was_never_connected(sink: BorrowedFd<'_>) -> bool {
    let is_listening = rustix::net::sockopt::socket_acceptconn(sink).unwrap_or(false);
    // The kernel gives every IP socket a local port when it connects, and keeps the port as the
    // local address after the connection has ended.
    let has_no_port = || {
        let address = rustix::net::getsockname(sink).ok();
        let address = address.and_then(|it| SocketAddr::try_from(it).ok());
        address.is_some_and(|it| it.port() == 0)
    };
    is_listening || has_no_port()
}

thread_local! {
    /// The latest results of [`interface_gathers`], each with the time at which it was looked up,
    /// in milliseconds.
    static GATHERS: RefCell<Vec<(IpAddr, u64, bool)>> = const { RefCell::new(Vec::new()) };
}

/// How long a result of [`interface_gathers`] is used. Somebody may change the interface.
const GATHERS_FOR_MS: u64 = 1000;

/// The most addresses whose results are kept.
const GATHERS_MAX_ADDRESSES: usize = 16;

/// Whether the interface that has the socket's own `address` can gather packets from several pieces
/// of memory. If it cannot, the kernel copies every packet. Returns true if that cannot be
/// determined.
pub(crate) fn interface_gathers(socket: BorrowedFd<'_>, address: IpAddr) -> bool {
    let now = coarse_millis();
    GATHERS.with_borrow_mut(|known| {
        known.retain(|&(_, at, _)| now.saturating_sub(at) < GATHERS_FOR_MS);
        if let Some((_, _, gathers)) = known.iter().find(|(of, _, _)| *of == address) {
            return *gathers;
        }
        let gathers = gathers(socket, address).unwrap_or(true);
        if known.len() < GATHERS_MAX_ADDRESSES {
            known.push((address, now, gathers));
        }
        gathers
    })
}

/// Returns which kind of source a descriptor is, according to `fstat(2)`.
pub(crate) fn source_kind(source: BorrowedFd<'_>) -> Result<SourceKind> {
    let stat = rustix::fs::fstat(source)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        // Files of procfs look like regular files, but they have no size, no blocks and no page
        // cache. An empty file looks the same, which does no harm: there is nothing to send.
        FileType::RegularFile if stat.st_blocks > 0 || stat.st_size > 0 => SourceKind::File,
        FileType::BlockDevice => SourceKind::File,
        _ => SourceKind::Other,
    })
}

/// Returns which kind of sink a descriptor is, according to `fstat(2)` and `fcntl(2)`.
pub(crate) fn sink_kind(sink: BorrowedFd<'_>) -> SinkKind {
    let Ok(stat) = rustix::fs::fstat(sink) else {
        return SinkKind::Other;
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => match rustix::fs::fcntl_getfl(sink) {
            // Linux ignores the offset of a write (`pwrite(2)`).
            Ok(flags) if flags.contains(OFlags::APPEND) => SinkKind::Other,
            Ok(flags) if flags.contains(OFlags::DIRECT) => SinkKind::Direct,
            _ => SinkKind::File,
        },
        FileType::Fifo => SinkKind::Pipe,
        FileType::CharacterDevice if is_null(stat.st_rdev) && is_writable(sink) => SinkKind::Null,
        _ => SinkKind::Other,
    }
}

/// Returns which kind of descriptor the bytes of a copy come from.
pub(crate) fn descriptor_kind_of_source(source: BorrowedFd<'_>) -> Result<DescriptorKind> {
    if check_stream_socket(source).is_ok() {
        return Ok(DescriptorKind::Socket);
    }
    let stat = rustix::fs::fstat(source)?;
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => DescriptorKind::Pipe,
        _ => match source_kind(source)? {
            SourceKind::File => DescriptorKind::File,
            SourceKind::Other => DescriptorKind::Other,
        },
    })
}

/// Returns which kind of descriptor the bytes of a copy go to.
pub(crate) fn descriptor_kind_of_sink(sink: BorrowedFd<'_>) -> DescriptorKind {
    if check_stream_socket(sink).is_ok() {
        return DescriptorKind::Socket;
    }
    match sink_kind(sink) {
        SinkKind::File => DescriptorKind::File,
        SinkKind::Pipe => DescriptorKind::Pipe,
        SinkKind::Null => DescriptorKind::Null,
        SinkKind::Direct | SinkKind::Other => DescriptorKind::Other,
    }
}

/// Whether reading and writing a file never waits for anything but the disk: it is a regular file,
/// a block device or `/dev/null`.
#[cfg(feature = "tokio")]
pub(crate) fn is_always_ready(file: BorrowedFd<'_>) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile | FileType::BlockDevice | FileType::Directory => true,
        FileType::CharacterDevice => is_null(stat.st_rdev),
        _ => false,
    })
}

/// Returns where a descriptor stands: the offset of the byte that the next `read(2)` or `write(2)`
/// begins with.
///
/// # Errors
///
/// `ESPIPE` if the descriptor has no position.
pub(crate) fn position(descriptor: BorrowedFd<'_>) -> Result<u64> {
    rustix::fs::seek(descriptor, SeekFrom::Current(0))
}

/// Returns how many bytes there are after the position of a source that is the same regular file as
/// the sink. Returns `None` if they are different files.
pub(crate) fn rest_of_same_file(source: BorrowedFd<'_>, sink: BorrowedFd<'_>) -> Option<u64> {
    let [source_stat, sink_stat] = [source, sink].map(|it| rustix::fs::fstat(it).ok());
    let (source_stat, sink_stat) = (source_stat?, sink_stat?);
    let is_regular = FileType::from_raw_mode(source_stat.st_mode) == FileType::RegularFile;
    let is_same = (source_stat.st_dev, source_stat.st_ino) == (sink_stat.st_dev, sink_stat.st_ino);
    let size = u64::try_from(source_stat.st_size).unwrap_or(0);
    (is_regular && is_same).then(|| size.saturating_sub(position(source).unwrap_or(0)))
}

/// Whether this is the number of `/dev/null` (`null(4)`).
fn is_null(device: u64) -> bool {
    (major(device), minor(device)) == (1, 3)
}

/// Whether a descriptor was opened for writing.
fn is_writable(sink: BorrowedFd<'_>) -> bool {
    rustix::fs::fcntl_getfl(sink).is_ok_and(|flags| {
        let access = flags & OFlags::RWMODE;
        access == OFlags::WRONLY || access == OFlags::RDWR
    })
}

/// A range whose end lies before its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackwardRange {
    /// The offset of the first byte.
    pub(crate) start: u64,
    /// The offset of the byte after the last one.
    pub(crate) end: u64,
}

/// Converts a range of bytes to an offset and a length. The length of `..` and `n..` is
/// [`Length::UntilEof`]. A range with an end has an exact length.
///
/// # Errors
///
/// [`BackwardRange`] if the range ends before it starts.
pub(crate) fn offset_and_length(
    range: impl RangeBounds<u64>,
) -> std::result::Result<(u64, Length), BackwardRange> {
    let start = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(&last) => last.saturating_add(1),
        Bound::Excluded(&end) => end,
        Bound::Unbounded => return Ok((start, Length::UntilEof)),
    };
    let bytes = end.checked_sub(start);
    let bytes = bytes.ok_or(BackwardRange { start, end })?;
    Ok((start, Length::Exact(bytes)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bound() -> impl Strategy<Value = Bound<u64>> {
        let edge = prop::sample::select(vec![0, 1, 2, 1 << 63, u64::MAX - 1, u64::MAX]);
        let byte = prop_oneof![edge, any::<u64>(), 0_u64..10];
        prop_oneof![
            byte.clone().prop_map(Bound::Included),
            byte.prop_map(Bound::Excluded),
            Just(Bound::Unbounded),
        ]
    }

    proptest! {
        /// Compares the result with 128-bit arithmetic, which cannot overflow. Only one difference
        /// is allowed: a bound of 2^64 becomes 2^64 - 1. No file is that long.
        #[test]
        fn no_range_overflows(start in bound(), end in bound()) {
            let result = offset_and_length((start, end));
            let first = match start {
                Bound::Included(start) => u128::from(start),
                Bound::Excluded(start) => u128::from(start) + 1,
                Bound::Unbounded => 0,
            };
            let end = match end {
                Bound::Included(last) => Some(u128::from(last) + 1),
                Bound::Excluded(end) => Some(u128::from(end)),
                Bound::Unbounded => None,
            };
            let most = u128::from(u64::MAX);
            let (first, end) = (first.min(most), end.map(|end| end.min(most)));
            match (result, end) {
                (Ok((offset, Length::UntilEof)), None) => {
                    prop_assert_eq!(u128::from(offset), first);
                }
                (Ok((offset, Length::Exact(len))), Some(end)) => {
                    prop_assert_eq!(u128::from(offset), first);
                    prop_assert_eq!(u128::from(offset) + u128::from(len), end);
                }
                (Err(range), Some(end)) => {
                    prop_assert!(end < first);
                    prop_assert_eq!((u128::from(range.start), u128::from(range.end)), (first, end));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn ranges_as_offset_and_length() {
        assert_eq!(offset_and_length(..), Ok((0, Length::UntilEof)));
        assert_eq!(offset_and_length(7..), Ok((7, Length::UntilEof)));
        assert_eq!(offset_and_length(7..9), Ok((7, Length::Exact(2))));
        assert_eq!(offset_and_length(7..=9), Ok((7, Length::Exact(3))));
        assert_eq!(offset_and_length(..9), Ok((0, Length::Exact(9))));
        assert_eq!(offset_and_length(7..7), Ok((7, Length::Exact(0))));
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = offset_and_length(9..7);
        assert_eq!(backwards, Err(BackwardRange { start: 9, end: 7 }));
        let last = (u64::MAX, Length::UntilEof);
        assert_eq!(offset_and_length(u64::MAX..), Ok(last));
    }
}
