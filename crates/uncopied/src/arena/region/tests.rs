//! Tests that send from regions through real sockets. The peer must get the bytes that were in the
//! region at the time of the send.

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
use crate::sys::fork::tests::in_child;

const MIB: usize = 1 << 20;

/// A socket, and the pipe through which bytes are sent to the socket.
struct PipedSocket {
    ends: (OwnedFd, OwnedFd),
    socket: TcpStream,
}

impl PipedSocket {
    fn new(socket: TcpStream) -> Self {
        socket.set_nonblocking(true).expect("set");
        let ends = rustix::pipe::pipe_with(PipeFlags::NONBLOCK).expect("a pipe");
        rustix::pipe::fcntl_setpipe_size(&ends.1, MIB).expect("set");
        Self { ends, socket }
    }

    /// Moves as many bytes of `part` into the pipe as it accepts, and returns their number.
    /// Protects these bytes only if `is_protected` is set.
    fn fill_pipe(&self, part: &RegionPart, is_protected: bool) -> usize {
        let call = is_protected.then(|| part.protect().expect("protected"));
        let taken = self.vmsplice(part);
        if let Some(mut call) = call {
            call.gift(taken);
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
        // SAFETY: the range lies in the region, which `part` keeps alive, and the kernel only reads
        // it.
        let taken = unsafe { libc::vmsplice(pipe, &raw const bytes, 1, libc::SPLICE_F_NONBLOCK) };
        usize::try_from(taken).unwrap_or(0)
    }

    /// Moves bytes from the pipe to the socket until the pipe is empty or the socket accepts no
    /// more. `left` is the number of bytes in the pipe; returns the number of bytes that are still
    /// in the pipe.
    fn drain_pipe(&self, mut left: usize) -> usize {
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

    /// Sends all of `part`, in steps of as many bytes as the pipe accepts. Calls `after_step` with
    /// the range of each step, as soon as its bytes are in the pipe.
    fn send(
        &self,
        part: &RegionPart,
        is_protected: bool,
        mut after_step: impl FnMut(Range<usize>),
    ) {
        let mut sent = 0;
        while sent < part.len() {
            let rest = part.slice(sent..);
            let mut left = self.fill_pipe(&rest, is_protected);
            drop(rest);
            after_step(sent..sent + left);
            sent += left;
            while left > 0 {
                left = self.drain_pipe(left);
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

/// Returns the byte of the test content at position `at`. It is never 0, so that a byte overwritten
/// with 0 is always recognised as wrong.
fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 17)) as u8 | 1
}

/// Sends `len` bytes to a peer that starts to read late, and overwrites the bytes of each step as
/// soon as they are in the pipe. Returns the number of received bytes that are wrong.
fn wrong_bytes(len: usize, is_protected: bool) -> usize {
    let (region, mut writer) = Region::new(len).expect("allocated");
    for (at, byte) in writer.iter_mut().enumerate() {
        *byte = pattern(at);
    }
    let (sender, mut receiver) = pair();
    let piped = PipedSocket::new(sender);
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
    piped.send(&region.part(..), is_protected, |step| writer[step].fill(0));
    assert!(writer.iter().all(|byte| *byte == 0));
    peer.join().expect("no panic")
}

/// Sends as many bytes as the socket accepts with `MSG_ZEROCOPY`, and overwrites them at once.
/// Returns the number of received bytes that are wrong.
fn wrong_bytes_with_msg_zerocopy(is_protected: bool) -> usize {
    let (region, mut writer) = Region::new(4 * MIB).expect("allocated");
    for (at, byte) in writer.iter_mut().enumerate() {
        *byte = pattern(at);
    }
    let (sender, mut receiver) = pair();
    let quota = Quota::new(u64::MAX);
    let mut lease = Lease::take(Memory::Region(region.part(..)), &quota).expect("granted");
    let Memory::Region(part) = lease.memory() else {
        panic!("the lease is of a region")
    };
    let call = is_protected.then(|| part.protect().expect("protected"));
    let sent = send_zerocopy(&sender, part);
    drop(call);
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
    // SAFETY: the value of the option is an int, and a pointer to an int is passed with its size.
    let result = unsafe {
        let (level, option) = (libc::SOL_SOCKET, libc::SO_ZEROCOPY);
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const on).cast(), 4)
    };
    assert_eq!(result, 0);
    let start = ptr::with_exposed_provenance(part.address());
    let flags = libc::MSG_ZEROCOPY | libc::MSG_DONTWAIT;
    // SAFETY: the range lies in the region, which `part` keeps alive, and the kernel only reads it.
    let sent = unsafe { libc::send(socket.as_raw_fd(), start, part.len(), flags) };
    usize::try_from(sent).expect("some of it")
}

#[test]
fn bytes_sent_with_msg_zerocopy_and_overwritten_at_once_arrive_unchanged() {
    assert_eq!(wrong_bytes_with_msg_zerocopy(true), 0);
    let unprotected = wrong_bytes_with_msg_zerocopy(false);
    assert!(
        unprotected > 0,
        "without protection no byte was wrong, so this test proves nothing"
    );
}

#[test]
fn bytes_sent_with_vmsplice_and_overwritten_at_once_arrive_unchanged() {
    for len in [MIB, 4 * MIB] {
        assert_eq!(wrong_bytes(len, true), 0, "{len}");
    }
}

/// If this fails, the test above does not prove that the protection has an effect.
#[test]
fn without_protection_bytes_overwritten_at_once_arrive_wrong() {
    for len in [MIB, 4 * MIB] {
        assert!(wrong_bytes(len, false) > 0, "{len}");
    }
}

/// Each writer sends the bytes that it has written, and starts to overwrite them as soon as the
/// socket has accepted all of them. The writers share huge pages.
#[test]
fn writers_that_never_wait_for_their_sends_change_no_byte_in_flight() {
    const THREADS: usize = 4;
    let (region, mut rest) = Region::new(5 * MIB).expect("allocated");
    let until = Instant::now() + Duration::from_secs(2);
    thread::scope(|scope| {
        for index in 0..THREADS {
            let len = (MIB + 64 * 1024 * index) / 8 * 8;
            let (mut words, right) = rest.split_at(len);
            rest = right;
            let (sender, receiver) = pair();
            let piped = PipedSocket::new(sender);
            let part = region.part(words.range());
            scope.spawn(move || {
                let mut round = 0_u64;
                while Instant::now() < until {
                    round += 1;
                    for (at, word) in words.chunks_exact_mut(8).enumerate() {
                        word.copy_from_slice(&(round << 32 | at as u64).to_ne_bytes());
                    }
                    piped.send(&part, true, |_| {});
                }
                piped.socket.shutdown(Shutdown::Write).expect("shut");
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

/// The writers write all the time, whether or not their bytes are being sent. The value that the
/// peer gets of each word must be at least as new as the round that its writer had completed when
/// the step began, and at most as new as the round that the writer had begun when the step ended.
#[test]
fn sends_that_race_with_writers_deliver_the_bytes_of_that_moment() {
    const WRITERS: usize = 3;
    let len = 4 * MIB;
    let (region, mut rest) = Region::new(len).expect("allocated");
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
        let piped = PipedSocket::new(sender);
        while Instant::now() < until {
            let part = region.part(..);
            let mut least = ended();
            piped.send(&part, true, |step| {
                steps.send((step, least, begun())).expect("received");
                least = ended();
            });
        }
        drop(steps);
    });
}

/// A thread that a write fault stops in the middle of a `recv(2)` keeps the socket locked. The
/// fault handler, which has to replace the page before that thread can continue, must not wait for
/// a send on the same socket.
#[test]
fn receiving_into_a_region_that_is_sent_on_the_same_socket_does_not_deadlock() {
    let (done, is_done) = mpsc::channel();
    let (region, mut writer) = Region::new(2 * MIB).expect("allocated");
    let (socket, peer) = pair();
    let stop = Arc::new(AtomicBool::new(false));
    let mut back = peer.try_clone().expect("cloned");
    thread::spawn(move || std::io::copy(&mut &peer, &mut std::io::sink()));
    let stopped = Arc::clone(&stop);
    let feeder = thread::spawn(move || {
        // The loop also ends when the other end is closed, because the write then fails.
        while !stopped.load(Ordering::Relaxed) && back.write_all(&[7; 64 * 1024]).is_ok() {}
    });
    let piped = PipedSocket::new(socket.try_clone().expect("cloned"));
    socket.set_nonblocking(false).expect("set");
    let stopped = Arc::clone(&stop);
    let sender = thread::spawn(move || {
        while !stopped.load(Ordering::Relaxed) {
            let left = piped.fill_pipe(&region.part(..), true);
            let mut left = piped.drain_pipe(left);
            while left > 0 {
                left = piped.drain_pipe(left);
            }
        }
    });
    thread::spawn(move || {
        for _ in 0..2000 {
            while let Err(errno) = rustix::io::read(&socket, &mut writer[..4096]) {
                assert_eq!(errno, Errno::FAULT, "writes by the kernel are refused");
                writer.prepare().expect("prepared");
            }
        }
        stop.store(true, Ordering::Relaxed);
        sender.join().expect("no panic");
        socket.shutdown(Shutdown::Both).expect("shut");
        done.send(writer[4095]).expect("received");
    });
    let last = is_done.recv_timeout(Duration::from_secs(60));
    assert_eq!(last, Ok(7), "no progress");
    feeder.join().expect("no panic");
}

#[test]
fn frames_in_flight_survive_the_drop_of_their_region() {
    let (sender, mut receiver) = pair();
    let piped = PipedSocket::new(sender);
    let (region, mut writer) = Region::new(MIB).expect("allocated");
    writer.fill(5);
    let taken = piped.fill_pipe(&region.part(..), true);
    let left = piped.drain_pipe(taken);
    let leased = region.part(..4096);
    drop(leased.protect().expect("protected"));
    let state = Arc::downgrade(&region.state);
    drop((region, writer));
    assert!(state.upgrade().is_some(), "a lease keeps the region alive");
    drop(leased);
    assert!(state.upgrade().is_none());
    let others = [(); 3].map(|()| {
        let (region, mut writer) = Region::new(MIB).expect("allocated");
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
fn a_child_process_has_zeroes_and_cannot_change_what_the_parent_sends() {
    let (sender, mut receiver) = pair();
    let piped = PipedSocket::new(sender);
    let (region, mut writer) = Region::new(2 * MIB).expect("allocated");
    writer.fill(5);
    let taken = piped.fill_pipe(&region.part(..), true);
    let left = piped.drain_pipe(taken);
    // This write replaces a page. The child must find zeroes in a replaced page too.
    writer[1] = 5;
    // SAFETY: the child only accesses memory, asks for its process ID, and exits.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let was_zero = writer.iter().all(|byte| *byte == 0);
        writer.fill(9);
        let is_refused = region
            .part(..)
            .protect()
            .is_err_and(|errno| errno == Errno::CHILD);
        let is_right = was_zero && is_refused && writer.iter().all(|byte| *byte == 9);
        // SAFETY: this ends the process and does nothing else.
        unsafe { libc::_exit(i32::from(!is_right)) };
    }
    let mut status = -1;
    // SAFETY: the call writes the status to a local of the right type.
    let waited = unsafe { libc::waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
    assert!(writer.iter().all(|byte| *byte == 5));
    writer.fill(6);
    let mut got = vec![0; taken - left];
    receiver.read_exact(&mut got).expect("all of it");
    assert!(got.iter().all(|byte| *byte == 5));
}

#[test]
fn without_userfaultfd_a_region_is_memory_that_can_only_be_copied() {
    let (region, mut writer) =
        Region::with_fault_handler(MIB, Err(Errno::PERM)).expect("allocated");
    assert_eq!(region.protection(), Err(crate::Errno::PERM));
    assert_eq!(region.part(..).protect().err(), Some(Errno::PERM));
    writer.fill(3);
    writer.prepare().expect("nothing to prepare");
    assert!(writer.iter().all(|byte| *byte == 3));
}

#[test]
fn an_unprivileged_process_can_prepare_for_writes_by_the_kernel() {
    let userfault = Userfault::open_user_mode_only().expect("needs no privilege");
    let handler = FaultHandler::start(userfault).expect("started");
    let (region, mut writer) = Region::with_fault_handler(2 * MIB, Ok(handler)).expect("allocated");
    assert_eq!(region.protection(), Ok(Protection::UserWrites));
    let send = || region.part(..).protect().expect("protected").gift(1);
    let fill = |bytes: &mut [u8]| {
        let zeroes = std::fs::File::open("/dev/zero").expect("opened");
        rustix::io::read(&zeroes, bytes)
    };
    writer.fill(1);
    send();
    assert_eq!(fill(&mut writer[..100]), Err(Errno::FAULT));
    writer[4096] = 2;
    assert_eq!(fill(&mut writer[..100]), Ok(100));
    send();
    writer.prepare().expect("prepared");
    assert_eq!(fill(&mut writer[..200]), Ok(200));
    assert_eq!((writer[199], writer[200], writer[4096]), (0, 1, 2));
}

/// On small pages, protection would cost more than a copy.
#[test]
#[allow(unsafe_code)]
fn without_huge_pages_a_copy_is_cheaper() {
    let result = in_child(|| {
        // SAFETY: the call only forbids huge pages to the child process.
        let forbidden = unsafe { libc::prctl(libc::PR_SET_THP_DISABLE, 1, 0, 0, 0) };
        let (region, _writer) = Region::new(4 * MIB).expect("allocated");
        let is_huge = region.is_huge() || region.huge_bytes().expect("read") > 0;
        let part = region.part(..);
        u8::from(
            forbidden != 0
                || is_huge
                || part.protection_of_next_send(&Tuning::default()) != WriteProtection::Costly,
        )
    });
    assert_eq!(result, 0);
}

/// On a machine without huge pages, the region must report that it has none.
#[test]
fn replaced_huge_pages_are_huge() {
    let (region, mut writer) = Region::new(6 * MIB + 1).expect("allocated");
    let huge_bytes = region.huge_bytes().expect("read");
    assert_eq!(region.is_huge(), huge_bytes == 8 * MIB);
    for round in 0..5 {
        let part = region.part(..);
        part.protect().expect("protected").gift(part.len());
        writer[1] = round;
        writer[6 * MIB] = round;
    }
    assert_eq!(region.huge_bytes().expect("read"), huge_bytes);
    assert_eq!((writer[1], writer[6 * MIB], writer[2]), (4, 4, 0));
}

#[test]
fn a_region_has_the_length_that_was_requested() {
    assert!(Region::new(0).is_err());
    assert!(Region::new(usize::MAX).is_err());
    let (region, mut writer) = Region::new(10).expect("allocated");
    assert_eq!(region.len(), 10);
    writer.copy_from_slice(b"0123456789");
    let (left, right) = writer.split_at(4);
    assert_eq!((left.range(), right.range()), (0..4, 4..10));
    assert_eq!((&left[..], &right[..]), (&b"0123"[..], &b"456789"[..]));
    let part = region.part(2..).slice(..=3);
    assert_eq!((part.len(), part.range()), (4, 2..6));
    assert!(part.slice(4..).is_empty() && !part.is_empty());
    drop(part.slice(4..).protect().expect("nothing to protect"));
}
