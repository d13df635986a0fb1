//! The pipes through which streams between sockets are spliced.
//!
//! A stream has a pipe only while the pipe holds bytes, because its sink is full. All other streams
//! of a thread take turns with a few idle pipes.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::io::{Errno, Result};

use crate::mechanism::pipe::{IdlePipes, Pipe};
use crate::sys::Kernel;

/// The capacity of a pipe, in bytes.
const PIPE_BYTES: usize = 256 << 10;

/// The most idle pipes that each thread keeps.
const MAX_IDLE_PIPES: usize = 4;

/// The limit on the pipes in use, unless the program sets another one. An unprivileged user's pipes
/// may hold 64 MiB (`/proc/sys/fs/pipe-user-pages-soft`), of which this is the part that leaves
/// some for others.
pub(crate) const DEFAULT_LIMIT: usize = 192;

static LIMIT: AtomicUsize = AtomicUsize::new(DEFAULT_LIMIT);
static IN_USE: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IDLE: IdlePipes = const { IdlePipes::new(MAX_IDLE_PIPES) };
}

/// Sets how many pipes may be in use.
pub(crate) fn set_limit(pipes: usize) {
    LIMIT.store(pipes, Ordering::Relaxed);
}

/// Returns how many pipes are in use: those that hold bytes.
pub(crate) fn in_use() -> usize {
    IN_USE.load(Ordering::Relaxed)
}

/// A pipe of the pool. Unless it is [recycled](Self::recycle), it is closed when dropped.
#[derive(Debug)]
pub(crate) struct PooledPipe {
    pipe: Pipe,
    _permit: Permit,
}

impl PooledPipe {
    /// Returns an idle pipe of this thread or creates one.
    ///
    /// # Errors
    ///
    /// - `EUSERS` if as many pipes are in use as the limit allows.
    /// - The errors of `pipe2(2)`, such as `EMFILE`.
    /// - `EPERM` if the user's limit on pipe pages is reached. A pipe of two pages, which is what
    ///   the kernel then grants, costs more than it saves.
    pub(crate) fn take(kernel: &impl Kernel) -> Result<Self> {
        let permit = Permit::take()?;
        let pipe = match IdlePipes::take(&IDLE) {
            Some(pipe) => pipe,
            None => Pipe::of_capacity(kernel, PIPE_BYTES)?,
        };
        Ok(Self {
            pipe,
            _permit: permit,
        })
    }

    /// Keeps the pipe for other streams of this thread, if it is empty.
    pub(crate) fn recycle(self) {
        IdlePipes::keep(&IDLE, self.pipe);
    }
}

impl Deref for PooledPipe {
    type Target = Pipe;

    fn deref(&self) -> &Pipe {
        &self.pipe
    }
}

impl DerefMut for PooledPipe {
    fn deref_mut(&mut self) -> &mut Pipe {
        &mut self.pipe
    }
}

/// The right to use one pipe.
#[derive(Debug)]
struct Permit(());

impl Permit {
    fn take() -> Result<Self> {
        let limit = LIMIT.load(Ordering::Relaxed);
        // The permit is returned when it is dropped, also if there are too many.
        let permit = Self(());
        match IN_USE.fetch_add(1, Ordering::Relaxed) {
            before if before < limit => Ok(permit),
            _ => Err(Errno::USERS),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        IN_USE.fetch_sub(1, Ordering::Relaxed);
    }
}
