//! The notices of `MSG_ZEROCOPY` on a socket's error queue (`Documentation/networking/msg_zerocopy.rst`).

use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;

use rustix::io::{Errno, Result};

use super::last_errno;

/// What stood at the head of an error queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ErrorQueueEntry {
    Notification(Notification),
    /// Something else, such as a time stamp or an error of the network. It is taken off and of no
    /// interest here: what breaks a connection is met by the next call.
    Other,
}

/// The kernel is done with these sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Notification {
    /// The first and the last of them, by their numbers: one for each call that moved bytes, counted
    /// from 0, 32 bits.
    pub(crate) first: u32,
    pub(crate) last: u32,
    /// Whether the kernel copied what it was lent. Of several that share a notice it says that of the
    /// first.
    pub(crate) copied: bool,
}

/// `SO_EE_ORIGIN_ZEROCOPY` and `SO_EE_CODE_ZEROCOPY_COPIED` of `linux/errqueue.h`.
const ORIGIN_ZEROCOPY: u8 = 5;
const CODE_COPIED: u8 = 1;

/// Room for the control messages of one entry: `sock_extended_err`, an address, and a time stamp.
const CONTROL: usize = 512;

/// A buffer that control messages may be written to.
#[repr(C, align(8))]
struct Control([u8; CONTROL]);

/// Lets `MSG_ZEROCOPY` have an effect on this socket: `SO_ZEROCOPY` (`socket(7)`).
pub(super) fn allow(socket: BorrowedFd<'_>) -> Result<()> {
    let on: libc::c_int = 1;
    let len = mem::size_of_val(&on) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    // SAFETY: the option is an int, and a pointer to one is passed with its size.
    let answer =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), len) };
    if answer == 0 {
        Ok(())
    } else {
        Err(last_errno())
    }
}

/// Whether `MSG_ZEROCOPY` has an effect on this socket.
pub(super) fn is_allowed(socket: BorrowedFd<'_>) -> Result<bool> {
    let mut on: libc::c_int = 0;
    let mut len = mem::size_of_val(&on) as libc::socklen_t;
    let (level, name) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
    // SAFETY: the option is an int, and a pointer to one that may be written is passed with its size.
    let answer = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            name,
            (&raw mut on).cast(),
            &raw mut len,
        )
    };
    if answer == 0 {
        Ok(on != 0)
    } else {
        Err(last_errno())
    }
}

/// Takes the head off the error queue; `None` if it is empty.
pub(super) fn read(socket: BorrowedFd<'_>) -> Result<Option<ErrorQueueEntry>> {
    let mut control = Control([0; CONTROL]);
    // SAFETY: all zeroes is a valid `msghdr`: null pointers with lengths of 0.
    let mut message: libc::msghdr = unsafe { MaybeUninit::zeroed().assume_init() };
    message.msg_control = ptr::from_mut(&mut control).cast();
    message.msg_controllen = CONTROL as _;
    let flags = libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT;
    // SAFETY: the message describes one buffer for control messages, a local of the length given, and
    // no other memory.
    let answer = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) };
    if answer < 0 {
        return match last_errno() {
            Errno::AGAIN => Ok(None),
            errno => Err(errno),
        };
    }
    // Not every C library has it as a `usize`.
    #[allow(clippy::unnecessary_cast)]
    let len = (message.msg_controllen as usize).min(CONTROL);
    Ok(Some(parse(&control.0[..len])))
}

/// The notice among these control messages (`cmsg(3)`), if there is one.
fn parse(mut control: &[u8]) -> ErrorQueueEntry {
    const HEAD: usize = align(mem::size_of::<libc::cmsghdr>());
    while let Some((head, rest)) = control.split_at_checked(HEAD) {
        let len = usize_at(head, mem::offset_of!(libc::cmsghdr, cmsg_len));
        let level = u32_at(head, mem::offset_of!(libc::cmsghdr, cmsg_level));
        let kind = u32_at(head, mem::offset_of!(libc::cmsghdr, cmsg_type));
        let Some(data) = len.checked_sub(HEAD).and_then(|len| rest.get(..len)) else {
            return ErrorQueueEntry::Other;
        };
        let is_error = [
            (libc::SOL_IP, libc::IP_RECVERR),
            (libc::SOL_IPV6, libc::IPV6_RECVERR),
        ]
        .contains(&(level.cast_signed(), kind.cast_signed()));
        if is_error && let Some(notice) = notice_in(data) {
            return ErrorQueueEntry::Notification(notice);
        }
        control = rest.get(align(data.len())..).unwrap_or_default();
    }
    ErrorQueueEntry::Other
}

/// Reads a `sock_extended_err`.
fn notice_in(data: &[u8]) -> Option<Notification> {
    use libc::sock_extended_err as Error;
    let byte = |at| data.get(at).copied();
    let is_notice = data.len() >= mem::size_of::<Error>()
        && u32_at(data, mem::offset_of!(Error, ee_errno)) == 0
        && byte(mem::offset_of!(Error, ee_origin)) == Some(ORIGIN_ZEROCOPY);
    is_notice.then(|| Notification {
        first: u32_at(data, mem::offset_of!(Error, ee_info)),
        last: u32_at(data, mem::offset_of!(Error, ee_data)),
        copied: byte(mem::offset_of!(Error, ee_code)).unwrap_or(0) & CODE_COPIED != 0,
    })
}

/// Control messages and their data start at multiples of a word.
const fn align(len: usize) -> usize {
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
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    fn error(errno: u32, origin: u8, code: u8, info: u32, data: u32) -> Vec<u8> {
        let mut bytes = Vec::from(errno.to_ne_bytes());
        bytes.extend([origin, 0, code, 0]);
        bytes.extend(info.to_ne_bytes());
        bytes.extend(data.to_ne_bytes());
        // The address that follows it.
        bytes.extend([0; 16]);
        bytes
    }

    #[test]
    fn a_notice_is_found_by_its_origin() {
        let v4 = message(libc::SOL_IP, libc::IP_RECVERR, &error(0, 5, 1, 7, u32::MAX));
        let notice = Notification {
            first: 7,
            last: u32::MAX,
            copied: true,
        };
        assert_eq!(parse(&v4), ErrorQueueEntry::Notification(notice));
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
    fn what_is_no_notice_is_left_alone() {
        let icmp = message(libc::SOL_IP, libc::IP_RECVERR, &error(111, 2, 3, 0, 0));
        let time_stamp = message(libc::SOL_IP, libc::IP_RECVERR, &error(42, 4, 0, 0, 5));
        let cut = message(libc::SOL_IP, libc::IP_RECVERR, &[0; 8]);
        for other in [icmp, time_stamp, cut, Vec::new(), vec![0; 16]] {
            assert_eq!(parse(&other), ErrorQueueEntry::Other);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..128)) {
            parse(&bytes);
        }
    }
}
