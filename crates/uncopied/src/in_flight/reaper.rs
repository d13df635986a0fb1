//! What goes on after its owner is gone: taking in the notices of memory that is still lent.
//!
//! One thread for the process, which there is only while there is something to wait for. It sleeps until
//! a notice comes.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{io, mem, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::sys::fork::PerProcess;

/// Something that memory is lent to, and that nobody else looks after any more.
pub(crate) trait Orphan: Send {
    /// What becomes ready when a notice has come.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// What to wait for on it.
    fn ready_for(&self) -> PollFlags;

    /// Takes in the notices that are there. Answers how many sends they settled.
    fn reap(&self) -> usize;

    /// Whether everything has come back.
    fn is_done(&self) -> bool;

    /// Called once if no notice has come for [`PATIENCE`]: to make them come, if that can be done.
    fn give_up(&self);
}

/// The name of the thread, as `ps` and debuggers show it: 15 bytes at most.
const NAME: &str = "uncopied-reaper";

/// How long a peer may take nothing, after the sender is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often it is looked whether somebody's patience is at its end.
const TURN: Duration = Duration::from_secs(1);

/// For so long nothing is looked at that is ready and has no notice, as a connection that is gone, or
/// while the kernel cannot wait for so much.
const PAUSE: Duration = Duration::from_millis(5);

static REAPER: PerProcess<Reaper> = PerProcess::new();

#[derive(Default)]
struct Reaper(Mutex<Intake>);

#[derive(Default)]
struct Intake {
    wards: Vec<Ward>,
    /// Wakes the thread. There is one as long as there is a thread.
    bell: Option<Arc<OwnedFd>>,
}

struct Ward {
    orphan: Box<dyn Orphan>,
    /// When the last notice came.
    since: Instant,
    has_given_up: bool,
}

/// Takes in the notices of `orphan` from now on. Where no thread can be had for that, it and what is
/// lent to it are leaked.
pub(crate) fn adopt(orphan: Box<dyn Orphan>) {
    let reaper = REAPER.get();
    let mut intake = reaper.lock();
    intake.wards.push(Ward {
        orphan,
        since: Instant::now(),
        has_given_up: false,
    });
    if let Some(bell) = &intake.bell {
        // It fails only when it has been rung 2^64 times in vain.
        let _ = rustix::io::write(bell, &1_u64.to_ne_bytes());
        return;
    }
    match reaper.start() {
        Ok(bell) => intake.bell = Some(bell),
        Err(_) => mem::forget(mem::take(&mut intake.wards)),
    }
}

impl Reaper {
    fn lock(&self) -> MutexGuard<'_, Intake> {
        // The list is whole between any two of the statements that could panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
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
        let mut wards = Vec::new();
        let mut was_ready = false;
        loop {
            let mut intake = self.lock();
            wards.append(&mut intake.wards);
            if wards.is_empty() {
                intake.bell = None;
                return;
            }
            drop(intake);
            let settled: usize = wards.iter_mut().map(Ward::look_after).sum();
            wards.retain(|ward| !ward.orphan.is_done());
            if settled > 0 || wards.is_empty() {
                was_ready = false;
                continue;
            }
            if was_ready {
                thread::sleep(PAUSE);
            }
            was_ready = wait(&wards, bell);
        }
    }
}

/// Waits for notices, new wards, or the end of somebody's patience. Answers whether an orphan was ready, or
/// the kernel would not wait.
fn wait(wards: &[Ward], bell: &OwnedFd) -> bool {
    let mut ready = vec![PollFd::new(bell, PollFlags::IN)];
    for ward in wards {
        let orphan = &ward.orphan;
        let descriptor = orphan.descriptor();
        ready.push(PollFd::from_borrowed_fd(descriptor, orphan.ready_for()));
    }
    let has_patience = wards.iter().any(|ward| !ward.has_given_up);
    let turn = Timespec::try_from(TURN).ok().filter(|_| has_patience);
    let count = match poll(&mut ready, turn.as_ref()) {
        Ok(count) => count,
        Err(errno) => return errno != Errno::INTR,
    };
    let has_rung = !ready[0].revents().is_empty();
    if has_rung {
        // There is something in it, so that it does not wait.
        let _ = rustix::io::read(bell, &mut [0; 8]);
    }
    count > usize::from(has_rung)
}

impl Ward {
    fn look_after(&mut self) -> usize {
        // The wakers of completions are anybody's code. One that panics must not end the thread.
        let reap = AssertUnwindSafe(|| self.orphan.reap());
        let settled = catch_unwind(reap).unwrap_or(1);
        if settled > 0 {
            self.since = Instant::now();
        } else if !self.has_given_up && self.since.elapsed() > PATIENCE {
            self.has_given_up = true;
            self.orphan.give_up();
        }
        settled
    }
}
