//! A network card that cannot gather packets from several pieces of memory. The kernel then copies
//! every byte, although its notifications say that it does not.

use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::Duration;

use uncopied::{Mechanism, SendOptions, Sender};

use crate::harness::{HANG_TIMEOUT, expect_bytes, expect_eof, pattern, pattern_pages};
use crate::sides::two_sides;

const SEND_BYTES: usize = 256 << 10;

/// How long the library may use what it knew about the interface before.
const KNOWN_FOR: Duration = Duration::from_millis(1100);

/// Switches scatter-gather of `eth0` on or off (`ETHTOOL_SSG`). Any socket will do.
#[allow(unsafe_code)]
pub(crate) fn set_scatter_gather(socket: &impl AsRawFd, is_on: bool) {
    const ETHTOOL_SSG: u32 = 0x19;
    let mut value = [ETHTOOL_SSG, u32::from(is_on)];
    // SAFETY: the structure consists of integers and a pointer, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(*b"eth0") {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    // SAFETY: the kernel reads two integers through the pointer in the structure, both locals.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Sends with each mechanism, and asserts that every byte is reported as copied.
fn assert_copied(socket: TcpStream) {
    set_scatter_gather(&socket, false);
    sleep(KNOWN_FOR);
    for forced in [
        None,
        Some(Mechanism::MsgZerocopy),
        Some(Mechanism::SendZc),
        Some(Mechanism::Vmsplice),
    ] {
        let options = SendOptions::default().force_mechanisms(forced.as_slice());
        let mut sender = Sender::with(socket.try_clone().unwrap(), options);
        let sent = sender.send(pattern_pages(SEND_BYTES)).unwrap();
        let expected = forced.unwrap_or(Mechanism::Copy);
        assert_eq!(sent.report().by(expected), SEND_BYTES as u64, "{forced:?}");
        let outcome = sent.into_completion().wait(Some(HANG_TIMEOUT)).unwrap();
        assert_eq!(outcome.copied, SEND_BYTES as u64, "{forced:?}");
        assert_eq!(sender.report().zero_copy_bytes(), 0, "{forced:?}");
    }
    set_scatter_gather(&socket, true);
    sleep(KNOWN_FOR);
    let options = SendOptions::default().force_mechanisms(&[Mechanism::SendZc]);
    let mut sender = Sender::with(socket, options);
    let sent = sender.send(pattern_pages(SEND_BYTES)).unwrap();
    let outcome = sent.into_completion().wait(Some(HANG_TIMEOUT)).unwrap();
    // The notification of a part of the send may say "copied" wrongly: see `not_copied`.
    assert!(outcome.copied < SEND_BYTES as u64 / 2, "{outcome:?}");
}

#[test]
fn every_byte_is_reported_as_copied() {
    two_sides(assert_copied, |mut socket| {
        for _ in 0..5 {
            expect_bytes(&mut socket, &pattern(SEND_BYTES));
        }
        expect_eof(&mut socket);
    });
}
