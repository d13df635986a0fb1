//! The reaper: a thread that processes notifications for sockets and rings whose owner is gone.
//!
//! If a sender is dropped, or a thread with a ring ends, while memory is in flight, the memory must
//! be kept until its notifications arrive. The owner therefore hands its socket or ring to the
//! reaper, as an [`Orphan`]. There is one reaper thread per process, and only while it has orphans.
//! It sleeps until a notification arrives.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::sys::fork::PerProcess;

/// A socket or ring that has memory in flight, and whose owner is gone.
pub(crate) trait Orphan: Send {
    /// The descriptor that becomes ready when a notification has arrived.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// The events to poll the descriptor for.
    fn ready_for(&self) -> PollFlags;

    /// Processes the notifications that have arrived. Returns how many sends they completed.
    fn reap(&self) -> usize;

    /// Whether no memory is in flight any more.
    fn is_done(&self) -> bool;

    /// Makes the notifications arrive, if that is possible. It is called once, when there was no
    /// notification for [`UNRESPONSIVE_PEER_TIMEOUT`].
    fn give_up(&self);
}

/// The name of the thread in `ps` and debuggers: at most 15 bytes.
pub(crate) const REAPER_THREAD_NAME: &str = "uncopied-reaper";

/// How long the peer of an orphan may acknowledge nothing before the reaper gives up on it.
const UNRESPONSIVE_PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// How often the orphans are checked for that timeout.
const TIMEOUT_CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Back-off when a descriptor is ready but has no notification, as that of a broken connection, or
/// when the kernel cannot wait for this number of descriptors.
const NO_NOTIFICATION_BACKOFF: Duration = Duration::from_millis(5);

static REAPER: PerProcess<Reaper> = PerProcess::new();

#[derive(Default)]
struct Reaper(Mutex<Handover>);

/// What other threads hand over to the reaper thread.
#[derive(Default)]
struct Handover {
    /// Orphans that the thread has not taken over yet.
    adopted: Vec<AdoptedOrphan>,
    /// The eventfd that wakes the thread; `None` while there is no thread.
    wakeup: Option<Arc<OwnedFd>>,
}

struct AdoptedOrphan {
    orphan: Box<dyn Orphan>,
    /// When the last notification arrived.
    last_notified_at: Instant,
    has_given_up: bool,
}

/// Hands `orphan` to the reaper, which processes its notifications from now on. If the thread
/// cannot be started, the orphan and its memory in flight are leaked.
pub(crate) fn adopt(orphan: Box<dyn Orphan>) {
    let reaper = REAPER.get();
    let mut handover = reaper.lock();
    handover.adopted.push(AdoptedOrphan {
        orphan,
        last_notified_at: Instant::now(),
        has_given_up: false,
    });
    if let Some(wakeup) = &handover.wakeup {
        // It fails only if the counter is full, and then the thread has been woken already.
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
                thread::sleep(NO_NOTIFICATION_BACKOFF);
            }
            was_ready = wait(&orphans, wakeup);
        }
    }
}

/// Waits for a notification, a new orphan, or the next check for the timeout. Returns whether an
/// orphan was ready, or the kernel could not wait.
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
        // The counter is above 0, so that the read does not block. It resets the counter.
        let _ = rustix::io::read(wakeup, &mut [0; 8]);
    }
    count > usize::from(is_woken)
}

impl AdoptedOrphan {
    /// Processes the notifications that have arrived, or gives up if there were none for too long.
    /// Returns how many sends were completed.
    fn reap(&mut self) -> usize {
        // The wakers of completions are foreign code: one that panics must not end the thread.
        let reap = AssertUnwindSafe(|| self.orphan.reap());
        let completed = catch_unwind(reap).unwrap_or(1);
        if completed > 0 {
            self.last_notified_at = Instant::now();
        } else if !self.has_given_up && self.last_notified_at.elapsed() > UNRESPONSIVE_PEER_TIMEOUT
        {
            self.has_given_up = true;
            self.orphan.give_up();
        }
        completed
    }
}
