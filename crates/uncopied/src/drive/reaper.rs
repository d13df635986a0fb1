//! Takes in the notices of rings whose thread or runtime is gone.
//!
//! One thread for the whole process, which there is only while such rings are. It sleeps until a
//! notice comes, and ends when all have.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use std::{io, mem, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;

use crate::sys::fork;
use crate::sys::ring::Ring;

/// The name of the thread, as `ps` and debuggers show it: 15 bytes at most.
const NAME: &str = "uncopied-reaper";

/// How long the thread sleeps when it cannot wait for a notice because memory is short.
const SHORT_OF_MEMORY: Duration = Duration::from_millis(100);

/// The reaper of this process, in a chain that begins with those of its parents. The parent's thread
/// is not in the child, and its lock may be held for ever.
static FIRST: OnceLock<Reaper> = OnceLock::new();

struct Reaper {
    fork_generation: u64,
    orphans: Mutex<Orphans>,
    of_child: OnceLock<Box<Reaper>>,
}

#[derive(Default)]
struct Orphans {
    rings: Vec<Arc<Ring>>,
    /// Wakes the thread. There is one as long as there is a thread.
    bell: Option<Arc<OwnedFd>>,
}

/// Takes in the notices of `ring` from now on. Where no thread can be had for that, the ring and what it
/// has lent are leaked.
pub(super) fn adopt(ring: Arc<Ring>) {
    let reaper = Reaper::of_process();
    let mut orphans = reaper.lock();
    if orphans.rings.iter().any(|known| Arc::ptr_eq(known, &ring)) {
        return;
    }
    orphans.rings.push(ring);
    if let Some(bell) = &orphans.bell {
        // It fails only when it has been rung 2^64 times in vain.
        let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        return;
    }
    match reaper.start() {
        Ok(bell) => orphans.bell = Some(bell),
        Err(_) => mem::forget(mem::take(&mut orphans.rings)),
    }
}

impl Reaper {
    fn new(fork_generation: u64) -> Self {
        Self {
            fork_generation,
            orphans: Mutex::default(),
            of_child: OnceLock::new(),
        }
    }

    fn of_process() -> &'static Self {
        let generation = fork::generation();
        let mut reaper = FIRST.get_or_init(|| Self::new(generation));
        while reaper.fork_generation != generation {
            let of_child = || Box::new(Self::new(generation));
            reaper = reaper.of_child.get_or_init(of_child);
        }
        reaper
    }

    fn lock(&self) -> MutexGuard<'_, Orphans> {
        self.orphans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn start(&'static self) -> io::Result<Arc<OwnedFd>> {
        let bell = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let heard = Arc::clone(&bell);
        thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || self.run(&heard))?;
        Ok(bell)
    }

    fn run(&self, bell: &OwnedFd) {
        while let Some(rings) = self.reap() {
            let mut ready: Vec<_> = rings
                .iter()
                .map(|ring| PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN))
                .collect();
            ready.push(PollFd::new(bell, PollFlags::IN));
            match poll(&mut ready, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => thread::sleep(SHORT_OF_MEMORY),
            }
            // Empty, most often.
            let _ = rustix::io::read(bell, &mut [0; 8]);
        }
    }

    /// Takes in what is there, and says which rings still wait; `None` if none does, and the thread is to
    /// end.
    fn reap(&self) -> Option<Vec<Arc<Ring>>> {
        let rings = self.lock().rings.clone();
        for ring in &rings {
            // The wakers of completions are anybody's code. One that panics must not end the thread.
            let _ = catch_unwind(AssertUnwindSafe(|| ring.reap()));
        }
        drop(rings);
        let mut orphans = self.lock();
        orphans.rings.retain(|ring| ring.in_flight() > 0);
        if orphans.rings.is_empty() {
            orphans.bell = None;
            return None;
        }
        Some(orphans.rings.clone())
    }
}
