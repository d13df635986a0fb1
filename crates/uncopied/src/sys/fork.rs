//! What a fork does, for everything that the kernel or a lock ties to one process.
//!
//! After `fork(2)` the child has a copy of every ledger of memory in flight, and of the locks over
//! them in the state they were in at that moment. But the kernel's notifications go to the parent,
//! and the threads that held the locks exist only there. So a value that was made before the fork is
//! the parent's: [`OwnerProcess`] tells the child to leave it alone, and [`PerProcess`] gives the
//! child a value of its own.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

static FORKS: AtomicU64 = AtomicU64::new(0);
static IS_COUNTED: AtomicBool = AtomicBool::new(false);

/// Set in generations that are process ids, so that no count is taken for one.
const BY_PROCESS_ID: u64 = 1 << 63;

/// The process that made a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerProcess(u64);

impl OwnerProcess {
    /// The calling process.
    pub(crate) fn current() -> Self {
        Self(generation())
    }

    /// Whether it is the calling process. If not, the caller is a child of it.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }
}

/// A number that changes after `fork`.
///
/// A process made by `fork(3)` is noticed; one made by a bare `clone(2)`, which bypasses the C
/// library, is not.
fn generation() -> u64 {
    if IS_COUNTED.load(Ordering::Relaxed) {
        return FORKS.load(Ordering::Relaxed);
    }
    // SAFETY: the handler only adds to an atomic, which any thread may do at any time, also between
    // fork and exec; it is a function of this program, and stays.
    let result = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    if result != 0 {
        // Without memory for the handler, the slow way to know.
        let process = rustix::process::getpid().as_raw_nonzero().get();
        return BY_PROCESS_ID | u64::from(process.unsigned_abs());
    }
    // A second thread may have come here as well: then a fork counts twice, which is as good.
    IS_COUNTED.store(true, Ordering::Relaxed);
    FORKS.load(Ordering::Relaxed)
}

/// A value that each process has of its own. A child starts with a new one, because a lock in its
/// parent's may be held forever, by a thread that exists only in the parent.
pub(crate) struct PerProcess<T> {
    first: OnceLock<Own<T>>,
}

/// The value of one process, and of a child of its that looked.
struct Own<T> {
    generation: u64,
    value: T,
    of_child: OnceLock<Box<Own<T>>>,
}

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        let first = OnceLock::new();
        Self { first }
    }

    /// The calling process's.
    pub(crate) fn get(&self) -> &T {
        let generation = generation();
        let new = || Own {
            generation,
            value: T::default(),
            of_child: OnceLock::new(),
        };
        let mut own = self.first.get_or_init(new);
        while own.generation != generation {
            own = own.of_child.get_or_init(|| Box::new(new()));
        }
        &own.value
    }
}

/// The error of a child that waits for its parent's notifications.
pub(crate) fn owned_by_parent() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the send was made before the process forked: only the parent learns of it",
    )
}

extern "C" fn count_fork() {
    FORKS.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// What `run` answers in a child process, which ends right after; 255 if it panics. It must take no
    /// lock that another thread of this process may hold when it forks, such as those of the arena's
    /// pool. The C library looks after the allocator's.
    pub(crate) fn in_child(run: impl FnOnce() -> u8) -> u8 {
        // SAFETY: the child runs `run` alone, on a copy of this stack, and ends by `_exit`, so that
        // nothing above this frame runs twice.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "no child process");
        if child == 0 {
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            // SAFETY: ends this process without running anything else in it.
            unsafe { libc::_exit(answer.unwrap_or(255).into()) };
        }
        let mut status = 0;
        loop {
            // SAFETY: the status is written to a local of the right type.
            let waited = unsafe { libc::waitpid(child, &mut status, 0) };
            if waited == child {
                break;
            }
        }
        assert!(libc::WIFEXITED(status), "the child died: {status:#x}");
        u8::try_from(libc::WEXITSTATUS(status)).expect("eight bits")
    }

    #[test]
    fn a_child_has_a_value_of_its_own() {
        static LOCKED: PerProcess<Mutex<u8>> = PerProcess::new();
        let mut value = LOCKED.get().lock().expect("no panic");
        *value = 7;
        // The parent holds its lock; the child's is free, and its value a new one.
        assert_eq!(
            in_child(|| LOCKED.get().try_lock().map_or(255, |it| *it)),
            0
        );
        assert_eq!(*value, 7);
    }

    #[test]
    fn a_child_has_a_generation_of_its_own() {
        let ours = generation();
        assert_eq!(in_child(|| u8::from(generation() != ours)), 1);
        assert_eq!(generation(), ours);
    }
}
