//! What goes on after its owner is gone: waiting for the notices of memory that is still lent.
//!
//! One thread for the process, which is started at need and ends when there is nothing left to wait
//! for.

use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Something that memory is lent to, and that nobody else looks after any more.
pub(crate) trait Orphan: Send {
    /// What becomes ready when a notice has come.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// What to wait for on it.
    fn ready_for(&self) -> PollFlags;

    /// Takes in the notices that are there. Answers how many sends they settled.
    fn reap(&mut self) -> usize;

    /// Whether everything has come back.
    fn is_done(&self) -> bool;

    /// Called once if no notice has come for [`PATIENCE`]: to make them come, if that can be done.
    fn give_up(&mut self);
}

/// How long a peer may take nothing, after the sender is gone.
const PATIENCE: Duration = Duration::from_secs(60);

/// For so long at most new orphans wait to be looked at.
const TURN: Duration = Duration::from_millis(20);

/// For so long nothing is looked at that is ready and has no notice, as a connection that is gone.
const PAUSE: Duration = Duration::from_millis(2);

struct Ward {
    orphan: Box<dyn Orphan>,
    since: Instant,
    has_given_up: bool,
}

#[derive(Default)]
struct Intake {
    waiting: Vec<Ward>,
    is_running: bool,
}

static INTAKE: Mutex<Intake> = Mutex::new(Intake {
    waiting: Vec::new(),
    is_running: false,
});

/// Looks after an orphan until everything has come back. Where no thread can be started it stays in the
/// list, with all that is lent to it: leaked, until another one is adopted.
pub(crate) fn adopt(orphan: Box<dyn Orphan>) {
    let mut intake = lock();
    intake.waiting.push(Ward {
        orphan,
        since: Instant::now(),
        has_given_up: false,
    });
    if !intake.is_running {
        let started = thread::Builder::new()
            .name("uncopied-reaper".to_owned())
            .spawn(run);
        intake.is_running = started.is_ok();
    }
}

fn lock() -> MutexGuard<'static, Intake> {
    // The list is whole between any two of the statements that could panic.
    INTAKE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn run() {
    let mut wards: Vec<Ward> = Vec::new();
    loop {
        let mut intake = lock();
        wards.append(&mut intake.waiting);
        if wards.is_empty() {
            intake.is_running = false;
            return;
        }
        drop(intake);
        let settled: usize = wards.iter_mut().map(Ward::look_after).sum();
        wards.retain(|ward| !ward.orphan.is_done());
        if settled == 0 && wait(&wards) {
            thread::sleep(PAUSE);
        }
    }
}

/// Waits for a turn at most. Answers whether something was ready.
fn wait(wards: &[Ward]) -> bool {
    let mut ready: Vec<PollFd<'_>> = wards
        .iter()
        .map(|ward| PollFd::from_borrowed_fd(ward.orphan.descriptor(), ward.orphan.ready_for()))
        .collect();
    let turn = Timespec::try_from(TURN).ok();
    poll(&mut ready, turn.as_ref()).is_ok_and(|count| count > 0)
}

impl Ward {
    fn look_after(&mut self) -> usize {
        let settled = self.orphan.reap();
        if settled > 0 {
            self.since = Instant::now();
        } else if !self.has_given_up && self.since.elapsed() > PATIENCE {
            self.has_given_up = true;
            self.orphan.give_up();
        }
        settled
    }
}
