//! Threads that other threads of the program wait for, and that live as long as the process.

use std::process;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use rustix::io::{Errno, Result};

use crate::sys;

/// A value with a thread, started when it is first needed.
pub(super) struct StartedOnce<T: 'static> {
    value: OnceLock<&'static T>,
    /// Held while a thread starts the value.
    starting: Mutex<()>,
}

impl<T> Default for StartedOnce<T> {
    fn default() -> Self {
        Self {
            value: OnceLock::new(),
            starting: Mutex::new(()),
        }
    }
}

impl<T: Send + Sync> StartedOnce<T> {
    /// Returns the value. If it has not been started, calls `start`. If that fails, the next call
    /// tries again, because the process may just have too many descriptors at the moment.
    pub(super) fn get_or_start(
        &self,
        start: impl FnOnce() -> Result<&'static T>,
    ) -> Result<&'static T> {
        if let Some(value) = self.value.get() {
            return Ok(value);
        }
        let _starting = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        match self.value.get() {
            Some(value) => Ok(value),
            None => start().map(|value| *self.value.get_or_init(|| value)),
        }
    }
}

/// Starts a thread that calls `run`, which must never return, and returns the value that the thread
/// uses. The thread receives no signals. If `run` panics, the process is aborted: otherwise, the
/// threads that wait for this one would wait forever.
pub(super) fn spawn<T: Send + Sync + 'static>(
    name: &str,
    value: T,
    run: fn(&T),
) -> Result<&'static T> {
    let value = Arc::new(value);
    let of_thread = Arc::clone(&value);
    let run = move || {
        let _guard = AbortOnUnwind;
        run(&of_thread);
    };
    let thread = thread::Builder::new().name(name.into());
    sys::without_signals(|| thread.spawn(run))
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::AGAIN))?;
    // The thread never ends, so the value is never dropped anyway.
    let value: &'static Arc<T> = Box::leak(Box::new(value));
    Ok(value)
}

struct AbortOnUnwind;

impl Drop for AbortOnUnwind {
    fn drop(&mut self) {
        let thread = thread::current();
        let name = thread.name().unwrap_or_default();
        eprintln!("uncopied: the thread {name} has ended; aborting");
        process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;
    use crate::sys::fork::tests::status_of_child;

    /// Otherwise the threads that wait for it would wait forever.
    #[test]
    fn the_process_is_aborted_if_the_thread_panics() {
        let status = status_of_child(|| {
            spawn("panics", (), |()| panic!("on purpose")).expect("started");
            loop {
                thread::park();
            }
        });
        assert_eq!(status.signal(), Some(libc::SIGABRT));
    }
}
