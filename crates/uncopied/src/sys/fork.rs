//! Detects forks, for values that only the process that created them may use.
//!
//! After `fork(2)`, the child has a copy of all records of memory in flight, and of the locks
//! around these records, as they were at the time of the fork. But the kernel sends its
//! notifications to the parent, and the threads that held the locks exist only in the parent. So
//! the child must not use these copies. [`OwnerProcess`] lets the child recognise a value that was
//! created before the fork, and leave it alone. [`PerProcess`] gives the child a value of its own.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Incremented in the child after each fork.
static FORK_COUNT: AtomicU64 = AtomicU64::new(0);

/// Whether the handler that counts forks is installed.
static IS_HANDLER_INSTALLED: AtomicBool = AtomicBool::new(false);

/// The bit that marks a [`generation`] taken from a process ID, so that it cannot collide with one
/// taken from [`FORK_COUNT`].
const PROCESS_ID_FLAG: u64 = 1 << 63;

/// The process that created a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OwnerProcess(u64);

impl OwnerProcess {
    /// Returns the calling process.
    pub(crate) fn current() -> Self {
        Self(generation())
    }

    /// Whether this is the calling process. If not, the calling process is a forked descendant of
    /// it.
    pub(crate) fn is_current(self) -> bool {
        self == Self::current()
    }
}

/// Returns a number that tells the calling process apart from its parent.
///
/// This works for a child created with `fork(3)`, but not for one created with a bare `clone(2)`,
/// which bypasses the C library and so does not run the handler that counts forks.
fn generation() -> u64 {
    if IS_HANDLER_INSTALLED.load(Ordering::Relaxed) {
        return FORK_COUNT.load(Ordering::Relaxed);
    }
    // SAFETY: the handler only adds to an atomic, which any thread may do at any time, even between
    // fork and exec. The handler is a function of this program, and so stays valid while the
    // program runs.
    let result = unsafe { libc::pthread_atfork(None, None, Some(count_fork)) };
    if result != 0 {
        // There is no memory for the handler. Use the process ID instead, which costs a system call
        // each time.
        let process = rustix::process::getpid().as_raw_nonzero().get();
        return PROCESS_ID_FLAG | u64::from(process.unsigned_abs());
    }
    // If two threads get here at the same time, the handler is installed twice, and each fork adds
    // 2 to the count. That does no harm: the child's number still differs from that of its parent.
    IS_HANDLER_INSTALLED.store(true, Ordering::Relaxed);
    FORK_COUNT.load(Ordering::Relaxed)
}

/// A value that exists once per process. A forked child starts with a new value. Otherwise the
/// child would use its copy of the parent's value, in which a lock may be held forever by a thread
/// that exists only in the parent.
pub(crate) struct PerProcess<T> {
    first: OnceLock<ProcessValue<T>>,
}

/// The value of one process. When a forked child first calls [`PerProcess::get`], its copy of this
/// structure gets a link to the child's own value.
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

    /// Returns the value of the calling process.
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

/// Returns the error for waiting, in a forked child, for the notification of a send that was made
/// before the fork: the kernel notifies only the parent.
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

    /// Runs `run` in a forked child process, and returns its result, or 255 if it panics. The child
    /// exits right after `run`.
    ///
    /// `run` must not take a lock that another thread of this process may hold during the fork,
    /// such as the locks of the arena's pool. It may allocate memory, because the C library makes
    /// the allocator's locks usable in the child.
    pub(crate) fn in_child(run: impl FnOnce() -> u8) -> u8 {
        // SAFETY: the child runs only `run`, on a copy of this stack, and ends with `_exit`, so the
        // callers of this function never continue in the child.
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
        // The parent holds the lock of its value during the fork. The child must get a new value,
        // whose lock is not held.
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
