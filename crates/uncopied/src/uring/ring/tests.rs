//! The ring on the real kernel, over loopback.

use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use super::*;
use crate::arena::{Memory, PageBuffer, Pages};
use crate::in_flight::{
    Completion, FreeReason, Lease, NotificationSource, NotificationStats, Quota, SendTracker,
};
use crate::mechanism::memory_to_socket::send_zc::status_of;
use crate::mechanism::{Side, Status};
use crate::sys::fork::tests::in_child;

const PATIENCE: Option<Duration> = Some(Duration::from_secs(20));

/// A connection over loopback, its sender non-blocking, with buffers of about so many bytes.
pub(crate) fn wire(send_buffer: usize, receive_buffer: usize) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
    sockopt::set_socket_recv_buffer_size(&listener, receive_buffer).expect("set");
    let address = listener.local_addr().expect("has one");
    let sender = TcpStream::connect(address).expect("connected");
    sockopt::set_socket_send_buffer_size_force(&sender, send_buffer)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&sender, send_buffer))
        .expect("set");
    sender.set_nonblocking(true).expect("set");
    let (receiver, _) = listener.accept().expect("accepted");
    (sender, receiver)
}

/// Pages of a pattern that no other `mark` has.
pub(crate) fn pattern(mark: u64, len: usize) -> Pages {
    let mut buffer = PageBuffer::with_capacity(len).expect("taken");
    buffer.set_len(len);
    for (place, word) in buffer.chunks_mut(8).enumerate() {
        let value = pattern_word(mark, place as u64);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
    buffer.freeze()
}

fn pattern_word(mark: u64, place: u64) -> u64 {
    (mark << 32 | place).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Whether `bytes` are the pattern of `mark`, from its start.
pub(crate) fn is_pattern(bytes: &[u8], mark: u64) -> bool {
    bytes
        .chunks(8)
        .enumerate()
        .all(|(place, word)| word == &pattern_word(mark, place as u64).to_le_bytes()[..word.len()])
}

/// What a sender keeps besides the ring.
pub(crate) struct TestLedger {
    pub(crate) quota: Arc<Quota>,
    pub(crate) stats: Arc<NotificationStats>,
}

impl TestLedger {
    pub(crate) fn new() -> Self {
        Self {
            quota: Quota::new(u64::MAX),
            stats: Arc::default(),
        }
    }

    pub(crate) fn lease(&self, pages: &Pages) -> Lease {
        Lease::take(Memory::Pages(pages.clone()), &self.quota).expect("granted")
    }

    pub(crate) fn part(&self, notices: Arc<dyn NotificationSource>) -> (SendPart, Completion) {
        let tracker = SendTracker::new();
        (
            tracker.part(&self.stats, Some(notices)),
            tracker.completion(),
        )
    }

    fn send(
        &self,
        ring: &Arc<Ring>,
        sink: impl AsFd,
        pages: &[Pages],
    ) -> (Result<usize>, Completion) {
        let leases = Leases::of(pages.iter().map(|pages| self.lease(pages))).expect("some");
        let (part, completion) = self.part(Arc::clone(ring) as Arc<dyn NotificationSource>);
        (ring.send(sink.as_fd(), leases, part), completion)
    }

    /// Sends the pattern of `mark` until the socket takes no more; what was taken.
    fn fill(&self, ring: &Arc<Ring>, sink: impl AsFd, len: usize) -> Vec<(usize, Completion)> {
        let mut taken = Vec::new();
        loop {
            let pages = pattern(taken.len() as u64, len);
            match self.send(ring, &sink, &[pages]) {
                (Ok(bytes), completion) => taken.push((bytes, completion)),
                (Err(Errno::AGAIN), _) => return taken,
                (Err(errno), _) => panic!("{errno}"),
            }
        }
    }
}

/// Reads and checks what was sent with the pattern of each send's number.
pub(crate) fn check(mut receiver: &TcpStream, taken: &[(usize, Completion)]) {
    for (mark, (bytes, _)) in taken.iter().enumerate() {
        let mut got = vec![0; *bytes];
        receiver.read_exact(&mut got).expect("received");
        assert!(
            is_pattern(&got, mark as u64),
            "send {mark} is not what it was"
        );
    }
}

pub(crate) fn wait_all(taken: &[(usize, Completion)]) {
    for (bytes, completion) in taken {
        let settled = completion.wait(PATIENCE).expect("settled");
        assert_eq!(
            (settled.bytes, settled.reason),
            (*bytes as u64, FreeReason::Notification)
        );
    }
}

fn new_ring() -> Arc<Ring> {
    Arc::new(Ring::new().expect("a ring"))
}

#[test]
fn a_send_is_answered_at_once_and_settled_by_its_notice() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, mut receiver) = wire(1 << 20, 1 << 20);
    let pages = pattern(1, 65_536);
    let (answer, completion) = ledger.send(&ring, &sender, std::slice::from_ref(&pages));
    assert_eq!(answer, Ok(65_536));
    let mut got = vec![0; 65_536];
    receiver.read_exact(&mut got).expect("received");
    assert!(is_pattern(&got, 1));
    let settled = completion.wait(PATIENCE).expect("settled");
    assert_eq!(
        (settled.bytes, settled.reason),
        (65_536, FreeReason::Notification)
    );
    // Over loopback the kernel copies, and says so.
    assert_eq!((settled.copied, ledger.stats.copied()), (65_536, 65_536));
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
    pages.try_into_buffer().expect("it came back");
}

#[test]
fn head_and_body_go_in_one_call() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, mut receiver) = wire(1 << 20, 1 << 20);
    let parts = [pattern(1, 100), pattern(2, 8192), pattern(3, 30_001)];
    let (answer, completion) = ledger.send(&ring, &sender, &parts);
    assert_eq!(answer, Ok(38_293));
    for (part, mark) in parts.iter().zip(1..) {
        let mut got = vec![0; part.len()];
        receiver.read_exact(&mut got).expect("received");
        assert!(is_pattern(&got, mark));
    }
    assert_eq!(completion.wait(PATIENCE).expect("settled").bytes, 38_293);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn sends_to_many_sockets_go_together_and_each_has_its_answer() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    // More than the submission queue has room for.
    let wires: Vec<_> = (0..150).map(|_| wire(1 << 20, 1 << 20)).collect();
    let (gone, other_end) = wire(1 << 20, 1 << 20);
    drop(other_end);
    let mut parts = vec![pattern(0, 4096)];
    parts.extend((1..=150).map(|mark| pattern(mark, 4096 + mark as usize)));
    let mut sinks = vec![Arc::new(gone)];
    let (senders, receivers): (Vec<_>, Vec<_>) = wires.into_iter().unzip();
    sinks.extend(senders.into_iter().map(Arc::new));
    // The peer that is gone answers with a reset; the next send meets it.
    assert_eq!(ledger.send(&ring, &sinks[0], &parts[..1]).0, Ok(4096));

    let mut completions = Vec::new();
    let sends: Vec<_> = sinks
        .iter()
        .zip(&parts)
        .map(|(sink, pages)| {
            let (part, completion) = ledger.part(Arc::clone(&ring) as Arc<dyn NotificationSource>);
            completions.push(completion);
            // Each third in two pieces.
            let pieces = match pages.len() % 3 {
                0 => vec![pages.slice(..1000), pages.slice(1000..)],
                _ => vec![pages.clone()],
            };
            QueuedSend {
                sink: Arc::clone(sink) as _,
                leases: Leases::of(pieces.iter().map(|it| ledger.lease(it))).expect("some"),
                part,
            }
        })
        .collect();
    let mut answers = Vec::new();
    ring.send_all(sends, |answer| answers.push(answer));

    assert_eq!(answers.len(), parts.len());
    assert!(matches!(answers[0], Err(Errno::PIPE | Errno::CONNRESET)));
    for (mark, mut receiver) in (1..).zip(&receivers) {
        let len = parts[mark].len();
        assert_eq!(answers[mark], Ok(len));
        let mut got = vec![0; len];
        receiver.read_exact(&mut got).expect("received");
        assert!(is_pattern(&got, mark as u64));
        assert_eq!(
            completions[mark].wait(PATIENCE).expect("settled").bytes,
            len as u64
        );
    }
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
}

#[test]
fn a_full_socket_answers_at_once_and_what_it_did_not_take_comes_back() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = wire(64 << 10, 4 << 10);
    let began = Instant::now();
    let taken = ledger.fill(&ring, &sender, 1 << 20);
    assert!(began.elapsed() < Duration::from_secs(5), "it waited");
    let (last, _) = taken.last().expect("some");
    assert!(*last < 1 << 20, "the last send was not cut short");
    // What is lent is what the socket took, not what it was offered.
    let sent: usize = taken.iter().map(|(bytes, _)| bytes).sum();
    assert!(ledger.quota.in_flight_bytes() <= (sent + 2 * 4096 * taken.len()) as u64);
    check(&receiver, &taken);
    wait_all(&taken);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn more_notices_than_the_queue_holds_all_arrive() {
    let ring = Arc::new(Ring::with_entries(1, 2).expect("a ring"));
    let ledger = TestLedger::new();
    let (sender, receiver) = wire(4 << 20, 4 << 10);
    let taken = ledger.fill(&ring, &sender, 4096);
    assert!(ring.in_flight() > 100, "{} sends wait", ring.in_flight());
    check(&receiver, &taken);
    wait_all(&taken);
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
}

#[test]
fn a_peer_that_resets_gives_everything_back() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let taken = ledger.fill(&ring, &sender, 32 << 10);
    assert!(ring.in_flight() > 0);
    // Unread bytes in its queue make the close a reset.
    drop(receiver);
    wait_all(&taken);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
    let (answer, completion) = ledger.send(&ring, &sender, &[pattern(1, 8192)]);
    let errno = answer.expect_err("nobody is there");
    assert!(matches!(errno, Errno::PIPE | Errno::CONNRESET), "{errno}");
    assert_eq!(status_of(errno), Status::Failed(Side::Sink, errno));
    assert_eq!(completion.wait(PATIENCE).expect("settled").bytes, 0);
}

#[test]
fn a_socket_that_is_closed_keeps_the_lease_until_the_peer_has_read() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let taken = ledger.fill(&ring, &sender, 32 << 10);
    drop(sender);
    ring.reap();
    assert!(ring.in_flight() > 0);
    check(&receiver, &taken);
    wait_all(&taken);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn a_unix_socket_is_unsupported() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, _receiver) = UnixStream::pair().expect("made");
    let (answer, _completion) = ledger.send(&ring, &sender, &[pattern(1, 8192)]);
    let errno = answer.expect_err("no zero copy there");
    assert_eq!(status_of(errno), Status::Unsupported(errno));
    // The ring itself is none the worse for it.
    let (sender, _receiver) = wire(1 << 20, 1 << 20);
    let (answer, _completion) = ledger.send(&ring, &sender, &[pattern(1, 8192)]);
    assert_eq!(answer, Ok(8192));
}

#[test]
fn a_ring_that_is_dropped_with_leases_out_leaks_them() {
    let ledger = TestLedger::new();
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let ring = new_ring();
    let mut taken = Vec::new();
    for mark in 0..4 {
        let leases = Leases::from(ledger.lease(&pattern(mark, 64 << 10)));
        let tracker = SendTracker::new();
        let part = tracker.part(&ledger.stats, None);
        let bytes = ring.send(sender.as_fd(), leases, part).expect("taken");
        taken.push((bytes, tracker.completion()));
    }
    ring.reap();
    let leased = ledger.quota.in_flight_bytes();
    assert!(leased > 0);
    drop(ring);
    assert_eq!(ledger.quota.in_flight_bytes(), leased);
    // Whoever takes buffers now gets others.
    let _others: Vec<_> = (100..200).map(|mark| pattern(mark, 64 << 10)).collect();
    check(&receiver, &taken);
}

#[test]
fn another_thread_may_take_notices_in_and_send() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let taken = ledger.fill(&ring, &sender, 32 << 10);
    thread::scope(|scope| {
        scope.spawn(|| {
            check(&receiver, &taken);
            wait_all(&taken);
        });
    });
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
    // A thread that is gone when the notices of its sends come.
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| ledger.fill(&ring, &sender, 32 << 10));
        sending.join().expect("no panic")
    });
    assert!(!sent.is_empty());
    check(&receiver, &sent);
    wait_all(&sent);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn a_child_process_leaves_the_ring_of_its_parent_alone() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = wire(1 << 20, 4 << 10);
    let taken = ledger.fill(&ring, &sender, 32 << 10);
    let (_, last) = taken.last().expect("some");
    let pages = pattern(0, 8192);
    let answer = in_child(|| {
        let before = ledger.quota.in_flight_bytes();
        let (answer, refused) = ledger.send(&ring, &sender, std::slice::from_ref(&pages));
        let is_refused = answer == Err(RETIRED);
        let never_was = refused.outcome().is_some_and(|it| it.bytes == 0);
        let is_open = last.outcome().is_none();
        let cannot_wait = last
            .wait(Some(Duration::from_secs(5)))
            .is_err_and(|error| error.kind() == io::ErrorKind::Unsupported);
        // The ring goes, and what it lent stays lent.
        // SAFETY: the child runs alone, and ends without looking at the ring again.
        unsafe { std::ptr::drop_in_place(Arc::as_ptr(&ring).cast_mut()) };
        let stays_lent = before > 0 && ledger.quota.in_flight_bytes() == before;
        let checks = [is_refused, never_was, is_open, cannot_wait, stays_lent];
        checks
            .iter()
            .position(|held| !held)
            .map_or(100, |first| first as u8)
    });
    assert_eq!(answer, 100, "this check failed in the child");
    check(&receiver, &taken);
    wait_all(&taken);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

/// From now on every such call of this process fails.
fn refuse(call: libc::c_long, errno: Errno) {
    let rule = |code: u32, jt, jf, k| libc::sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    let errno = libc::SECCOMP_RET_ERRNO | errno.raw_os_error().cast_unsigned();
    let mut rules = [
        rule(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        rule(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            call as u32,
        ),
        rule(libc::BPF_RET | libc::BPF_K, 0, 0, errno),
        rule(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog {
        len: rules.len() as u16,
        filter: rules.as_mut_ptr(),
    };
    // SAFETY: takes numbers only.
    let answer = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(answer, 0);
    let mode = libc::SECCOMP_MODE_FILTER;
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let answer = unsafe { libc::prctl(libc::PR_SET_SECCOMP, mode, &raw const program) };
    assert_eq!(answer, 0);
}

/// What a child process gets for one send when the kernel refuses it `call`.
fn answer_under_filter(call: libc::c_long, errno: Errno) -> u8 {
    let pages = [pattern(0, 8192)];
    in_child(|| {
        let (sender, _receiver) = wire(1 << 20, 1 << 20);
        let ledger = TestLedger::new();
        let ring = new_ring();
        refuse(call, errno);
        let (answer, completion) = ledger.send(&ring, &sender, &pages);
        let is_whole = ledger.quota.in_flight_bytes() == 0
            && ring.is_retired()
            && completion.outcome().is_some_and(|it| it.bytes == 0)
            && ledger.send(&ring, &sender, &pages).0 == Err(RETIRED);
        match answer {
            Err(errno) if is_whole => errno.raw_os_error() as u8,
            _ => 0,
        }
    })
}

#[test]
fn a_ring_that_is_refused_says_why() {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let answer = in_child(|| {
            refuse(libc::SYS_io_uring_setup, errno);
            Ring::new()
                .err()
                .map_or(0, |errno| errno.raw_os_error() as u8)
        });
        assert_eq!(i32::from(answer), errno.raw_os_error());
    }
}

#[test]
fn a_send_that_the_ring_cannot_take_in_never_goes_out() {
    let rows = [
        (Errno::AGAIN, Errno::NOMEM),
        (Errno::BUSY, Errno::NOMEM),
        (Errno::INTR, Errno::NOMEM),
        (Errno::NOMEM, Errno::NOMEM),
        (Errno::PERM, Errno::NOSYS),
        (Errno::NOSYS, Errno::NOSYS),
    ];
    for (errno, expected) in rows {
        let answer = answer_under_filter(libc::SYS_io_uring_enter, errno);
        assert_eq!(i32::from(answer), expected.raw_os_error(), "{errno:?}");
    }
}

/// The limit binds those without CAP_IPC_LOCK.
#[test]
fn over_the_limit_of_locked_memory_a_send_is_copied() {
    let pages = [pattern(0, 256 << 10)];
    let answer = in_child(|| {
        // Enough for the queues of the ring, which count too.
        let limit = libc::rlimit {
            rlim_cur: 128 << 10,
            rlim_max: 128 << 10,
        };
        // SAFETY: the limit is a local that lives until the call returns.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) }, 0);
        if rustix::process::geteuid().is_root() {
            // SAFETY: takes numbers only. This thread alone changes, and it is the child's only one.
            let answer = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(answer, 0);
        }
        let (sender, _receiver) = wire(1 << 20, 1 << 20);
        let ledger = TestLedger::new();
        let ring = new_ring();
        let (answer, completion) = ledger.send(&ring, &sender, &pages);
        drop(completion);
        assert_eq!(ring.in_flight(), 0);
        assert!(!ring.is_retired());
        match answer.map_err(status_of) {
            Err(Status::CopyOnce(errno)) => errno.raw_os_error() as u8,
            _ => 0,
        }
    });
    assert_eq!(i32::from(answer), Errno::NOMEM.raw_os_error());
}

/// Each buffer has a pattern of its own, and is overwritten as soon as its completion allows. The
/// receiver reads late, and checks every byte.
#[test]
fn a_buffer_that_is_overwritten_after_its_notice_changes_nothing() {
    const SENDS: u64 = 3000;
    let (sender, receiver) = wire(256 << 10, 16 << 10);
    let sizes = [1, 4096, 4097, 20_000, 65_536, 150_000];
    let size = move |mark: u64| sizes[(mark % sizes.len() as u64) as usize];
    let reading = thread::spawn(move || {
        let mut receiver = receiver;
        let mut got = vec![0; 150_000];
        for mark in 0..SENDS {
            if mark % 64 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            let got = &mut got[..size(mark)];
            receiver.read_exact(got).expect("received");
            assert!(is_pattern(got, mark), "send {mark} is not what it was");
        }
    });
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let mut lent: Vec<(Pages, Vec<Completion>)> = Vec::new();
    let mut overwritten = 0;
    for mark in 0..SENDS {
        let pages = pattern(mark, size(mark));
        let mut rest = pages.clone();
        let mut completions = Vec::new();
        while !rest.is_empty() {
            match ledger.send(&ring, &sender, std::slice::from_ref(&rest)) {
                (Ok(bytes), completion) => {
                    rest = rest.slice(bytes..);
                    completions.push(completion);
                }
                (Err(Errno::AGAIN), _) => {
                    let mut ready = [PollFd::new(&sender, PollFlags::OUT)];
                    poll(&mut ready, None).expect("polled");
                }
                (Err(errno), _) => panic!("{errno}"),
            }
        }
        drop(rest);
        lent.push((pages, completions));
        let (free, kept): (Vec<_>, Vec<_>) = lent.into_iter().partition(|(_, completions)| {
            completions
                .iter()
                .all(|completion| completion.outcome().is_some())
        });
        lent = kept;
        for (pages, _) in free {
            match pages.try_into_buffer() {
                Ok(mut buffer) => {
                    buffer.spare_mut().fill(0xa5);
                    overwritten += 1;
                }
                // A try that found the socket full had its own lease, and its notice is to come.
                Err(pages) => lent.push((pages, Vec::new())),
            }
        }
    }
    for (_, completions) in &lent {
        for completion in completions {
            let settled = completion.wait(PATIENCE).expect("settled");
            assert_eq!(settled.reason, FreeReason::Notification);
        }
    }
    reading.join().expect("every byte is right");
    assert!(
        overwritten > SENDS / 2,
        "only {overwritten} were overwritten"
    );
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
}
