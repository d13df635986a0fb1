//! Keeping SIGPIPE away from callers.
//!
//! `sendfile(2)` and `splice(2)` have no `MSG_NOSIGNAL`: into a socket that the peer has closed they
//! raise SIGPIPE besides answering `EPIPE`. Rust programs start with the signal ignored, but a
//! library may run under a main function of another language, or one that put the default back.

use std::mem::MaybeUninit;
use std::ptr;

/// Runs `call` so that a SIGPIPE that it raises is neither delivered nor left pending.
///
/// Where the signal is ignored, as it is in most Rust programs, this costs one system call that
/// looks it up. Elsewhere the signal is blocked for this thread meanwhile, and the one that `call`
/// raised is taken off; one that was already pending stays.
pub(crate) fn without_sigpipe<T>(call: impl FnOnce() -> T) -> T {
    if sigpipe_is_ignored() {
        return call();
    }
    let _blocked = Blocked::new();
    call()
}

fn sigpipe_is_ignored() -> bool {
    let mut action = MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the new action is null, so nothing is changed; the old one is written to a local that
    // is large enough for it.
    let answer = unsafe { libc::sigaction(libc::SIGPIPE, ptr::null(), action.as_mut_ptr()) };
    if answer != 0 {
        return false;
    }
    // SAFETY: the call succeeded and so filled it in; all zeroes, as it began, is valid as well.
    let action = unsafe { action.assume_init() };
    action.sa_sigaction == libc::SIG_IGN
}

/// SIGPIPE blocked for this thread until drop.
struct Blocked {
    before: libc::sigset_t,
    was_pending: bool,
}

impl Blocked {
    fn new() -> Self {
        let only = only_sigpipe();
        let mut before = only;
        let was_pending = sigpipe_is_pending();
        // SAFETY: both sets are initialised locals; the mask of this thread alone is changed, and
        // drop puts it back. SIG_BLOCK with a valid set cannot fail.
        unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &only, &mut before) };
        Self {
            before,
            was_pending,
        }
    }
}

impl Drop for Blocked {
    fn drop(&mut self) {
        if !self.was_pending && sigpipe_is_pending() {
            let zero = libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let only = only_sigpipe();
            // SAFETY: set and time are initialised locals, and no signal information is asked for.
            // The signal is blocked and pending for this thread, so the call takes it and returns.
            unsafe { libc::sigtimedwait(&only, ptr::null_mut(), &zero) };
        }
        // SAFETY: `before` was filled in by the call that blocked the signal.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.before, ptr::null_mut()) };
    }
}

fn only_sigpipe() -> libc::sigset_t {
    let mut set = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: sigemptyset writes to a local of the right type.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: the set was initialised by the line above, and SIGPIPE is a valid signal.
    unsafe { libc::sigaddset(set.as_mut_ptr(), libc::SIGPIPE) };
    // SAFETY: initialised above.
    unsafe { set.assume_init() }
}

fn sigpipe_is_pending() -> bool {
    let mut pending = only_sigpipe();
    // SAFETY: writes to an initialised local of the right type.
    unsafe { libc::sigpending(&mut pending) };
    // SAFETY: the set is initialised, and SIGPIPE is a valid signal.
    unsafe { libc::sigismember(&pending, libc::SIGPIPE) == 1 }
}
