//! Detecting a fork, for everything that the kernel or a lock ties to one process.
//!
//! After `fork(2)` the child has a copy of every record of memory in flight, and of the locks
//! around these records, in the state of that moment. But the kernel sends its notifications to the
//! parent, and the threads that held the locks exist only in the parent. So a value that was made
//! before the fork belongs to the parent: by [`OwnerProcess`] the child recognises it and leaves it
//! alone, and [`PerProcess`] gives the child a value of its own.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Incremented in the child at each fork.
static FORK_COUNT: AtomicU64 = AtomicU64::new(0);

/// Whether the handler that counts forks is installed.
static IS_HANDLER_INSTALLED: AtomicBool = AtomicBool::new(false);

/// Set in generations that are process ids, so that none of them equals a count of forks.
const PROCESS_ID_FLAG: u64 = 1 << 63;

/// The process that made a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerProcess(u64);

impl OwnerProcess {
    /// The calling process.
    pub(crate) fn current() -> Self {
        Self(generation())
    }

    /// Whether this is the calling process. If not, the calling process descends from it.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }
}

/// A number that is different in a child process.
///
/// This holds for a child made by `fork(3)`, but not for one made by a bare `clone(2)`, which
/// bypasses the C library.
fn generation() -> u64 {
    if IS_HANDLER_INSTALLED.load(Ordering::Relaxed) {
        return FORK_COUNT.load(Ordering::Relaxed);
    }
    // SAFETY: the handler only adds to an atomic, which any thread may do at any time, even between
    // fork and exec. It is a function of this program, and so stays valid while the program runs.
    let result = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    if result != 0 {
        // There is no memory for the handler: fall back to the process id, at a system call each
        // time.
        let process = rustix::process::getpid().as_raw_nonzero().get();
        return PROCESS_ID_FLAG | u64::from(process.unsigned_abs());
    }
    // If another thread gets here too, the handler is installed twice and each fork counts as two,
    // which does no harm.
    IS_HANDLER_INSTALLED.store(true, Ordering::Relaxed);
    FORK_COUNT.load(Ordering::Relaxed)
}

/// A value of which each process has its own. A child starts with a new one, because a lock in the
/// copy of its parent's value may be held forever, by a thread that exists only in the parent.
pub(crate) struct PerProcess<T> {
    first: OnceLock<ProcessValue<T>>,
}

/// The value of one process. In a child that has called [`PerProcess::get`], it links to the value
/// of that child.
struct ProcessValue<T> {
    generation: u64,
    value: T,
    of_child: OnceLock<Box<ProcessValue<T>>>,
}

impl<T: Default> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        let first = OnceLock::new();
        Self { first }
    }

    /// The value of the calling process.
    pub(crate) fn get(&self) -> &T {
        let generation = generation();
        let new = || ProcessValue {
            generation,
            value: T::default(),
            of_child: OnceLock::new(),
        };
        let mut current = self.first.get_or_init(new);
        while current.generation != generation {
            current = current.of_child.get_or_init(|| Box::new(new()));
        }
        &current.value
    }
}

/// The error of a child process that waits for a notification that goes to its parent.
pub(crate) fn owned_by_parent() -> io::Error {
    io::Error::new(
        io::ErrorKind::Unsupported,
        "the send was made before the process forked: only the parent process is notified",
    )
}

extern "C" fn count_fork() {
    FORK_COUNT.fetch_add(1, Ordering::Relaxed);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Runs `run` in a child process and returns its result, or 255 if it panics. The child ends
    /// right after `run`.
    ///
    /// `run` must take no lock that another thread of this process may hold during the fork, such
    /// as those of the arena's pool. The C library takes care of the locks of the allocator.
    pub(crate) fn in_child(run: impl FnOnce() -> u8) -> u8 {
        // SAFETY: the child runs nothing but `run`, on a copy of this stack, and ends by `_exit`,
        // so that nothing above this stack frame runs twice.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork failed");
        if child == 0 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
            // SAFETY: this ends the process without running anything else in it.
            unsafe { libc::_exit(result.unwrap_or(255).into()) };
        }
        let mut status = 0;
        loop {
            // SAFETY: the call writes the status to a local of the right type.
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
        // The parent holds its lock. The lock of the child is free, and its value is new.
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
