//! Tests of the ring with the real kernel, over loopback.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::pin::Pin;
use std::sync::{Arc, mpsc};
use std::task::{Context, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::super::testing::{
    AcceptedSend, COMPLETION_TIMEOUT, TestLedger, connect, is_pattern, pattern, receive_and_check,
    wait_for_all,
};
use super::*;
use crate::arena::Pages;
use crate::in_flight::{Completion, FreeReason, NotificationSource, SendTracker};
use crate::mechanism::memory_to_socket::send_zc::status_of;
use crate::mechanism::{Side, Status};
use crate::sys::fork::tests::in_child;
use crate::sys::uring::tests::refuse;

impl TestLedger {
    fn send(
        &self,
        ring: &Arc<Ring>,
        sink: impl AsFd,
        pages: &[Pages],
    ) -> (Result<usize>, Completion) {
        let leases = pages.iter().map(|pages| self.lease(pages));
        let leases = Leases::of(leases).expect("at least one");
        let (part, completion) = self.part(Arc::clone(ring) as Arc<dyn NotificationSource>);
        (ring.send(sink.as_fd(), leases, part), completion)
    }

    /// Sends until the socket accepts no more. Each send has the pattern whose seed is the index of
    /// the send.
    fn fill(&self, ring: &Arc<Ring>, sink: impl AsFd, len: usize) -> Vec<AcceptedSend> {
        let mut accepted = Vec::new();
        loop {
            let pages = pattern(accepted.len() as u64, len);
            match self.send(ring, &sink, &[pages]) {
                (Ok(bytes), completion) => accepted.push((bytes, completion)),
                (Err(Errno::AGAIN), _) => return accepted,
                (Err(errno), _) => panic!("{errno}"),
            }
        }
    }
}

fn new_ring() -> Arc<Ring> {
    Arc::new(Ring::new().expect("a ring"))
}

#[test]
fn a_send_returns_at_once_and_its_notification_completes_it() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, mut receiver) = connect(1 << 20, 1 << 20);
    let pages = pattern(1, 65_536);
    let (result, completion) = ledger.send(&ring, &sender, std::slice::from_ref(&pages));
    assert_eq!(result, Ok(65_536));
    let mut received = vec![0; 65_536];
    receiver.read_exact(&mut received).expect("received");
    assert!(is_pattern(&received, 1));
    let outcome = completion.wait(COMPLETION_TIMEOUT).expect("complete");
    assert_eq!(
        (outcome.bytes, outcome.reason),
        (65_536, FreeReason::Notification)
    );
    // Over loopback the kernel copies the bytes, and the notification reports that.
    assert_eq!(
        (outcome.copied, ledger.stats.copied_bytes()),
        (65_536, 65_536)
    );
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
    pages.try_into_buffer().expect("no longer leased");
}

#[test]
fn several_buffers_go_out_in_one_send() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, mut receiver) = connect(1 << 20, 1 << 20);
    let parts = [pattern(1, 100), pattern(2, 8192), pattern(3, 30_001)];
    let (result, completion) = ledger.send(&ring, &sender, &parts);
    assert_eq!(result, Ok(38_293));
    for (part, seed) in parts.iter().zip(1..) {
        let mut received = vec![0; part.len()];
        receiver.read_exact(&mut received).expect("received");
        assert!(is_pattern(&received, seed));
    }
    assert_eq!(
        completion.wait(COMPLETION_TIMEOUT).expect("complete").bytes,
        38_293
    );
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn a_batch_to_many_sockets_has_a_result_for_each_send() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    // The batch has more sends than the submission queue has entries.
    let connections: Vec<_> = (0..150).map(|_| connect(1 << 20, 1 << 20)).collect();
    let (closed, peer) = connect(1 << 20, 1 << 20);
    drop(peer);
    let mut parts = vec![pattern(0, 4096)];
    parts.extend((1..=150).map(|seed| pattern(seed, 4096 + seed as usize)));
    let mut sinks = vec![Arc::new(OwnedFd::from(closed))];
    let (senders, receivers): (Vec<_>, Vec<_>) = connections.into_iter().unzip();
    sinks.extend(senders.into_iter().map(|it| Arc::new(it.into())));
    // The closed peer responds to this send with a reset, which makes the next send fail.
    assert_eq!(ledger.send(&ring, &sinks[0], &parts[..1]).0, Ok(4096));

    let mut completions = Vec::new();
    let sends: Vec<_> = sinks
        .iter()
        .zip(&parts)
        .map(|(sink, pages)| {
            let (part, completion) = ledger.part(Arc::clone(&ring) as Arc<dyn NotificationSource>);
            completions.push(completion);
            // Every third send has two buffers.
            let pieces = match pages.len() % 3 {
                0 => vec![pages.slice(..1000), pages.slice(1000..)],
                _ => vec![pages.clone()],
            };
            QueuedSend {
                sink: Arc::clone(sink),
                leases: Leases::of(pieces.iter().map(|it| ledger.lease(it))).expect("at least one"),
                part,
            }
        })
        .collect();
    let mut results = Vec::new();
    ring.send_all(sends, |result| results.push(result));

    assert_eq!(results.len(), parts.len());
    assert!(matches!(results[0], Err(Errno::PIPE | Errno::CONNRESET)));
    for (seed, mut receiver) in (1..).zip(&receivers) {
        let len = parts[seed].len();
        assert_eq!(results[seed], Ok(len));
        let mut received = vec![0; len];
        receiver.read_exact(&mut received).expect("received");
        assert!(is_pattern(&received, seed as u64));
        assert_eq!(
            completions[seed]
                .wait(COMPLETION_TIMEOUT)
                .expect("complete")
                .bytes,
            len as u64
        );
    }
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
}

#[test]
fn a_full_socket_fails_at_once_and_only_accepted_bytes_stay_in_flight() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = connect(64 << 10, 4 << 10);
    let started_at = Instant::now();
    let accepted = ledger.fill(&ring, &sender, 1 << 20);
    assert!(started_at.elapsed() < Duration::from_secs(5), "it waited");
    let (last, _) = accepted.last().expect("at least one");
    assert!(*last < 1 << 20, "the last send was not cut short");
    // Only the bytes that the socket accepted are in flight, not all bytes that were passed to it.
    let sent: usize = accepted.iter().map(|(bytes, _)| bytes).sum();
    assert!(ledger.quota.in_flight_bytes() <= (sent + 2 * 4096 * accepted.len()) as u64);
    receive_and_check(&receiver, &accepted);
    wait_for_all(&accepted);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn more_notifications_than_the_completion_queue_holds_all_arrive() {
    let ring = Arc::new(Ring::with_entries(1, 2).expect("a ring"));
    let ledger = TestLedger::new();
    let (sender, receiver) = connect(4 << 20, 4 << 10);
    let accepted = ledger.fill(&ring, &sender, 4096);
    assert!(ring.in_flight() > 100, "{} in flight", ring.in_flight());
    receive_and_check(&receiver, &accepted);
    wait_for_all(&accepted);
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
}

#[test]
fn a_reset_by_the_peer_frees_all_memory() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let accepted = ledger.fill(&ring, &sender, 32 << 10);
    assert!(ring.in_flight() > 0);
    // Closing the receiver sends a reset, because there are unread bytes in its queue.
    drop(receiver);
    wait_for_all(&accepted);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
    let (result, completion) = ledger.send(&ring, &sender, &[pattern(1, 8192)]);
    let errno = result.expect_err("reset");
    assert!(matches!(errno, Errno::PIPE | Errno::CONNRESET), "{errno}");
    assert_eq!(status_of(errno), Status::Failed(Side::Sink, errno));
    assert_eq!(
        completion.wait(COMPLETION_TIMEOUT).expect("complete").bytes,
        0
    );
}

#[test]
fn a_closed_socket_keeps_its_leases_until_the_peer_has_read() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let accepted = ledger.fill(&ring, &sender, 32 << 10);
    drop(sender);
    ring.reap();
    assert!(ring.in_flight() > 0);
    receive_and_check(&receiver, &accepted);
    wait_for_all(&accepted);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn a_unix_socket_is_unsupported() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, _receiver) = UnixStream::pair().expect("created");
    let (result, _completion) = ledger.send(&ring, &sender, &[pattern(1, 8192)]);
    let errno = result.expect_err("no zero copy for Unix sockets");
    assert_eq!(status_of(errno), Status::Unsupported(errno));
    // The ring itself still works.
    let (sender, _receiver) = connect(1 << 20, 1 << 20);
    let (result, _completion) = ledger.send(&ring, &sender, &[pattern(1, 8192)]);
    assert_eq!(result, Ok(8192));
}

#[test]
fn a_ring_that_is_dropped_with_memory_in_flight_leaks_it() {
    let ledger = TestLedger::new();
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let ring = new_ring();
    let mut accepted = Vec::new();
    for seed in 0..4 {
        let leases = Leases::from(ledger.lease(&pattern(seed, 64 << 10)));
        let tracker = SendTracker::new();
        let part = tracker.part(&ledger.stats, None);
        let bytes = ring.send(sender.as_fd(), leases, part).expect("accepted");
        accepted.push((bytes, tracker.completion()));
    }
    ring.reap();
    let leased = ledger.quota.in_flight_bytes();
    assert!(leased > 0);
    drop(ring);
    assert_eq!(ledger.quota.in_flight_bytes(), leased);
    // New buffers must not use the leaked pages, or the receiver would see other bytes.
    let _others: Vec<_> = (100..200).map(|seed| pattern(seed, 64 << 10)).collect();
    receive_and_check(&receiver, &accepted);
}

#[test]
fn another_thread_can_process_notifications_and_send() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let accepted = ledger.fill(&ring, &sender, 32 << 10);
    thread::scope(|scope| {
        scope.spawn(|| {
            receive_and_check(&receiver, &accepted);
            wait_for_all(&accepted);
        });
    });
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
    // This time, the sending thread ends before the notifications of its sends arrive.
    let sent = thread::scope(|scope| {
        let sending = scope.spawn(|| ledger.fill(&ring, &sender, 32 << 10));
        sending.join().expect("no panic")
    });
    assert!(!sent.is_empty());
    receive_and_check(&receiver, &sent);
    wait_for_all(&sent);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

#[test]
fn a_child_process_leaves_the_ring_of_its_parent_alone() {
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let accepted = ledger.fill(&ring, &sender, 32 << 10);
    let (_, last) = accepted.last().expect("at least one");
    let pages = pattern(0, 8192);
    let failed_check = in_child(|| {
        let (result, completion) = ledger.send(&ring, &sender, std::slice::from_ref(&pages));
        let is_refused = result == Err(RING_RETIRED);
        let sent_nothing = completion.outcome().is_some_and(|it| it.bytes == 0);
        let is_incomplete = last.outcome().is_none();
        let cannot_wait = last
            .wait(Some(Duration::from_secs(5)))
            .is_err_and(|error| error.kind() == io::ErrorKind::Unsupported);
        // Dropping the child's copy of the ring must neither release the memory that the parent has
        // in flight nor complete its sends. SAFETY: this is the only thread of the child, which
        // ends without using the ring again.
        unsafe { std::ptr::drop_in_place(Arc::as_ptr(&ring).cast_mut()) };
        let stays_in_flight = last.outcome().is_none();
        let checks = [
            is_refused,
            sent_nothing,
            is_incomplete,
            cannot_wait,
            stays_in_flight,
        ];
        checks
            .iter()
            .position(|is_passed| !is_passed)
            .map_or(100, |first| first as u8)
    });
    assert_eq!(failed_check, 100, "left: the index of the failed check");
    receive_and_check(&receiver, &accepted);
    wait_for_all(&accepted);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);
}

/// Makes a send in a child process in which the system call `call` fails with `errno`. Returns the
/// errno of the send; 0 if the send succeeds, leaves memory in flight, or does not retire the ring.
fn result_under_filter(call: libc::c_long, errno: Errno) -> u8 {
    let pages = [pattern(0, 8192)];
    in_child(|| {
        let (sender, _receiver) = connect(1 << 20, 1 << 20);
        let ledger = TestLedger::new();
        let ring = new_ring();
        refuse(call, errno);
        let (result, completion) = ledger.send(&ring, &sender, &pages);
        let is_clean = ledger.quota.in_flight_bytes() == 0
            && ring.is_retired()
            && completion.outcome().is_some_and(|it| it.bytes == 0)
            && ledger.send(&ring, &sender, &pages).0 == Err(RING_RETIRED);
        match result {
            Err(errno) if is_clean => errno.raw_os_error() as u8,
            _ => 0,
        }
    })
}

#[test]
fn creating_a_ring_fails_with_the_errno_of_the_kernel() {
    for errno in [Errno::PERM, Errno::NOSYS] {
        let result = in_child(|| {
            refuse(libc::SYS_io_uring_setup, errno);
            Ring::new()
                .err()
                .map_or(0, |errno| errno.raw_os_error() as u8)
        });
        assert_eq!(i32::from(result), errno.raw_os_error());
    }
}

#[test]
fn a_send_that_the_ring_cannot_submit_never_goes_out() {
    let rows = [
        (Errno::AGAIN, Errno::NOMEM),
        (Errno::BUSY, Errno::NOMEM),
        (Errno::INTR, Errno::NOMEM),
        (Errno::NOMEM, Errno::NOMEM),
        (Errno::PERM, Errno::NOSYS),
        (Errno::NOSYS, Errno::NOSYS),
    ];
    for (errno, expected) in rows {
        let result = result_under_filter(libc::SYS_io_uring_enter, errno);
        assert_eq!(i32::from(result), expected.raw_os_error(), "{errno:?}");
    }
}

/// The pages of a zero-copy send count against `RLIMIT_MEMLOCK`, but only in processes without
/// `CAP_IPC_LOCK`. So the child process gives up the privileges of root.
#[test]
fn a_send_over_the_limit_on_locked_memory_is_copied() {
    let pages = [pattern(0, 256 << 10)];
    let result = in_child(|| {
        // The limit is enough for the queues of the ring, which count against it too, but not for
        // the pages of the send.
        let limit = libc::rlimit {
            rlim_cur: 128 << 10,
            rlim_max: 128 << 10,
        };
        // SAFETY: the limit is a local that lives until the call returns.
        assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) }, 0);
        if rustix::process::geteuid().is_root() {
            // SAFETY: the call takes only numbers, no pointers. It changes only the calling thread,
            // which is the only thread of the child.
            let result = unsafe { libc::syscall(libc::SYS_setresuid, 65_534, 65_534, 65_534) };
            assert_eq!(result, 0);
        }
        let (sender, _receiver) = connect(1 << 20, 1 << 20);
        let ledger = TestLedger::new();
        let ring = new_ring();
        let (result, completion) = ledger.send(&ring, &sender, &pages);
        drop(completion);
        assert_eq!(ring.in_flight(), 0);
        assert!(!ring.is_retired());
        match result.map_err(status_of) {
            Err(Status::CopyOnce(errno)) => errno.raw_os_error() as u8,
            _ => 0,
        }
    });
    assert_eq!(i32::from(result), Errno::NOMEM.raw_os_error());
}

/// A waker that takes the ring's lock when it is woken. A thread that wakes it while holding that
/// lock would deadlock.
struct RingWaker(Arc<Ring>);

impl Wake for RingWaker {
    fn wake(self: Arc<Self>) {
        self.0.in_flight();
    }
}

/// A thread can find the ring broken after it has checked that the ring is not retired: while it
/// waited for the lock, another thread's submission failed. The sends then end, which runs foreign
/// code, and that must not happen while the lock is held.
#[test]
fn sends_with_a_broken_ring_end_without_the_lock() {
    for in_batch in [false, true] {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let (ring, ledger) = (new_ring(), TestLedger::new());
            let (sender, _receiver) = connect(1 << 20, 1 << 20);
            ring.lock().uring.break_off();
            let waker = Waker::from(Arc::new(RingWaker(Arc::clone(&ring))));
            let (part, mut completion) = ledger.part(Arc::clone(&ring) as _);
            let polled = Pin::new(&mut completion).poll(&mut Context::from_waker(&waker));
            assert!(polled.is_pending());
            let leases = Leases::from(ledger.lease(&pattern(0, 8192)));
            let mut results = Vec::new();
            if in_batch {
                let sink = Arc::new(sender.into());
                let send = QueuedSend { sink, leases, part };
                ring.send_all([send], |result| results.push(result));
            } else {
                results.push(ring.send(sender.as_fd(), leases, part));
            }
            assert!(ring.is_retired());
            assert_eq!(completion.outcome().map(|outcome| outcome.bytes), Some(0));
            assert_eq!(ledger.quota.in_flight_bytes(), 0);
            done.send(results).expect("received");
        });
        let results = is_done.recv_timeout(Duration::from_secs(20));
        assert_eq!(results, Ok(vec![Err(RING_RETIRED)]), "a deadlock");
    }
}

/// Notifications that arrive while the signals to the eventfd are switched off are not signalled,
/// so `without_signals` processes them before it returns. Otherwise nothing would process them
/// until the next notification arrives.
#[cfg(feature = "tokio")]
#[test]
fn notifications_that_arrive_without_a_signal_are_processed() {
    use crate::sys::{Kernel, Linux};

    let (ring, ledger) = (new_ring(), TestLedger::new());
    let (sender, receiver) = connect(1 << 20, 4 << 10);
    let eventfd = ring.notification_eventfd().expect("an eventfd");
    let accepted = ledger.fill(&ring, &sender, 32 << 10);
    assert!(ring.in_flight() > 0);
    let is_signalled = || {
        let mut ready = [PollFd::new(&eventfd, PollFlags::IN)];
        poll(&mut ready, Some(&Timespec::default())).expect("polled") > 0
    };
    // Forget the signals of notifications that arrived earlier.
    ring.reap();
    if is_signalled() {
        rustix::io::read(&eventfd, &mut [0; 8]).expect("read");
    }

    let mut state = ring.lock();
    state.without_signals(|state| {
        receive_and_check(&receiver, &accepted);
        // The kernel creates the notifications when the peer acknowledges the bytes, and the last
        // acknowledgement may be delayed.
        while Linux
            .acknowledged(sender.as_fd())
            .is_ok_and(|now| now.outstanding > 0)
        {
            thread::sleep(Duration::from_millis(1));
        }
        // The kernel posts the notifications to the ring when this thread next makes a system call.
        thread::sleep(Duration::from_millis(20));
        state.uring.wait(0).expect("entered");
    });
    assert!(!is_signalled(), "signals were switched off");
    assert_eq!(state.sends.len(), 0, "notifications were not processed");
    let ended = state.sends.take_ended();
    drop(state);
    complete_all(ended);
    wait_for_all(&accepted);
    assert_eq!(ledger.quota.in_flight_bytes(), 0);

    // The signals are on again, so notifications that arrive now are signalled.
    let accepted = ledger.fill(&ring, &sender, 32 << 10);
    receive_and_check(&receiver, &accepted);
    let mut ready = [PollFd::new(&eventfd, PollFlags::IN)];
    let limit = Timespec::try_from(Duration::from_secs(20)).expect("short");
    assert_eq!(poll(&mut ready, Some(&limit)), Ok(1), "no signal");
    wait_for_all(&accepted);
}

/// Fills every buffer with a different pattern, and overwrites the buffer once its sends are
/// complete. The receiver falls behind by pausing between reads, and checks every byte.
#[test]
fn overwriting_a_buffer_after_its_completion_does_not_change_what_was_sent() {
    const SENDS: u64 = 3000;
    let (sender, receiver) = connect(256 << 10, 16 << 10);
    let sizes = [1, 4096, 4097, 20_000, 65_536, 150_000];
    let size = move |seed: u64| sizes[(seed % sizes.len() as u64) as usize];
    let receiving = thread::spawn(move || {
        let mut receiver = receiver;
        let mut received = vec![0; 150_000];
        for seed in 0..SENDS {
            if seed % 64 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            let received = &mut received[..size(seed)];
            receiver.read_exact(received).expect("received");
            assert!(is_pattern(received, seed), "send {seed} was changed");
        }
    });
    let (ring, ledger) = (new_ring(), TestLedger::new());
    let mut in_flight: Vec<(Pages, Vec<Completion>)> = Vec::new();
    let mut overwritten = 0;
    for seed in 0..SENDS {
        let pages = pattern(seed, size(seed));
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
        in_flight.push((pages, completions));
        let (free, kept): (Vec<_>, Vec<_>) = in_flight.into_iter().partition(|(_, completions)| {
            completions
                .iter()
                .all(|completion| completion.outcome().is_some())
        });
        in_flight = kept;
        for (pages, _) in free {
            match pages.try_into_buffer() {
                Ok(mut buffer) => {
                    buffer.spare_mut().fill(0xa5);
                    overwritten += 1;
                }
                // The pages are still leased: a send that failed because the socket was full also
                // holds a lease, until its notification arrives. Try again after the next send.
                Err(pages) => in_flight.push((pages, Vec::new())),
            }
        }
    }
    for (_, completions) in &in_flight {
        for completion in completions {
            let outcome = completion.wait(COMPLETION_TIMEOUT).expect("complete");
            assert_eq!(outcome.reason, FreeReason::Notification);
        }
    }
    receiving.join().expect("no panic");
    assert!(
        overwritten > SENDS / 2,
        "only {overwritten} were overwritten"
    );
    assert_eq!((ledger.quota.in_flight_bytes(), ring.in_flight()), (0, 0));
}
