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

use uncopied::{Completion, Mechanism, SendOptions, SendOutcome, Sender};

use crate::harness::{
    Family, HANG_TIMEOUT, expect_bytes, pattern, pattern_pages, set_nonblocking,
    small_buffer_sender, unacknowledged_bytes, wait_until,
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

/// Counts how often it is woken.
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

/// Panics when it is woken, with a value that panics again when it is dropped.
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

/// A sender that is full, and its sends, of which at least the last four are in flight.
struct FullSender {
    sender: Sender<OwnedFd>,
    peer: File,
    sends: Vec<(u64, Completion)>,
}

impl FullSender {
    fn new(mechanism: Mechanism) -> Self {
        // Without this option, a send with `vmsplice` is complete at once.
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
        // The peer's kernel may still accept bytes for a moment, so fill the socket twice.
        for _ in 0..2 {
            loop {
                let sent = self.sender.try_send(&pages).unwrap();
                if sent.bytes() == 0 {
                    break;
                }
                assert_eq!(sent.report().by(mechanism), sent.bytes(), "{mechanism}");
                self.sends.push((sent.bytes(), sent.into_completion()));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// The index of the first send that is in flight.
    fn first_in_flight(&self) -> usize {
        let is_in_flight = |(_, completion): &(u64, Completion)| completion.outcome().is_none();
        let first = self.sends.iter().position(is_in_flight);
        let first = first.expect("a send in flight");
        assert!(first + 4 <= self.sends.len(), "too few sends are in flight");
        first
    }

    /// Reads all bytes, and waits until every notification has arrived. None is processed.
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

/// One task's waker panics. The tasks that polled before and after it are woken, and the thread
/// that processes the notifications goes on.
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

/// A waker of the first of several sends panics. The others complete with all of their bytes, and
/// none of their memory stays in flight.
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
        assert_eq!((full.sender.in_flight_bytes(), panics), (0, false));
    }
}

/// The sender and its thread are gone, so the reaper processes the notifications and wakes the
/// tasks. A waker that panics does not end the reaper.
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

/// Counts the wakers of this kind that exist.
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

/// A handle keeps the waker of its last poll only, and none once it is dropped.
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

/// Uses the completion that it waits for whenever it is cloned, woken or dropped.
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
            // A handle of its own: nothing but the library may hold a lock here.
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
        // SAFETY: waking by value consumes the waker, and dropping it uses the completion.
        unsafe { drop_waker(data) }
    }

    unsafe fn wake_by_ref(data: *const ()) {
        // SAFETY: the waker owns one count of the `Arc` during this call.
        unsafe { &*data.cast::<Called>() }.call();
    }

    unsafe fn drop_waker(data: *const ()) {
        // SAFETY: the waker owns one count of the `Arc`, which ends here.
        let called = unsafe { Arc::from_raw(data.cast::<Called>()) };
        called.call();
    }
}

/// Wakers are cloned, replaced, woken and dropped while the library holds no lock, so they may call
/// the library.
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
            // The waker refers to the completion, and the completion to the waker.
            called.completion.lock().unwrap().take();
            done.send(()).unwrap();
        });
        let result = is_done.recv_timeout(DEADLOCK_TIMEOUT);
        assert!(result.is_ok(), "{mechanism}: {result:?}");
    }
}

/// On tokio, a background task processes the notifications. It must survive a waker that panics.
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
            // Another thread reads, so that the notifications arrive while this one sleeps.
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
            // The ring still works: fill the socket again.
            full.fill(Mechanism::SendZc);
        }
    });
}
