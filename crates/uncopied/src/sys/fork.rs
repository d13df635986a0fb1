//! Detects forks, for values that only the process that created them may use.
//!
//! After `fork(2)`, the child has a copy of all records of memory in flight, and of the locks
//! around these records, as they were at the time of the fork. But the kernel sends its
//! notifications to the parent, and the threads that held the locks exist only in the parent. So
//! the child must not use these copies. [`OwnerProcess`] lets the child recognise a value that was
//! created before the fork, and leave it alone. [`PerProcess`] gives the child a value of its own.

use std::fmt;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};

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
    // fork and exec. If the handler is in a shared object, the C library removes it from the list
    // when it unloads the object, so the handler is valid whenever it is called.
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
///
/// This type itself uses no lock either, not even to create the value: a thread of the parent might
/// hold the lock while another thread forks, and the child would wait for the lock forever.
pub(crate) struct PerProcess<T> {
    /// The value of this process or, as long as it has none, of its nearest ancestor that had one.
    /// Null if there is none. Points to a leaked `Box`, which lives as long as this structure.
    newest: AtomicPtr<ProcessValue<T>>,
}

/// The value of one process.
struct ProcessValue<T> {
    generation: u64,
    value: T,
    /// The value of the nearest ancestor of the process that had one, or null.
    inherited: *mut ProcessValue<T>,
}

/// A `PerProcess` can be shared between threads, and sent to another thread, for any `T`, because
/// an `AtomicPtr` can. The bounds on `T` make this sound: a value is created only by these
/// functions, so if `T` does not meet the bounds, there is never a value.
impl<T: Default + Send + Sync> PerProcess<T> {
    pub(crate) const fn new() -> Self {
        let newest = AtomicPtr::new(ptr::null_mut());
        Self { newest }
    }

    /// Returns the value of the calling process.
    pub(crate) fn get(&self) -> &T {
        let generation = generation();
        let newest = self.newest.load(Ordering::Acquire);
        // SAFETY: the pointer is null or points to a `ProcessValue` that nothing changes and that
        // is freed only when `self` is dropped.
        match unsafe { newest.as_ref() } {
            Some(newest) if newest.generation == generation => &newest.value,
            _ => self.create(generation, newest),
        }
    }

    /// Creates the value of the calling process, unless another thread of the process does so
    /// first.
    #[cold]
    fn create(&self, generation: u64, inherited: *mut ProcessValue<T>) -> &T {
        let new = Box::into_raw(Box::new(ProcessValue {
            generation,
            value: T::default(),
            inherited,
        }));
        let (success, failure) = (Ordering::Release, Ordering::Acquire);
        let exchanged = self
            .newest
            .compare_exchange(inherited, new, success, failure);
        let newest = match exchanged {
            Ok(_) => new,
            Err(of_other_thread) => {
                // SAFETY: `new` comes from `Box::into_raw`, and was not published.
                drop(unsafe { Box::from_raw(new) });
                of_other_thread
            }
        };
        // SAFETY: the pointer points to a published `ProcessValue`, which lives as long as `self`.
        // The value is that of this process: since the load of `inherited`, only threads of this
        // process have stored pointers.
        unsafe { &(*newest).value }
    }

    /// Returns the value of the calling process, if it has one, and after it those of its ancestors
    /// as they were at the time of the fork, from the parent upwards. A lock in the value of an
    /// ancestor must not be taken.
    pub(crate) fn values(&self) -> impl Iterator<Item = &T> {
        let mut next = self.newest.load(Ordering::Acquire).cast_const();
        std::iter::from_fn(move || {
            // SAFETY: the pointer is null or points to a `ProcessValue`, which lives as long as
            // `self`.
            let current = unsafe { next.as_ref()? };
            next = current.inherited;
            Some(&current.value)
        })
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        let mut next = *self.newest.get_mut();
        while !next.is_null() {
            // SAFETY: every pointer in the list comes from `Box::into_raw`, and is in no other
            // list. `self` is borrowed exclusively, so no reference to a value exists.
            let current = unsafe { Box::from_raw(next) };
            next = current.inherited;
        }
    }
}

impl<T: Default + Send + Sync + fmt::Debug> fmt::Debug for PerProcess<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.values().take(1)).finish()
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
    use std::os::unix::process::ExitStatusExt;
    use std::process::ExitStatus;
    use std::sync::Mutex;
    use std::sync::atomic::AtomicI32;

    use super::*;

    /// The time after which a child that hangs is killed, in seconds.
    const CHILD_TIMEOUT_SECONDS: libc::c_uint = 60;

    /// Runs `run` in a forked child process, and returns its result, or 255 if it panics. The child
    /// exits right after `run`. If it hangs, this panics after [`CHILD_TIMEOUT_SECONDS`].
    ///
    /// `run` must not take a lock that another thread of this process may hold during the fork. It
    /// may use the arena, which has its own locks in each process, and may allocate memory, because
    /// the C library makes the allocator's locks usable in the child.
    pub(crate) fn in_child(run: impl FnOnce() -> u8) -> u8 {
        let status = status_of_child(run);
        let code = status.code();
        u8::try_from(code.unwrap_or_else(|| panic!("the child died: {status}")))
            .expect("eight bits")
    }

    /// Like [`in_child`], but also returns how the child ended if a signal has ended it.
    pub(crate) fn status_of_child(run: impl FnOnce() -> u8) -> ExitStatus {
        // SAFETY: the child runs only `run`, on a copy of this stack, and ends with `_exit`, so the
        // callers of this function never continue in the child.
        let child = unsafe { libc::fork() };
        assert!(child >= 0, "fork failed");
        if child == 0 {
            // SAFETY: the call only starts a timer, whose signal ends the child.
            unsafe { libc::alarm(CHILD_TIMEOUT_SECONDS) };
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
        ExitStatus::from_raw(status)
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

    /// A thread of the parent is creating the parent's value during the fork. That thread does not
    /// exist in the child, so a child that waits for it hangs.
    #[test]
    fn a_child_does_not_wait_for_the_value_of_its_parent() {
        /// The process ID of the parent. In that process, creating a value blocks until this is set
        /// to 0.
        static PARENT: AtomicI32 = AtomicI32::new(0);
        static IS_BEING_CREATED: AtomicBool = AtomicBool::new(false);
        static VALUE: PerProcess<Slow> = PerProcess::new();

        struct Slow;

        impl Default for Slow {
            fn default() -> Self {
                while PARENT.load(Ordering::SeqCst) == process_id() {
                    IS_BEING_CREATED.store(true, Ordering::SeqCst);
                    std::thread::yield_now();
                }
                Self
            }
        }

        PARENT.store(process_id(), Ordering::SeqCst);
        let creator = std::thread::spawn(|| {
            VALUE.get();
        });
        while !IS_BEING_CREATED.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
        let count = || u8::try_from(VALUE.values().count()).expect("few");
        let of_child = in_child(|| {
            VALUE.get();
            count()
        });
        PARENT.store(0, Ordering::SeqCst);
        creator.join().expect("no panic");
        assert_eq!((of_child, count()), (1, 1));
        let with_inherited = in_child(|| {
            VALUE.get();
            count()
        });
        assert_eq!(with_inherited, 2);
    }

    #[test]
    fn values_are_dropped() {
        static DROPPED: AtomicBool = AtomicBool::new(false);

        #[derive(Default)]
        struct Value;

        impl Drop for Value {
            fn drop(&mut self) {
                DROPPED.store(true, Ordering::SeqCst);
            }
        }

        let values = PerProcess::<Value>::new();
        values.get();
        drop(values);
        assert!(DROPPED.load(Ordering::SeqCst));
    }

    fn process_id() -> i32 {
        rustix::process::getpid().as_raw_nonzero().get()
    }

    #[test]
    fn a_child_has_a_generation_of_its_own() {
        let ours = generation();
        assert_eq!(in_child(|| u8::from(generation() != ours)), 1);
        assert_eq!(generation(), ours);
    }
}
