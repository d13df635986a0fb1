//! Wakers of tasks that wait for completions: wakers that panic, that call the library, and that
//! are no longer needed.

#![allow(unsafe_code)]

use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, RawWaker, RawWakerVTable, Wake, Waker};
use std::thread;
use std::time::Duration;

use uncopied::{Completion, ErrorKind, Mechanism, SendOptions, SendOutcome, Sender};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, pattern, pattern_pages, set_nonblocking,
    small_buffer_sender, unacknowledged_bytes, unless_blocked, wait_until,
};

const SEND_BYTES: usize = 16 << 10;

/// The mechanisms whose memory is in flight until the peer has read or acknowledged it.
const MECHANISMS: [Mechanism; 3] = [
    Mechanism::MsgZerocopy,
    Mechanism::SendZc,
    Mechanism::Vmsplice,
];

/// How long a test waits before it concludes that a thread is deadlocked.
const DEADLOCK_TIMEOUT: Duration = Duration::from_secs(20);

/// A waker that counts how often it is woken.
#[derive(Default)]
struct CountingWaker(AtomicUsize);

impl CountingWaker {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl Wake for CountingWaker {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A waker that panics when it is woken. The payload of the panic panics again when it is dropped.
struct PanickingWaker;

impl Wake for PanickingWaker {
    fn wake(self: Arc<Self>) {
        struct PanicsAgain;
        impl Drop for PanicsAgain {
            fn drop(&mut self) {
                panic!("the value of the panic is dropped");
            }
        }
        std::panic::panic_any(PanicsAgain);
    }
}

fn poll(completion: &mut Completion, waker: &Waker) -> Poll<SendOutcome> {
    Pin::new(completion).poll(&mut Context::from_waker(waker))
}

fn poll_pending(completion: &mut Completion, waker: &Waker) {
    assert!(poll(completion, waker).is_pending(), "already complete");
}

/// A sender whose socket is full, its peer, and its sends, each with the number of bytes sent. At
/// first, at least the last four sends are in flight.
struct FullSender {
    sender: Sender<OwnedFd>,
    peer: File,
    sends: Vec<(u64, Completion)>,
}

impl FullSender {
    fn new(mechanism: Mechanism) -> Self {
        // Without this option, a send with `vmsplice` is complete at once: the peer is on this
        // machine, so the pages would be gifted to the kernel.
        let options = SendOptions::default().assume_remote_peer(true);
        let (sender, peer) = small_buffer_sender(Family::Tcp, &[mechanism], options);
        set_nonblocking(sender.get_ref());
        let mut full = Self {
            sender,
            peer,
            sends: Vec::new(),
        };
        full.fill(mechanism);
        full
    }

    fn fill(&mut self, mechanism: Mechanism) {
        let pages = pattern_pages(SEND_BYTES);
        // When the socket is full for the first time, the kernel may still be moving queued bytes
        // to the peer, which makes room again. So wait a moment, and fill the socket a second time.
        for _ in 0..2 {
            while let Some(sent) =
                unless_blocked(self.sender.try_send(&pages), ErrorKind::WouldBlock)
            {
                assert_eq!(sent.report().by(mechanism), sent.bytes(), "{mechanism}");
                self.sends.push((sent.bytes(), sent.into_completion()));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Returns the index of the first send in flight. Asserts that this send and at least three
    /// later ones are in flight.
    fn first_in_flight(&self) -> usize {
        let is_in_flight = |(_, completion): &(u64, Completion)| completion.outcome().is_none();
        let first = self.sends.iter().position(is_in_flight);
        let first = first.expect("a send in flight");
        assert!(first + 4 <= self.sends.len(), "too few sends are in flight");
        first
    }

    /// Reads the bytes of all sends from the peer's socket, and waits until every notification has
    /// arrived. Does not process the notifications.
    fn receive(&mut self) {
        for (bytes, _) in &self.sends {
            expect_bytes(&mut self.peer, &pattern(*bytes as usize));
        }
        wait_until("every byte is acknowledged", || {
            unacknowledged_bytes(self.sender.get_ref()) == 0
        });
        thread::sleep(Duration::from_millis(20));
    }
}

/// Processes the notifications of all sends, and returns whether that panicked.
fn reap_panics(sender: &Sender<OwnedFd>, completion: &Completion) -> bool {
    let reap = AssertUnwindSafe(|| {
        sender.reap();
        let _ = completion.outcome();
    });
    catch_unwind(reap).map_err(std::mem::forget).is_err()
}

/// Three handles wait for the same send, and the waker of the second one panics. The other two must
/// still be woken, and the panic must not reach the thread that processes the notifications.
#[test]
fn a_waker_that_panics_does_not_keep_others_of_its_send_from_being_woken() {
    for mechanism in MECHANISMS {
        let mut full = FullSender::new(mechanism);
        let completion = &full.sends.last().unwrap().1;
        let wakers = [(), ()].map(|()| Arc::new(CountingWaker::default()));
        let mut handles = [(), (), ()].map(|()| completion.clone());
        poll_pending(&mut handles[0], &wakers[0].clone().into());
        poll_pending(&mut handles[1], &Arc::new(PanickingWaker).into());
        poll_pending(&mut handles[2], &wakers[1].clone().into());
        full.receive();
        let (_, completion) = full.sends.last().unwrap();
        let panics = reap_panics(&full.sender, completion);
        assert!(completion.outcome().is_some());
        let counts = wakers.map(|waker| waker.count());
        assert_eq!((counts, panics), ([1, 1], false), "{mechanism}");
    }
}

/// Several sends are in flight, and a waker that waits for the first one panics. All of the sends
/// must still complete with all of their bytes, and no memory may stay in flight.
#[test]
fn a_waker_that_panics_does_not_change_the_outcome_of_other_sends() {
    for mechanism in MECHANISMS {
        let mut full = FullSender::new(mechanism);
        let first = full.first_in_flight();
        let mut panicking = full.sends[first].1.clone();
        poll_pending(&mut panicking, &Arc::new(PanickingWaker).into());
        full.receive();
        let panics = reap_panics(&full.sender, &full.sends[first].1);
        for (bytes, completion) in &full.sends {
            let outcome = completion.wait(Some(HANG_TIMEOUT)).unwrap();
            assert_eq!(outcome.bytes, *bytes, "{mechanism}");
        }
        // With `vmsplice`, the last send, which the full socket refused, has left its bytes in a
        // pipe.
        let in_pipe = match mechanism {
            Mechanism::Vmsplice => SEND_BYTES as u64,
            _ => 0,
        };
        assert_eq!((full.sender.in_flight_bytes(), panics), (in_pipe, false));
    }
}

/// The sender and the thread that used it are gone, so the library's reaper thread processes the
/// notifications and wakes the tasks. A waker that panics must not end the reaper.
#[test]
fn a_waker_that_panics_in_the_reaper_does_not_change_other_sends() {
    for mechanism in [Mechanism::MsgZerocopy, Mechanism::SendZc] {
        let sending = thread::spawn(move || {
            let full = FullSender::new(mechanism);
            let first = full.first_in_flight();
            let mut panicking = full.sends[first].1.clone();
            poll_pending(&mut panicking, &Arc::new(PanickingWaker).into());
            (full.peer, full.sends, panicking)
        });
        let (mut peer, sends, _panicking) = sending.join().unwrap();
        let woken = Arc::new(CountingWaker::default());
        let mut last = sends.last().unwrap().1.clone();
        poll_pending(&mut last, &woken.clone().into());
        for (bytes, _) in &sends {
            expect_bytes(&mut peer, &pattern(*bytes as usize));
        }
        wait_until("the last task is woken", || woken.count() == 1);
        for (bytes, completion) in &sends {
            let outcome = completion.outcome().unwrap();
            assert_eq!(outcome.bytes, *bytes, "{mechanism}");
        }
    }
}

/// A waker that does nothing when it is woken. The number is that of the `CountedWaker`s that
/// exist.
struct CountedWaker(Arc<AtomicUsize>);

impl CountedWaker {
    fn counted_in(existing: &Arc<AtomicUsize>) -> Waker {
        existing.fetch_add(1, Ordering::SeqCst);
        Arc::new(Self(Arc::clone(existing))).into()
    }
}

impl Wake for CountedWaker {
    fn wake(self: Arc<Self>) {}
}

impl Drop for CountedWaker {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Each handle to a completion must keep only the waker of its last poll, and must drop that waker
/// when the handle is dropped or the send completes.
#[test]
fn a_completion_keeps_one_waker_for_each_handle() {
    const POLLS: usize = 20_000;
    let mut full = FullSender::new(Mechanism::MsgZerocopy);
    let existing = Arc::new(AtomicUsize::new(0));
    let kept = || existing.load(Ordering::SeqCst);

    let mut handle = full.sends.last().unwrap().1.clone();
    for _ in 0..POLLS {
        poll_pending(&mut handle, &CountedWaker::counted_in(&existing));
        assert_eq!(kept(), 1);
    }
    for _ in 0..POLLS {
        let mut clone = handle.clone();
        poll_pending(&mut clone, &CountedWaker::counted_in(&existing));
        assert_eq!(kept(), 2);
    }
    assert_eq!(kept(), 1, "the wakers of dropped handles");

    // Handles that exist at the same time each keep a waker of their own.
    let mut handles = vec![handle.clone(); 5];
    for handle in &mut handles {
        poll_pending(handle, &CountedWaker::counted_in(&existing));
    }
    assert_eq!(kept(), 6);
    drop(handle);
    assert_eq!(kept(), 5);
    full.receive();
    full.sender.reap();
    assert_eq!(kept(), 0, "the send is complete");
    assert!(handles.iter().all(|handle| handle.outcome().is_some()));
}

/// A waker that calls the library whenever it is cloned, woken or dropped: each time, it looks up
/// the outcome of the completion for which it waits.
mod calling_waker {
    use super::*;

    /// The completion, and the number of times that a waker has used it.
    pub(super) struct Called {
        pub(super) completion: Mutex<Option<Completion>>,
        pub(super) calls: AtomicUsize,
    }

    impl Called {
        fn call(&self) {
            self.calls.fetch_add(1, Ordering::SeqCst);
            // Clone the completion, so that this mutex is unlocked again before the library is
            // called. So if the call deadlocks, the reason is a lock that the library holds.
            let completion = self.completion.lock().unwrap().clone();
            let _ = completion.map(|it| it.outcome());
        }
    }

    const VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_waker);

    pub(super) fn new(called: &Arc<Called>) -> Waker {
        // SAFETY: the pointer comes from an `Arc` that belongs to the waker, and the functions of
        // the table keep the count of that `Arc` as the contract of `RawWakerVTable` demands.
        unsafe { Waker::from_raw(raw(Arc::clone(called))) }
    }

    fn raw(called: Arc<Called>) -> RawWaker {
        RawWaker::new(Arc::into_raw(called).cast(), &VTABLE)
    }

    unsafe fn clone(data: *const ()) -> RawWaker {
        // SAFETY: the waker owns one count of the `Arc`, and `ManuallyDrop` leaves that count to
        // it.
        let called = unsafe { Arc::from_raw(data.cast::<Called>()) };
        let called = ManuallyDrop::new(called);
        called.call();
        raw(Arc::clone(&called))
    }

    unsafe fn wake(data: *const ()) {
        // SAFETY: waking by value consumes the waker, so this call may drop it. `drop_waker` also
        // calls the library.
        unsafe { drop_waker(data) }
    }

    unsafe fn wake_by_ref(data: *const ()) {
        // SAFETY: the waker owns one count of the `Arc` during this call.
        unsafe { &*data.cast::<Called>() }.call();
    }

    unsafe fn drop_waker(data: *const ()) {
        // SAFETY: the waker owns one count of the `Arc`, and gives that count up here.
        let called = unsafe { Arc::from_raw(data.cast::<Called>()) };
        called.call();
    }
}

/// The library must hold none of its locks while it clones, replaces, wakes or drops a waker,
/// because the waker may call the library. If the library holds a lock that the call needs, this
/// test deadlocks, and fails after [`DEADLOCK_TIMEOUT`].
#[test]
fn a_waker_may_call_the_library() {
    for mechanism in MECHANISMS {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || {
            let mut full = FullSender::new(mechanism);
            let mut waiting = full.sends.last().unwrap().1.clone();
            let called = Arc::new(calling_waker::Called {
                completion: Mutex::new(Some(waiting.clone())),
                calls: AtomicUsize::new(0),
            });
            for _ in 0..3 {
                poll_pending(&mut waiting, &calling_waker::new(&called));
            }
            let mut dropped = waiting.clone();
            poll_pending(&mut dropped, &calling_waker::new(&called));
            drop(dropped);
            let before = called.calls.load(Ordering::SeqCst);
            full.receive();
            reap_panics(&full.sender, &waiting);
            assert!(waiting.outcome().is_some());
            assert!(called.calls.load(Ordering::SeqCst) > before, "never woken");
            // Break the cycle of references between `called` and the completion, whose wakers refer
            // to `called`.
            called.completion.lock().unwrap().take();
            done.send(()).unwrap();
        });
        let result = is_done.recv_timeout(DEADLOCK_TIMEOUT);
        assert!(result.is_ok(), "{mechanism}: {result:?}");
    }
}

/// On tokio, a background task processes the notifications. This task must survive a waker that
/// panics.
#[cfg(feature = "tokio")]
#[test]
fn a_waker_that_panics_does_not_stop_notifications_on_tokio() {
    crate::harness::runtime().block_on(async {
        let mut full = FullSender::new(Mechanism::SendZc);
        let first = full.first_in_flight();
        let mut panicking = full.sends[first].1.clone();
        poll_pending(&mut panicking, &Arc::new(PanickingWaker).into());
        for _ in 0..2 {
            let (bytes, last) = full.sends.last().unwrap().clone();
            let waiting = tokio::spawn(last);
            tokio::task::yield_now().await;
            // Read on another thread, so that the notifications arrive while the runtime's thread
            // sleeps.
            let reading = tokio::task::spawn_blocking(move || {
                full.receive();
                full
            });
            full = reading.await.unwrap();
            let outcome = tokio::time::timeout(HANG_TIMEOUT, waiting).await;
            let outcome = outcome.expect("woken").unwrap();
            assert_eq!(outcome.bytes, bytes);
            for (bytes, completion) in full.sends.drain(..) {
                assert_eq!(completion.outcome().expect("complete").bytes, bytes);
            }
            // Fill the socket again, to check that the background task still processes
            // notifications after the panic.
            full.fill(Mechanism::SendZc);
        }
    });
}
