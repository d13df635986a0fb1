//! Checks which kind of file or socket a descriptor refers to, and converts ranges of bytes to
//! offsets and lengths.

use std::ops::{Bound, RangeBounds};
use std::os::fd::BorrowedFd;

use rustix::fs::FileType;
use rustix::io::{Errno, Result};
use rustix::net::SocketType;

use crate::policy::{Length, SourceKind};

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

/// Converts a range of bytes to an offset and a length. The length of `..` and `n..` is
/// [`Length::UntilEof`]. A range with an end has an exact length, which is 0 if the range ends
/// before it begins.
pub(crate) fn offset_and_length(range: impl RangeBounds<u64>) -> (u64, Length) {
    let offset = match range.start_bound() {
        Bound::Included(&start) => start,
        Bound::Excluded(&start) => start.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let length = match range.end_bound() {
        Bound::Included(&last) => Length::Exact(last.saturating_add(1).saturating_sub(offset)),
        Bound::Excluded(&end) => Length::Exact(end.saturating_sub(offset)),
        Bound::Unbounded => Length::UntilEof,
    };
    (offset, length)
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
        /// Compares the result with 128-bit arithmetic, which cannot overflow. Only two differences
        /// are allowed: an offset of 2^64 becomes 2^64 - 1, and the length is one byte less if the
        /// range ends at 2^64. No file is that long.
        #[test]
        fn no_range_overflows(start in bound(), end in bound()) {
            let (offset, length) = offset_and_length((start, end));
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
            prop_assert_eq!(u128::from(offset), first.min(most));
            match (length, end) {
                (Length::UntilEof, None) => {}
                (Length::Exact(len), Some(end)) => {
                    let exact = end.saturating_sub(first);
                    // The length is one byte less if the range ends at 2^64.
                    prop_assert!(u128::from(len) == exact || (end > most && u128::from(len) + 1 == exact));
                }
                other => prop_assert!(false, "{:?}", other),
            }
        }
    }

    #[test]
    fn ranges_as_offset_and_length() {
        assert_eq!(offset_and_length(..), (0, Length::UntilEof));
        assert_eq!(offset_and_length(7..), (7, Length::UntilEof));
        assert_eq!(offset_and_length(7..9), (7, Length::Exact(2)));
        assert_eq!(offset_and_length(7..=9), (7, Length::Exact(3)));
        assert_eq!(offset_and_length(..9), (0, Length::Exact(9)));
        #[allow(clippy::reversed_empty_ranges)]
        let backwards = offset_and_length(9..7);
        assert_eq!(backwards, (9, Length::Exact(0)));
        assert_eq!(offset_and_length(u64::MAX..), (u64::MAX, Length::UntilEof));
    }
}
