//! Peers that read slowly or stop reading, and send timeouts (`SO_SNDTIMEO`).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::time::{ClockId, clock_gettime};
use uncopied::policy::{Length, Plan};
use uncopied::{ErrorKind, Mechanism, SendFile, Transfer, driver};

use crate::harness::{
    DRIVERS, FAMILIES, Family, HANG_TIMEOUT, assert_all_sent_by, minimize_send_buffer,
    pattern_file, receive, receive_slowly, send, set_nonblocking, socket_pair,
};

/// Every byte must arrive even if the send buffer has the smallest possible size, so that each
/// system call sends only a few bytes, and the peer reads slowly, so that the sender is blocked
/// again and again.
#[test]
fn a_slow_peer_behind_a_small_buffer_gets_every_byte() {
    const SMALL_FILE_BYTES: usize = 400_003;
    let file = pattern_file(SMALL_FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                for nonblocking in [false, true] {
                    let (socket, mut peer) = socket_pair(family);
                    minimize_send_buffer(&socket);
                    if nonblocking {
                        set_nonblocking(&socket);
                    }
                    let file = &file;
                    let received = std::thread::scope(|scope| {
                        let pause = Duration::from_micros(100);
                        let receiver =
                            scope.spawn(move || receive_slowly(&mut peer, file, 1, 7_001, pause));
                        let forced = [mechanism];
                        let send_file = SendFile::new(file).force_mechanisms(&forced).range(1..);
                        let report = send(driver, family, socket, &send_file).unwrap();
                        let name = format!("{mechanism} {family:?} {driver:?} {nonblocking}");
                        assert_all_sent_by(&report, mechanism, SMALL_FILE_BYTES as u64 - 1, &name);
                        receiver.join().unwrap()
                    });
                    assert_eq!(received, SMALL_FILE_BYTES as u64 - 1);
                }
            }
        }
    }
}

const SEND_TIMEOUT: Duration = Duration::from_millis(200);

/// The size of the test file: more than the buffers of any socket pair hold, so that a send can
/// complete only if the peer reads.
const FILE_BYTES: usize = 16 << 20;

/// Returns the CPU time that this thread has used.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// Runs a transfer over a socket with a send timeout, to a peer that does not read.
///
/// The transfer must fail after about that timeout, must report how many bytes were sent, and must
/// use hardly any CPU time while it waits. Once the peer reads, the same transfer must continue
/// after the last byte sent.
fn check_timeout(mechanism: Mechanism, family: Family, nonblocking: bool, file: &File) {
    let case = format!("{mechanism} to {family:?}, non-blocking: {nonblocking}");
    let (socket, mut peer) = socket_pair(family);
    set_socket_timeout(&socket, Timeout::Send, Some(SEND_TIMEOUT)).unwrap();
    if nonblocking {
        set_nonblocking(&socket);
    }
    let length = Length::Exact(FILE_BYTES as u64 - 5);
    let mut transfer = Transfer::new(5, length, Plan::of(&[mechanism]));

    let (start, cpu_before) = (Instant::now(), cpu_time());
    let error = driver::blocking::run(&mut transfer, file, &socket).expect_err(&case);
    let (waited, used) = (start.elapsed(), cpu_time() - cpu_before);
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{case}: {error}");
    assert_eq!(error.report(), transfer.report(), "{case}");
    assert!(error.moved() > 0 && error.moved() < FILE_BYTES as u64 - 5);
    assert!(waited >= SEND_TIMEOUT * 9 / 10, "{case}: after {waited:?}");
    assert!(waited < SEND_TIMEOUT * 15, "{case}: after {waited:?}");
    assert!(
        used < SEND_TIMEOUT / 2,
        "{case}: {used:?} of CPU while waiting"
    );
    assert_eq!(
        std::io::Error::from(error).kind(),
        std::io::ErrorKind::TimedOut
    );

    // However late the receiver is, the rest must not time out.
    set_socket_timeout(&socket, Timeout::Send, Some(HANG_TIMEOUT)).unwrap();
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&mut peer, file, 5));
        driver::blocking::run(&mut transfer, file, &socket).expect(&case);
        drop(socket);
        assert_eq!(receiver.join().unwrap(), FILE_BYTES as u64 - 5, "{case}");
    });
    assert_all_sent_by(transfer.report(), mechanism, FILE_BYTES as u64 - 5, &case);
}

#[test]
fn a_transfer_can_continue_after_a_send_timeout() {
    let file = pattern_file(FILE_BYTES);
    std::thread::scope(|scope| {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            for family in FAMILIES {
                let file = &file;
                scope.spawn(move || {
                    check_timeout(mechanism, family, false, file);
                    check_timeout(mechanism, family, true, file);
                });
            }
        }
    });
}

/// A peer that takes [`PACE`] per byte. If it is late, it reads without pauses until it has caught
/// up, so that delays do not add up.
struct PacedPeer {
    peer: File,
    start: Instant,
    read_bytes: u32,
}

const PACE: Duration = Duration::from_nanos(2_500);

impl Read for PacedPeer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let due = self.start + self.read_bytes * PACE;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let count = self.peer.read(buffer)?;
        self.read_bytes += count as u32;
        Ok(count)
    }
}

/// The send timeout must apply to each period in which no byte is sent, not to the duration of the
/// whole transfer.
#[test]
fn a_slow_peer_that_keeps_reading_does_not_time_out() {
    let file = pattern_file(600_000);
    std::thread::scope(|scope| {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            let file = &file;
            scope.spawn(move || {
                let (socket, peer) = socket_pair(Family::Unix);
                minimize_send_buffer(&socket);
                set_nonblocking(&socket);
                // The socket accepts more bytes only once the peer has read all of a segment, which
                // may have 64 KiB. So the timeout is much longer than the peer needs for these.
                let timeout = Duration::from_secs(1);
                set_socket_timeout(&socket, Timeout::Send, Some(timeout)).unwrap();
                let start = Instant::now();
                let mut peer = PacedPeer {
                    peer,
                    start,
                    read_bytes: 0,
                };
                let receiver = std::thread::spawn({
                    let file = file.try_clone().unwrap();
                    move || receive_slowly(&mut peer, &file, 0, 9_000, Duration::ZERO)
                });
                let result = SendFile::new(file)
                    .force_mechanisms(&[mechanism])
                    .to(&socket);
                drop(socket);
                assert_eq!(receiver.join().unwrap(), 600_000);
                assert_all_sent_by(&result.unwrap(), mechanism, 600_000, "a slow peer");
                assert!(start.elapsed() > timeout, "the peer was too fast");
            });
        }
    });
}

/// While the socket is full, every step of a transfer must return `Blocked` at once, and must send
/// nothing.
#[test]
fn a_full_socket_blocks_every_step() {
    let file = pattern_file(FILE_BYTES);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            let (socket, _peer): (OwnedFd, _) = socket_pair(family);
            set_nonblocking(&socket);
            let plan = Plan::of(&[mechanism]);
            let mut transfer = Transfer::new(0, Length::UntilEof, plan);
            let blocked = uncopied::Progress::Blocked(uncopied::Side::Sink);
            // Wait for 100 blocked steps in a row. A single blocked step does not show that the
            // socket stays full, because loopback may still move queued bytes to the peer.
            let start = Instant::now();
            let mut blocked_in_a_row = 0;
            while blocked_in_a_row < 100 {
                assert!(start.elapsed() < HANG_TIMEOUT);
                match transfer.step(&file, socket.as_fd()).unwrap() {
                    progress if progress == blocked => blocked_in_a_row += 1,
                    _ => blocked_in_a_row = 0,
                }
            }
            assert_eq!(transfer.report().bytes(), transfer.offset());
        }
    }
}
