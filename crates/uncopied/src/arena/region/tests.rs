//! Regions under sockets: what the peer gets is what was there when it was sent.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags};

use super::*;
use crate::arena::Memory;
use crate::in_flight::{Lease, Quota};
use crate::sys::Userfault;

const MIB: usize = 1 << 20;

/// A pipe and the socket behind it.
struct Spliced {
    ends: (OwnedFd, OwnedFd),
    socket: TcpStream,
}

impl Spliced {
    fn to(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).expect("set");
        let ends = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
        rustix::pipe::fcntl_setpipe_size(&ends.1, MIB).expect("set");
        Self { ends, socket }
    }

    /// Lends as much as the pipe takes and answers how much that is.
    fn send_some(&self, part: &RegionPart, is_protected: bool) -> usize {
        let lending = is_protected.then(|| part.protect().expect("lent"));
        let taken = self.vmsplice(part);
        if let Some(mut lending) = lending {
            lending.gift(taken);
        }
        taken
    }

    #[allow(unsafe_code)]
    fn vmsplice(&self, part: &RegionPart) -> usize {
        let bytes = libc::iovec {
            iov_base: ptr::with_exposed_provenance_mut(part.address()),
            iov_len: part.len(),
        };
        let pipe = self.ends.1.as_raw_fd();
        // SAFETY: the range is the region's, which `part` keeps; the kernel only reads it.
        let taken = unsafe { libc::vmsplice(pipe, &raw const bytes, 1, libc::SPLICE_F_NONBLOCK) };
        usize::try_from(taken).unwrap_or(0)
    }

    /// Moves what is in the pipe into the socket; answers how much is left.
    fn push(&self, mut left: usize) -> usize {
        while left > 0 {
            let flags = SpliceFlags::NONBLOCK;
            let to = self.socket.as_fd();
            match rustix::pipe::splice(&self.ends.0, None, to, None, left, flags) {
                Ok(count) => left -= count,
                Err(Errno::AGAIN) => break,
                Err(errno) => panic!("{errno}"),
            }
        }
        left
    }

    /// Sends all of it in steps, `after` each of which may do as it likes with the bytes of that step.
    fn send(&self, part: &RegionPart, is_protected: bool, mut after: impl FnMut(Range<usize>)) {
        let mut sent = 0;
        while sent < part.len() {
            let rest = part.slice(sent..);
            let mut left = self.send_some(&rest, is_protected);
            drop(rest);
            after(sent..sent + left);
            sent += left;
            while left > 0 {
                left = self.push(left);
                if left > 0 {
                    thread::sleep(Duration::from_micros(200));
                }
            }
        }
    }
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    let address = listener.local_addr().expect("an address");
    let sender = TcpStream::connect(address).expect("connected");
    (sender, listener.accept().expect("accepted").0)
}

fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 17)) as u8 | 1
}

/// Sends `len` bytes, each step of which is overwritten at once, to a peer that reads late. Answers how
/// many bytes of it were wrong.
fn wrong_bytes(len: usize, is_protected: bool) -> usize {
    let (region, mut writer) = Region::new(len).expect("taken");
    for (at, byte) in writer.iter_mut().enumerate() {
        *byte = pattern(at);
    }
    let (sender, mut receiver) = pair();
    let spliced = Spliced::to(sender);
    let peer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(100));
        let mut got = vec![0; len];
        receiver.read_exact(&mut got).expect("all of it");
        let wrong = got
            .iter()
            .enumerate()
            .filter(|&(at, &byte)| byte != pattern(at));
        wrong.count()
    });
    spliced.send(&region.part(..), is_protected, |step| writer[step].fill(0));
    assert!(writer.iter().all(|byte| *byte == 0));
    peer.join().expect("no panic")
}

/// Sends as much as the socket takes by MSG_ZEROCOPY, overwrites it at once, and answers how many bytes
/// of it were wrong.
fn wrong_bytes_by_msg_zerocopy(is_protected: bool) -> usize {
    let (region, mut writer) = Region::new(4 * MIB).expect("taken");
    for (at, byte) in writer.iter_mut().enumerate() {
        *byte = pattern(at);
    }
    let (sender, mut receiver) = pair();
    let quota = Quota::new(u64::MAX);
    let mut lease = Lease::take(Memory::Region(region.part(..)), &quota).expect("granted");
    let Memory::Region(part) = lease.memory() else {
        panic!("it is one")
    };
    let lending = is_protected.then(|| part.protect().expect("lent"));
    let sent = send_zerocopy(&sender, part);
    drop(lending);
    lease.shorten(sent);
    writer[..sent].fill(0);
    let mut got = vec![0; sent];
    receiver.read_exact(&mut got).expect("all of it");
    let wrong = got.iter().enumerate();
    let wrong = wrong.filter(|&(at, &byte)| byte != pattern(at)).count();
    drop(lease);
    assert_eq!(quota.in_flight_bytes(), 0);
    wrong
}

#[allow(unsafe_code)]
fn send_zerocopy(socket: &TcpStream, part: &RegionPart) -> usize {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is an int.
    let set = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4)
    };
    assert_eq!(set, 0);
    let start = ptr::with_exposed_provenance(part.address());
    let flags = libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT;
    // SAFETY: the range is the region's, which `part` keeps; the kernel only reads it.
    let sent = unsafe { libc::send(socket.as_raw_fd(), start, part.len(), flags) };
    usize::try_from(sent).expect("some of it")
}

#[test]
fn msg_zerocopy_is_protected_as_well() {
    assert_eq!(wrong_bytes_by_msg_zerocopy(true), 0);
    let without = wrong_bytes_by_msg_zerocopy(false);
    assert!(without > 0, "this test proves nothing");
}

#[test]
fn what_is_overwritten_at_once_arrives_as_it_was_sent() {
    for len in [MIB, 4 * MIB] {
        assert_eq!(wrong_bytes(len, true), 0, "{len}");
    }
}

/// If this fails the test above proves nothing.
#[test]
fn without_protection_it_would_not() {
    for len in [MIB, 4 * MIB] {
        assert!(wrong_bytes(len, false) > 0, "{len}");
    }
}

/// Each writer sends what it has written and goes on writing at once, into huge pages that it shares with
/// others.
#[test]
fn writers_that_never_wait() {
    const THREADS: usize = 4;
    let (region, mut rest) = Region::new(5 * MIB).expect("taken");
    let until = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for index in 0..THREADS {
            let len = (MIB + 64 * 1024 * index) / 8 * 8;
            let (mut words, right) = rest.split_at(len);
            rest = right;
            let (sender, receiver) = pair();
            let spliced = Spliced::to(sender);
            let part = region.part(words.range());
            scope.spawn(move || {
                let mut round = 0_u64;
                while Instant::now() < until {
                    round += 1;
                    for (at, word) in words.chunks_exact_mut(8).enumerate() {
                        word.copy_from_slice(&(round << 32 | at as u64).to_ne_bytes());
                    }
                    spliced.send(&part, true, |_| {});
                }
                spliced.socket.shutdown(Shutdown::Write).expect("shut");
                assert!(round > 3, "{round} rounds");
            });
            scope.spawn(move || check_rounds(receiver, len, index % 2 == 0));
        }
    });
}

fn check_rounds(mut receiver: TcpStream, len: usize, is_slow: bool) {
    let mut got = vec![0; len];
    let mut round = 0_u64;
    loop {
        if is_slow {
            thread::sleep(Duration::from_millis(3));
        }
        let first = receiver.read(&mut got).expect("read");
        if first == 0 {
            return;
        }
        receiver.read_exact(&mut got[first..]).expect("all of it");
        round += 1;
        for (at, word) in got.chunks_exact(8).enumerate() {
            let word = u64::from_ne_bytes(word.try_into().expect("8 bytes"));
            let due = round << 32 | at as u64;
            assert!(word == due, "{word:#x} instead of {due:#x}");
        }
    }
}

/// Writers that know nothing of the sends. What a step took is nothing older than what was written before
/// it began, and nothing newer than what was being written when it ended.
#[test]
fn sends_that_race_with_writers() {
    const WRITERS: usize = 3;
    let len = 4 * MIB;
    let (region, mut rest) = Region::new(len).expect("taken");
    let until = Instant::now() + Duration::from_secs(2);
    let rounds = [(); WRITERS].map(|()| (AtomicU64::new(0), AtomicU64::new(0)));
    let of_writer = |at: usize| (at / (len / WRITERS / 8 * 8)).min(WRITERS - 1);
    let begun = || {
        rounds
            .each_ref()
            .map(|round| round.0.load(Ordering::SeqCst))
    };
    let ended = || {
        rounds
            .each_ref()
            .map(|round| round.1.load(Ordering::SeqCst))
    };
    let (sender, mut receiver) = pair();
    let (steps, due) = mpsc::channel();
    thread::scope(|scope| {
        for (index, (begun, ended)) in rounds.iter().enumerate() {
            let all = rest.range().len();
            let mine = if index == WRITERS - 1 {
                all
            } else {
                len / WRITERS / 8 * 8
            };
            let (mut bytes, right) = rest.split_at(mine);
            rest = right;
            scope.spawn(move || {
                for round in 1_u64.. {
                    begun.store(round, Ordering::SeqCst);
                    for word in bytes.chunks_exact_mut(8) {
                        word.copy_from_slice(&round.to_ne_bytes());
                    }
                    ended.store(round, Ordering::SeqCst);
                    if Instant::now() > until {
                        break;
                    }
                }
            });
        }
        scope.spawn(move || {
            for (range, least, most) in due {
                let range: Range<usize> = range;
                let mut got = vec![0; range.len()];
                receiver.read_exact(&mut got).expect("all of it");
                for (at, word) in range.step_by(8).zip(got.chunks_exact(8)) {
                    let word = u64::from_ne_bytes(word.try_into().expect("8 bytes"));
                    let writer = of_writer(at);
                    let (least, most): ([u64; WRITERS], [u64; WRITERS]) = (least, most);
                    let may_be = least[writer]..=most[writer];
                    assert!(may_be.contains(&word), "{word} at {at}, not in {may_be:?}");
                }
            }
        });
        let spliced = Spliced::to(sender);
        while Instant::now() < until {
            let part = region.part(..);
            let mut least = ended();
            spliced.send(&part, true, |step| {
                steps.send((step, least, begun())).expect("received");
                least = ended();
            });
        }
        drop(steps);
    });
}

/// A thread that the kernel stops in the middle of `recv(2)` keeps the socket locked. Whoever replaces the
/// page must not wait for a send on the same socket.
#[test]
fn receiving_into_the_region_that_is_sent_on_the_same_socket() {
    let (done, is_done) = mpsc::channel();
    let (region, mut writer) = Region::new(2 * MIB).expect("taken");
    let (socket, peer) = pair();
    let stop = Arc::new(AtomicBool::new(false));
    let mut back = peer.try_clone().expect("cloned");
    thread::spawn(move || std::io::copy(&mut &peer, &mut std::io::sink()));
    let stopped = Arc::clone(&stop);
    let feeder = thread::spawn(move || {
        // It fails when the other end is gone.
        while !stopped.load(Ordering::Relaxed) && back.write_all(&[7; 64 * 1024]).is_ok() {}
    });
    let spliced = Spliced::to(socket.try_clone().expect("cloned"));
    socket.set_nonblocking(false).expect("set");
    let stopped = Arc::clone(&stop);
    let sender = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let left = spliced.send_some(&region.part(..), true);
            let mut left = spliced.push(left);
            while left > 0 {
                left = spliced.push(left);
            }
        }
    });
    thread::spawn(move || {
        for _ in 0..2000 {
            while let Err(errno) = rustix::io::read(&socket, &mut writer[..4096]) {
                assert_eq!(errno, Errno::FAULT, "where the kernel's writes are refused");
                writer.prepare().expect("prepared");
            }
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("no panic");
        socket.shutdown(Shutdown::Both).expect("shut");
        done.send(writer[4095]).expect("received");
    });
    let last = is_done.recv_timeout(Duration::from_secs(60));
    assert_eq!(last, Ok(7), "it stands still");
    feeder.join().expect("no panic");
}

#[test]
fn a_dropped_region_leaves_its_frames_to_the_kernel() {
    let (sender, mut receiver) = pair();
    let spliced = Spliced::to(sender);
    let (region, mut writer) = Region::new(MIB).expect("taken");
    writer.fill(5);
    let taken = spliced.send_some(&region.part(..), true);
    let left = spliced.push(taken);
    let held = region.part(..4096);
    drop(held.protect().expect("lent"));
    let shared = Arc::downgrade(&region.shared);
    drop((region, writer));
    assert!(shared.upgrade().is_some(), "a lease keeps it");
    drop(held);
    assert!(shared.upgrade().is_none());
    let others = [(); 3].map(|()| {
        let (region, mut writer) = Region::new(MIB).expect("taken");
        writer.fill(6);
        region
    });
    let mut got = vec![0; taken - left];
    receiver.read_exact(&mut got).expect("all of it");
    assert!(got.iter().all(|byte| *byte == 5));
    drop(others);
}

#[test]
#[allow(unsafe_code)]
fn a_child_has_zeroes_and_changes_nothing() {
    let (sender, mut receiver) = pair();
    let spliced = Spliced::to(sender);
    let (region, mut writer) = Region::new(2 * MIB).expect("taken");
    writer.fill(5);
    let taken = spliced.send_some(&region.part(..), true);
    let left = spliced.push(taken);
    // A page that was replaced is as the others.
    writer[1] = 5;
    // SAFETY: the child only touches memory, asks for its process id, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let was_zero = writer.iter().all(|byte| *byte == 0);
        writer.fill(9);
        let is_refused = region
            .part(..)
            .protect()
            .is_err_and(|errno| errno == Errno::CHILD);
        let is_right = was_zero && is_refused && writer.iter().all(|byte| *byte == 9);
        // SAFETY: ends the process, and does nothing else.
        unsafe { libc::_exit(i32::from(!is_right)) };
    }
    let mut status = -1;
    // SAFETY: the status is a local.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    assert!(writer.iter().all(|byte| *byte == 5));
    writer.fill(6);
    let mut got = vec![0; taken - left];
    receiver.read_exact(&mut got).expect("all of it");
    assert!(got.iter().all(|byte| *byte == 5));
}

#[test]
fn where_userfaultfd_is_refused_it_is_memory_that_cannot_be_lent() {
    let (region, mut writer) = Region::with(MIB, Err(Errno::PERM)).expect("taken");
    assert_eq!(region.protection(), Err(Errno::PERM));
    assert_eq!(region.part(..).protect().err(), Some(Errno::PERM));
    writer.fill(3);
    writer.prepare().expect("there is nothing to do");
    assert!(writer.iter().all(|byte| *byte == 3));
}

#[test]
fn a_process_without_privilege_prepares_for_the_kernels_writes() {
    let userfault = Userfault::open_user_mode_only().expect("needs none");
    let faults = Faults::start(userfault).expect("started");
    let (region, mut writer) = Region::with(2 * MIB, Ok(faults)).expect("taken");
    assert_eq!(region.protection(), Ok(Protection::UserWrites));
    let lend = || region.part(..).protect().expect("lent").gift(1);
    let fill = |bytes: &mut [u8]| {
        let zeroes = std::fs::File::open("/dev/zero").expect("opened");
        rustix::io::read(&zeroes, bytes)
    };
    writer.fill(1);
    lend();
    assert_eq!(fill(&mut writer[..100]), Err(Errno::FAULT));
    writer[4096] = 2;
    assert_eq!(fill(&mut writer[..100]), Ok(100));
    lend();
    writer.prepare().expect("prepared");
    assert_eq!(fill(&mut writer[..200]), Ok(200));
    assert_eq!((writer[199], writer[200], writer[4096]), (0, 1, 2));
}

/// On a machine without huge pages they stay small, and the region says so.
#[test]
fn huge_pages_stay_huge() {
    let (region, mut writer) = Region::new(6 * MIB + 1).expect("taken");
    let huge_bytes = region.huge_bytes().expect("read");
    assert_eq!(region.is_huge(), huge_bytes == 8 * MIB);
    for round in 0..5 {
        let part = region.part(..);
        part.protect().expect("lent").gift(part.len());
        writer[1] = round;
        writer[6 * MIB] = round;
    }
    assert_eq!(region.huge_bytes().expect("read"), huge_bytes);
    assert_eq!((writer[1], writer[6 * MIB], writer[2]), (4, 4, 0));
}

#[test]
fn a_region_has_bytes() {
    assert!(Region::new(0).is_err());
    assert!(Region::new(usize::MAX).is_err());
    let (region, writer) = Region::new(10).expect("taken");
    let (left, right) = writer.split_at(4);
    assert_eq!((left.range(), right.range()), (0..4, 4..10));
    let part = region.part(2..).slice(..=3);
    assert_eq!((part.len(), part.range()), (4, 2..6));
    assert!(part.slice(4..).is_empty());
    drop(part.slice(4..).protect().expect("nothing is lent"));
}
