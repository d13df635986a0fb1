//! Reads the notifications of `MSG_ZEROCOPY` sends, which arrive on the socket's error queue
//! (`Documentation/networking/msg_zerocopy.rst`).

use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::{Errno, Result};

use super::last_errno;

/// An entry that was read from the head of an error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorQueueEntry {
    Notification(Notification),
    /// Anything else, such as a timestamp or a network error. The library ignores such an entry: if
    /// an error breaks the connection, the next call on the socket returns that error too.
    Other,
}

/// The kernel's message that it no longer reads the memory of some sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    /// The numbers of the first and the last of these sends. For each socket, the kernel numbers
    /// the `MSG_ZEROCOPY` calls that moved bytes, starting at 0, modulo 2³².
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Whether the kernel copied the bytes after all. If the notification is for several sends,
    /// this applies to the first of them.
    pub(crate) copied: bool,
}

/// `SO_EE_ORIGIN_ZEROCOPY` and `SO_EE_CODE_ZEROCOPY_COPIED` of `linux/errqueue.h`.
const SO_EE_ORIGIN_ZEROCOPY: u8 = 5;
const SO_EE_CODE_ZEROCOPY_COPIED: u8 = 1;

/// The length, in bytes, of the buffer for the control messages of one entry: a
/// `sock_extended_err`, an address and a timestamp.
const CONTROL_BUFFER_BYTES: usize = 512;

/// A buffer for control messages, with the alignment that they require.
#[repr(C, align(8))]
struct ControlBuffer([u8; CONTROL_BUFFER_BYTES]);

/// See [`Kernel::allow_zerocopy`](super::Kernel::allow_zerocopy).
pub(super) fn allow(socket: BorrowedFd<'_>) -> Result<()> {
    let on: libc::c_int = 1;
    let len = mem::size_of_val(&on) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    // SAFETY: the value of the option is an int, and a pointer to an int is passed with its size.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) };
    if result == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// See [`Kernel::allows_zerocopy`](super::Kernel::allows_zerocopy).
pub(super) fn is_allowed(socket: BorrowedFd<'_>) -> Result<bool> {
    let mut on: libc::c_int = 0;
    let mut len = mem::size_of_val(&on) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    // SAFETY: the value of the option is an int, and a pointer to a writable int is passed with its
    // size.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut on).cast(),
            &raw mut len,
        )
    };
    if result == 0 {
        Ok(on != 0)
    } else {
        Err(last_errno())
    }
}

/// See [`Kernel::read_error_queue`](super::Kernel::read_error_queue).
pub(super) fn read(socket: BorrowedFd<'_>) -> Result<Option<ErrorQueueEntry>> {
    let mut control = ControlBuffer([0; CONTROL_BUFFER_BYTES]);
    // SAFETY: an all-zero `msghdr` is valid: null pointers and zero lengths.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_control = ptr::from_mut(&mut control).cast();
    message.msg_controllen = CONTROL_BUFFER_BYTES as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the message refers to no memory except one buffer for control messages, which is a
    // local of the given length.
    let result = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if result < 0 {
        return match last_errno() {
            Errno::AGAIN => Ok(None),
            errno => Err(errno),
        };
    }
    // Some C libraries declare this field with a type other than `usize`.
    #[allow(clippy::unnecessary_cast)]
    let len = (message.msg_controllen as usize).min(CONTROL_BUFFER_BYTES);
    Ok(Some(parse(&control.0[..len])))
}

/// Returns the first notification in a list of control messages (`cmsg(3)`), or `Other` if there is
/// none.
fn parse(mut control: &[u8]) -> ErrorQueueEntry {
    const HEADER_BYTES: usize = align_to_word(mem::size_of::<libc::cmsghdr>());
    while let Some((header, rest)) = control.split_at_checked(HEADER_BYTES) {
        let len = usize_at(header, mem::offset_of!(libc::cmsghdr, cmsg_len));
        let level = u32_at(header, mem::offset_of!(libc::cmsghdr, cmsg_level));
        let kind = u32_at(header, mem::offset_of!(libc::cmsghdr, cmsg_type));
        let Some(data) = len
            .checked_sub(HEADER_BYTES)
            .and_then(|len| rest.get(..len))
        else {
            return ErrorQueueEntry::Other;
        };
        let is_error = [
            (libc::SOL_IP, libc::IP_RECVERR),
            (libc::SOL_IPV6, libc::IPV6_RECVERR),
        ]
        .contains(&(level.cast_signed(), kind.cast_signed()));
        if is_error && let Some(notification) = parse_extended_error(data) {
            return ErrorQueueEntry::Notification(notification);
        }
        control = rest.get(align_to_word(data.len())..).unwrap_or_default();
    }
    ErrorQueueEntry::Other
}

/// Parses a `sock_extended_err`. Returns `None` if it is not a notification.
fn parse_extended_error(data: &[u8]) -> Option<Notification> {
    use libc::sock_extended_err as Error;
    let byte = |at| data.get(at).copied();
    let is_notification = data.len() >= mem::size_of::<Error>()
        && u32_at(data, mem::offset_of!(Error, ee_errno)) == 0
        && byte(mem::offset_of!(Error, ee_origin)) == Some(SO_EE_ORIGIN_ZEROCOPY);
    is_notification.then(|| Notification {
        first: u32_at(data, mem::offset_of!(Error, ee_info)),
        last: u32_at(data, mem::offset_of!(Error, ee_data)),
        copied: byte(mem::offset_of!(Error, ee_code)).unwrap_or(0) & SO_EE_CODE_ZEROCOPY_COPIED
            != 0,
    })
}

/// Rounds `len` up to a multiple of the word size. Each control message, and the data in it, starts
/// at such a multiple.
const fn align_to_word(len: usize) -> usize {
    len.next_multiple_of(mem::size_of::<usize>())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    four.map_or(0, |four| u32::from_ne_bytes(*four))
}

fn usize_at(bytes: &[u8], at: usize) -> usize {
    let word = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    word.map_or(0, |word| usize::from_ne_bytes(*word))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(level: libc::c_int, kind: libc::c_int, data: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend((16 + data.len()).to_ne_bytes());
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(align_to_word(bytes.len()), 0);
        bytes
    }

    fn error(errno: u32, origin: u8, code: u8, info: u32, data: u32) -> Vec<u8> {
        let mut bytes = Vec::from(errno.to_ne_bytes());
        bytes.extend([origin, 0, code, 0]);
        bytes.extend(info.to_ne_bytes());
        bytes.extend(data.to_ne_bytes());
        // The offender's address (`SO_EE_OFFENDER`), which follows `sock_extended_err`.
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn a_notification_is_recognised_by_its_origin() {
        let v4 = message(libc::SOL_IP, libc::IP_RECVERR, &error(0, 5, 1, 7, u32::MAX));
        let notification = Notification {
            first: 7,
            last: u32::MAX,
            copied: true,
        };
        assert_eq!(parse(&v4), ErrorQueueEntry::Notification(notification));
        let mut after = message(libc::SOL_SOCKET, libc::SCM_TIMESTAMPING, &[1; 48]);
        after.extend(message(
            libc::SOL_IPV6,
            libc::IPV6_RECVERR,
            &error(0, 5, 0, 3, 3),
        ));
        assert!(matches!(
            parse(&after),
            ErrorQueueEntry::Notification(Notification {
                first: 3,
                last: 3,
                copied: false
            })
        ));
    }

    #[test]
    fn other_messages_are_not_taken_for_notifications() {
        let icmp = message(libc::SOL_IP, libc::IP_RECVERR, &error(111, 2, 3, 0, 0));
        let timestamp = message(libc::SOL_IP, libc::IP_RECVERR, &error(42, 4, 0, 0, 5));
        let refused = message(libc::SOL_IP, libc::IP_RECVERR, &error(111, 5, 0, 0, 0));
        let truncated = &error(0, 5, 0, 0, 0)[..8];
        let truncated = message(libc::SOL_IP, libc::IP_RECVERR, truncated);
        for other in [icmp, timestamp, refused, truncated, Vec::new(), vec![0; 16]] {
            assert_eq!(parse(&other), ErrorQueueEntry::Other);
        }
    }

    proptest! {
        #[test]
        fn parsing_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            parse(&bytes);
        }
    }
}
