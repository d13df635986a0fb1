//! Peers that read slowly, stop reading, or make the sender wait too long.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::time::{ClockId, clock_gettime};
use uncopied::policy::{Length, Plan};
use uncopied::{ErrorKind, Mechanism, SendFile, Transfer, driver};

use crate::harness::{
    DRIVERS, FAMILIES, Family, assert_all_by, file_of, pair, receive, receive_slowly, send,
    set_nonblocking, shrink_buffer,
};

/// Every call is cut short by the smallest send buffer there is, and blocked again and again by a
/// peer that takes its time.
#[test]
fn a_small_buffer_and_a_slow_reader() {
    const SIZE: usize = 400_003;
    let file = file_of(SIZE);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            for &driver in DRIVERS {
                for nonblocking in [false, true] {
                    let (socket, mut peer) = pair(family);
                    shrink_buffer(&socket);
                    if nonblocking {
                        set_nonblocking(&socket);
                    }
                    let file = &file;
                    let received = std::thread::scope(|scope| {
                        let pause = Duration::from_micros(100);
                        let receiver =
                            scope.spawn(move || receive_slowly(&mut peer, file, 1, 7_001, pause));
                        let forced = [mechanism];
                        let what = SendFile::new(file).force_mechanisms(&forced).range(1..);
                        let report = send(driver, family, socket, &what).unwrap();
                        let name = format!("{mechanism} {family:?} {driver:?} {nonblocking}");
                        assert_all_by(&report, mechanism, SIZE as u64 - 1, &name);
                        receiver.join().unwrap()
                    });
                    assert_eq!(received, SIZE as u64 - 1);
                }
            }
        }
    }
}

const PATIENCE: Duration = Duration::from_millis(200);

/// More than any socket takes by itself.
const MUCH: usize = 16 << 20;

/// How much CPU this thread has used.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs() as u32)
}

/// A peer that does not read, and a socket with a send time-out: the error comes after about that time
/// with the count, the waiting costs no CPU, and run again with a peer that reads, the transfer goes
/// on from exactly there.
fn time_out(mechanism: Mechanism, family: Family, nonblocking: bool, file: &File) {
    let what = format!("{mechanism} to {family:?}, non-blocking: {nonblocking}");
    let (socket, mut peer) = pair(family);
    set_socket_timeout(&socket, Timeout::Send, Some(PATIENCE)).unwrap();
    if nonblocking {
        set_nonblocking(&socket);
    }
    let length = Length::Exact(MUCH as u64 - 5);
    let mut transfer = Transfer::new(5, length, Plan::of(&[mechanism]));

    let (start, cpu_before) = (Instant::now(), cpu_time());
    let error = driver::blocking::run(&mut transfer, file, &socket).expect_err(&what);
    let (waited, used) = (start.elapsed(), cpu_time() - cpu_before);
    assert_eq!(error.kind(), ErrorKind::TimedOut, "{what}: {error}");
    assert_eq!(error.report(), transfer.report(), "{what}");
    assert!(error.moved() > 0 && error.moved() < MUCH as u64 - 5);
    assert!(waited >= PATIENCE * 9 / 10, "{what}: after {waited:?}");
    assert!(waited < PATIENCE * 15, "{what}: after {waited:?}");
    assert!(used < PATIENCE / 2, "{what}: {used:?} of CPU while waiting");
    assert_eq!(
        std::io::Error::from(error).kind(),
        std::io::ErrorKind::TimedOut
    );

    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || receive(&mut peer, file, 5));
        driver::blocking::run(&mut transfer, file, &socket).expect(&what);
        drop(socket);
        assert_eq!(receiver.join().unwrap(), MUCH as u64 - 5, "{what}");
    });
    assert_all_by(transfer.report(), mechanism, MUCH as u64 - 5, &what);
}

#[test]
fn a_send_time_out_is_obeyed_and_the_transfer_goes_on() {
    let file = file_of(MUCH);
    std::thread::scope(|scope| {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            for family in FAMILIES {
                let file = &file;
                scope.spawn(move || {
                    time_out(mechanism, family, false, file);
                    time_out(mechanism, family, true, file);
                });
            }
        }
    });
}

/// The time-out bounds each stretch in which nothing moves, not the whole transfer.
#[test]
fn a_slow_but_healthy_peer_is_not_cut_off() {
    let file = file_of(600_000);
    std::thread::scope(|scope| {
        for mechanism in Mechanism::FILE_TO_SOCKET {
            let file = &file;
            scope.spawn(move || {
                let (socket, mut peer) = pair(Family::Unix);
                shrink_buffer(&socket);
                set_nonblocking(&socket);
                let patience = Duration::from_millis(300);
                set_socket_timeout(&socket, Timeout::Send, Some(patience)).unwrap();
                let start = Instant::now();
                let receiver = std::thread::spawn({
                    let file = file.try_clone().unwrap();
                    let pause = Duration::from_millis(10);
                    move || receive_slowly(&mut peer, &file, 0, 9_000, pause)
                });
                let result = SendFile::new(file)
                    .force_mechanisms(&[mechanism])
                    .to(&socket);
                drop(socket);
                assert_eq!(receiver.join().unwrap(), 600_000);
                assert_all_by(&result.unwrap(), mechanism, 600_000, "a slow peer");
                assert!(start.elapsed() > patience, "the peer was too fast");
            });
        }
    });
}

/// A step on a socket that is full says so at once, however often it is asked, and moves nothing.
#[test]
fn a_full_socket_blocks_every_step() {
    let file = file_of(MUCH);
    for mechanism in Mechanism::FILE_TO_SOCKET {
        for family in FAMILIES {
            let (socket, _peer): (OwnedFd, _) = pair(family);
            set_nonblocking(&socket);
            let plan = Plan::of(&[mechanism]);
            let mut transfer = Transfer::new(0, Length::UntilEof, plan);
            let blocked = uncopied::Progress::Blocked(uncopied::Side::Sink);
            // Loopback may move what is queued on to the peer for a moment after the first refusal.
            let start = Instant::now();
            let mut in_a_row = 0;
            while in_a_row < 100 {
                assert!(start.elapsed() < crate::harness::HANG);
                match transfer.step(&file, socket.as_fd()).unwrap() {
                    progress if progress == blocked => in_a_row += 1,
                    _ => in_a_row = 0,
                }
            }
            assert_eq!(transfer.report().bytes(), transfer.offset());
        }
    }
}
