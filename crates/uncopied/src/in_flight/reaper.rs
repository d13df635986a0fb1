//! The reaper: a thread that processes notifications for sockets and rings whose owner is gone.
//!
//! If a sender is dropped, or a thread that has a ring ends, while memory is in flight, the memory
//! must stay allocated until its notifications arrive. So the socket or the ring is handed to the
//! reaper, as an [`Orphan`]. A process has at most one reaper thread: it starts with the first
//! orphan, and ends when the kernel is done with the memory of the last one. In between it sleeps
//! until a notification arrives, except for a timeout check every second. If an orphan's memory is
//! released without a notification, the thread polls instead.

use std::ops::RangeInclusive;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::sys::fork::PerProcess;

/// A socket or ring that has memory in flight, and whose owner is gone.
pub(crate) trait Orphan: Send {
    /// Returns the descriptor to poll. It becomes ready when a notification arrives.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Returns the events to poll the descriptor for. Empty for an error queue, because poll(2)
    /// reports `POLLERR` even if it is not requested.
    fn ready_for(&self) -> PollFlags;

    /// Processes the notifications that have arrived. Returns how many sends they completed.
    ///
    /// Must not panic, not even if a waker panics, because a panic would end the reaper thread. So
    /// the sends are completed with [`complete_all`](super::complete_all), which isolates wakers.
    fn reap(&self) -> usize;

    /// Whether the kernel is done with all of the orphan's memory. The reaper then drops the
    /// orphan.
    fn is_done(&self) -> bool;

    /// Whether the program no longer uses the orphan's connection, so that the reaper may
    /// [give up](Self::give_up).
    fn is_abandoned(&self) -> bool {
        true
    }

    /// Forces the remaining notifications to arrive if that is possible, for example by resetting
    /// the connection. Called at most once, after [`UNRESPONSIVE_PEER_TIMEOUT`] without a
    /// notification.
    fn give_up(&self);
}

/// The name of the reaper thread in `ps` and debuggers. Linux allows at most 15 bytes.
pub(crate) const REAPER_THREAD_NAME: &str = "uncopied-reaper";

/// The time without a notification after which the reaper [gives up](Orphan::give_up) on an orphan,
/// because the orphan's peer no longer acknowledges anything. If the program still uses the
/// connection at that time, the reaper waits for another period of this length.
const UNRESPONSIVE_PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// The interval at which the orphans are checked for [`UNRESPONSIVE_PEER_TIMEOUT`].
const TIMEOUT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// The shortest and the longest delay before the reaper polls again after a poll(2) that returned
/// without a notification. That happens if a descriptor is ready although it has no notification
/// (the socket of a broken connection is always ready, and so is that of an
/// [`OrphanedSocketQueue`](super::OrphanedSocketQueue) whose queue is short), or if poll(2) fails,
/// for example because there are too many descriptors.
const NO_NOTIFICATION_BACKOFF: RangeInclusive<Duration> =
    Duration::from_millis(5)..=Duration::from_millis(250);

static REAPER: PerProcess<Reaper> = PerProcess::new();

#[derive(Default)]
struct Reaper(Mutex<Handover>);

/// The state through which other threads hand orphans over to the reaper thread.
#[derive(Default)]
struct Handover {
    /// Orphans that the reaper thread has not yet taken from this list.
    adopted: Vec<AdoptedOrphan>,
    /// The eventfd that wakes the reaper thread; `None` while no such thread runs.
    wakeup: Option<Arc<OwnedFd>>,
}

struct AdoptedOrphan {
    orphan: Box<dyn Orphan>,
    /// When the last notification arrived or, if none has arrived yet, when the orphan was adopted.
    /// Also reset when the timeout has passed while the program still uses the orphan's connection.
    last_notified_at: Instant,
    has_given_up: bool,
}

/// Hands `orphan` to the reaper, which then processes the orphan's notifications. If the reaper
/// thread does not run and cannot be started, the orphan is leaked, together with its memory in
/// flight.
pub(crate) fn adopt(orphan: Box<dyn Orphan>) {
    let reaper = REAPER.get();
    let mut handover = reaper.lock();
    handover.adopted.push(AdoptedOrphan {
        orphan,
        last_notified_at: Instant::now(),
        has_given_up: false,
    });
    if let Some(wakeup) = &handover.wakeup {
        // The write fails only if the eventfd's counter is at its maximum. In that case an earlier
        // write has already woken the thread.
        let _ = rustix::io::write(wakeup, &1_u64.to_ne_bytes());
        return;
    }
    match reaper.start() {
        Ok(wakeup) => handover.wakeup = Some(wakeup),
        Err(_) => mem::forget(mem::take(&mut handover.adopted)),
    }
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Handover> {
        // A panic while the lock was held cannot have left the list inconsistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&'static self) -> io::Result<Arc<OwnedFd>> {
        let wakeup = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let own_wakeup = Arc::clone(&wakeup);
        thread::Builder::new()
            .name(REAPER_THREAD_NAME.to_owned())
            .spawn(move || self.run(&own_wakeup))?;
        Ok(wakeup)
    }

    fn run(&self, wakeup: &OwnedFd) {
        let mut orphans = Vec::new();
        let mut was_ready = false;
        loop {
            let mut handover = self.lock();
            orphans.append(&mut handover.adopted);
            if orphans.is_empty() {
                handover.wakeup = None;
                return;
            }
            drop(handover);
            let completed: usize = orphans.iter_mut().map(AdoptedOrphan::reap).sum();
            orphans.retain(|adopted| !adopted.orphan.is_done());
            if completed > 0 || orphans.is_empty() {
                was_ready = false;
                continue;
            }
            if was_ready {
                wait_for_wakeup(wakeup, backoff(&orphans));
            }
            was_ready = wait(&orphans, wakeup);
        }
    }
}

/// Returns the delay before the next poll(2), if the last one returned without a notification. The
/// delay grows with the time since the last notification, so that peers that do not read cost
/// little CPU time.
fn backoff(orphans: &[AdoptedOrphan]) -> Duration {
    let (min, max) = NO_NOTIFICATION_BACKOFF.into_inner();
    let since_last = orphans
        .iter()
        .map(|adopted| adopted.last_notified_at.elapsed())
        .min();
    (since_last.unwrap_or_default() / 8).clamp(min, max)
}

/// Waits for a new orphan, for at most `limit`.
fn wait_for_wakeup(wakeup: &OwnedFd, limit: Duration) {
    let timeout = Timespec::try_from(limit).ok();
    if poll(&mut [PollFd::new(wakeup, PollFlags::IN)], timeout.as_ref()).is_err() {
        thread::sleep(*NO_NOTIFICATION_BACKOFF.start());
    }
}

/// Waits for a notification, a new orphan, or the next timeout check. Returns true if an orphan's
/// descriptor was ready, or if poll(2) failed with an errno other than `EINTR`. If there is then no
/// notification to process, the next call would return at once too, so the caller must pause first.
fn wait(orphans: &[AdoptedOrphan], wakeup: &OwnedFd) -> bool {
    let mut ready = vec![PollFd::new(wakeup, PollFlags::IN)];
    for AdoptedOrphan { orphan, .. } in orphans {
        let descriptor = orphan.descriptor();
        ready.push(PollFd::from_borrowed_fd(descriptor, orphan.ready_for()));
    }
    let needs_check = orphans.iter().any(|adopted| !adopted.has_given_up);
    let interval = Timespec::try_from(TIMEOUT_CHECK_INTERVAL).ok();
    let timeout = interval.filter(|_| needs_check);
    let count = match poll(&mut ready, timeout.as_ref()) {
        Ok(count) => count,
        Err(errno) => return errno != Errno::INTR,
    };
    let is_woken = !ready[0].revents().is_empty();
    if is_woken {
        // Reading the eventfd resets its counter to 0, so that it is no longer ready.
        let _ = rustix::io::read(wakeup, &mut [0; 8]);
    }
    count > usize::from(is_woken)
}

impl AdoptedOrphan {
    /// Processes the notifications that have arrived. If none has arrived for
    /// [`UNRESPONSIVE_PEER_TIMEOUT`], gives up on the orphan. Returns the number of sends that were
    /// completed.
    fn reap(&mut self) -> usize {
        let completed = self.orphan.reap();
        if completed > 0 {
            self.last_notified_at = Instant::now();
        } else if !self.has_given_up && self.last_notified_at.elapsed() > UNRESPONSIVE_PEER_TIMEOUT
        {
            if self.orphan.is_abandoned() {
                self.has_given_up = true;
                self.orphan.give_up();
            } else {
                self.last_notified_at = Instant::now();
            }
        }
        completed
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use rustix::fs::OFlags;
    use rustix::io::FdFlags;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    use super::*;
    use crate::arena::{Memory, PageBuffer};
    use crate::in_flight::{
        ErrorQueue, Lease, OrphanedErrorQueue, Quota, SendTracker, SentLease, SocketQueue,
    };
    use crate::sys::Linux;
    use crate::sys::fork::tests::in_child;

    /// Returns an error queue with a send whose notification never arrives, because no system call
    /// has been made for it.
    fn queue_in_flight(socket: &TcpStream) -> Arc<ErrorQueue> {
        let queue = ErrorQueue::of(socket.as_fd()).expect("duplicated");
        let pages = PageBuffer::zeroed(1).expect("allocated").freeze();
        let lease = Lease::take(Memory::Pages(pages), &Quota::new(1 << 30));
        let lease = lease.expect("within the limit");
        let part = SendTracker::new().part(&Arc::default(), None);
        let sent = queue.send(SentLease { lease, part }, |_| Ok(1));
        assert_eq!(sent, Ok(1));
        Arc::new(queue)
    }

    /// If a peer has stopped reading, the reaper resets the connection after the timeout, unless
    /// the program still has a descriptor of the socket. The program may have dropped only one of
    /// two senders, or it may have kept a clone of the socket to read from.
    #[test]
    fn a_connection_is_reset_only_if_the_program_no_longer_uses_it() {
        for has_gifted_bytes in [false, true] {
            check_reset(has_gifted_bytes);
        }
    }

    /// If gifted bytes are in the socket's queue as well, the library has two duplicates of the
    /// descriptor. Neither of them is a descriptor of the program.
    fn check_reset(has_gifted_bytes: bool) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let mut socket = TcpStream::connect(address).expect("connected");
        let (mut peer, _) = listener.accept().expect("accepted");
        let timed_out = || past(UNRESPONSIVE_PEER_TIMEOUT + Duration::from_secs(1));
        let mut adopted = AdoptedOrphan {
            orphan: Box::new(OrphanedErrorQueue {
                queue: queue_in_flight(&socket),
                socket_queue: has_gifted_bytes.then(|| {
                    let queue = SocketQueue::of(&Linux, socket.as_fd(), true);
                    Arc::new(queue.expect("duplicated"))
                }),
            }),
            last_notified_at: timed_out(),
            has_given_up: false,
        };
        assert_eq!(adopted.reap(), 0);
        assert!(!adopted.has_given_up, "the program has a descriptor");
        assert!(adopted.last_notified_at.elapsed() < UNRESPONSIVE_PEER_TIMEOUT);
        socket.write_all(b"still open").expect("not reset");
        peer.read_exact(&mut [0; 10]).expect("every byte");

        drop(socket);
        adopted.last_notified_at = timed_out();
        assert_eq!(adopted.reap(), 0);
        assert!(adopted.has_given_up);
        let error = peer.read(&mut [0]).expect_err("reset");
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    /// An orphan that does what the test wants.
    struct FakeOrphan {
        descriptor: OwnedFd,
        state: Arc<FakeState>,
    }

    #[derive(Default)]
    struct FakeState {
        /// How many notifications the next calls of `reap` find, one after the other.
        notifications: Mutex<VecDeque<usize>>,
        reaps: AtomicUsize,
        times_given_up: AtomicUsize,
        is_done: AtomicBool,
    }

    impl Orphan for FakeOrphan {
        fn descriptor(&self) -> BorrowedFd<'_> {
            self.descriptor.as_fd()
        }

        fn ready_for(&self) -> PollFlags {
            PollFlags::empty()
        }

        fn reap(&self) -> usize {
            self.state.reaps.fetch_add(1, Ordering::Relaxed);
            let mut notifications = self.state.notifications.lock().expect("no panic");
            notifications.pop_front().unwrap_or(0)
        }

        fn is_done(&self) -> bool {
            self.state.is_done.load(Ordering::Relaxed)
        }

        fn give_up(&self) {
            self.state.times_given_up.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn adopted(descriptor: OwnedFd) -> (AdoptedOrphan, Arc<FakeState>) {
        let state = Arc::<FakeState>::default();
        let orphan = FakeOrphan {
            descriptor,
            state: Arc::clone(&state),
        };
        let adopted = AdoptedOrphan {
            orphan: Box::new(orphan),
            last_notified_at: Instant::now(),
            has_given_up: false,
        };
        (adopted, state)
    }

    /// Returns the end of a pipe whose other end is closed, which is always ready.
    fn ready_descriptor() -> OwnedFd {
        rustix::pipe::pipe().expect("created").0
    }

    fn past(time: Duration) -> Instant {
        Instant::now().checked_sub(time).expect("a past time")
    }

    fn wakeup() -> OwnedFd {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("created")
    }

    #[test]
    fn an_orphan_is_given_up_once_and_only_after_the_timeout() {
        let (mut adopted, state) = adopted(wakeup());
        let mut reap = |last_notified_at, count| {
            adopted.last_notified_at = last_notified_at;
            state
                .notifications
                .lock()
                .expect("no panic")
                .push_back(count);
            assert_eq!(adopted.reap(), count);
            let is_recent = adopted.last_notified_at.elapsed() < UNRESPONSIVE_PEER_TIMEOUT;
            (state.times_given_up.load(Ordering::Relaxed), is_recent)
        };
        let timeout = UNRESPONSIVE_PEER_TIMEOUT + Duration::from_secs(1);
        assert_eq!(reap(Instant::now(), 0), (0, true));
        assert_eq!(reap(past(timeout), 2), (0, true));
        assert_eq!(reap(past(timeout), 0), (1, false));
        assert_eq!(reap(past(timeout), 0), (1, false));
    }

    #[test]
    fn the_delay_between_polls_grows_with_the_time_since_the_last_notification() {
        let (mut first, _) = adopted(wakeup());
        let (mut second, _) = adopted(wakeup());
        second.last_notified_at = past(Duration::from_secs(100));
        let mut delay = |time| {
            first.last_notified_at = past(time);
            backoff(std::slice::from_ref(&first))
        };
        let ms = Duration::from_millis;
        assert!((ms(5)..ms(80)).contains(&delay(Duration::ZERO)));
        assert!((ms(100)..ms(200)).contains(&delay(ms(800))));
        assert_eq!(delay(Duration::from_secs(100)), ms(250));
        first.last_notified_at = past(ms(800));
        assert!((ms(100)..ms(200)).contains(&backoff(&[first, second])));
    }

    /// The reaper must pause only if an orphan is ready.
    #[test]
    fn waiting_ends_when_an_orphan_is_ready_or_added_or_must_be_checked() {
        let own_wakeup = wakeup();
        let wake = || rustix::io::write(&own_wakeup, &1_u64.to_ne_bytes()).expect("written");
        wake();
        assert!(!wait(&[], &own_wakeup), "an orphan was added");
        let counter = rustix::io::read(&own_wakeup, &mut [0; 8]);
        assert_eq!(counter, Err(Errno::AGAIN), "the counter was reset");

        let (ready, _) = adopted(ready_descriptor());
        let ready = std::slice::from_ref(&ready);
        assert!(wait(ready, &own_wakeup), "the orphan is ready");
        wake();
        assert!(wait(ready, &own_wakeup), "both");

        let (idle, _) = adopted(wakeup());
        assert!(!wait(&[idle], &own_wakeup), "the next check");
    }

    #[test]
    fn a_pause_ends_when_an_orphan_is_added() {
        let own_wakeup = wakeup();
        let pause = |limit| {
            let began = Instant::now();
            wait_for_wakeup(&own_wakeup, limit);
            began.elapsed()
        };
        let short = Duration::from_millis(50);
        assert!(pause(short) >= short);
        rustix::io::write(&own_wakeup, &1_u64.to_ne_bytes()).expect("written");
        let long = Duration::from_secs(10);
        assert!(pause(long) < long);
    }

    /// Runs a reaper with one orphan, for `limit` or until `is_over`.
    fn run_reaper(
        (adopted, state): (AdoptedOrphan, &FakeState),
        limit: Duration,
        is_over: impl Fn() -> bool,
    ) {
        let reaper = Reaper::default();
        reaper.lock().adopted.push(adopted);
        let own_wakeup = wakeup();
        thread::scope(|scope| {
            scope.spawn(|| reaper.run(&own_wakeup));
            let began = Instant::now();
            while began.elapsed() < limit && !is_over() {
                thread::sleep(Duration::from_millis(1));
            }
            state.is_done.store(true, Ordering::Relaxed);
            rustix::io::write(&own_wakeup, &1_u64.to_ne_bytes()).expect("written");
        });
    }

    #[test]
    fn the_reaper_sleeps_while_no_notification_arrives() {
        for descriptor in [wakeup(), ready_descriptor()] {
            let limit = Duration::from_millis(300);
            let (adopted, state) = adopted(descriptor);
            run_reaper((adopted, &state), limit, || false);
            // The shortest pause is 5 ms.
            let reaps = state.reaps.load(Ordering::Relaxed);
            assert!((2..200).contains(&reaps), "{reaps}");
        }
    }

    #[test]
    fn the_reaper_does_not_pause_while_notifications_arrive() {
        const COUNT: usize = 1000;
        let (adopted, state) = adopted(ready_descriptor());
        *state.notifications.lock().expect("no panic") = VecDeque::from([1; COUNT]);
        let pauses = *NO_NOTIFICATION_BACKOFF.start() * COUNT as u32;
        let is_over = || state.notifications.lock().expect("no panic").is_empty();
        run_reaper((adopted, &state), pauses / 2, is_over);
        assert!(is_over());
    }

    #[test]
    fn other_programs_do_not_inherit_the_descriptor_of_the_reaper() {
        let reaper: &'static Reaper = Box::leak(Box::default());
        let wakeup = reaper.start().expect("started");
        let flags = rustix::io::fcntl_getfd(&wakeup).expect("read");
        assert!(flags.contains(FdFlags::CLOEXEC));
        let status = rustix::fs::fcntl_getfl(&wakeup).expect("read");
        assert!(status.contains(OFlags::NONBLOCK));
    }

    /// If poll(2) fails, for example because there are more descriptors than the process may open,
    /// the reaper must pause before it tries again.
    #[test]
    fn a_failed_poll_counts_as_ready() {
        let own_wakeup = wakeup();
        let is_ready = in_child(|| {
            let limit = Rlimit {
                current: Some(0),
                ..getrlimit(Resource::Nofile)
            };
            let is_set = setrlimit(Resource::Nofile, limit).is_ok();
            u8::from(is_set && wait(&[], &own_wakeup))
        });
        assert_eq!(is_ready, 1);
    }
}
