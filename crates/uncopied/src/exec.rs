//! Replaces the process with another program, without waiting for sends in flight.

use std::io;
use std::os::unix::process::CommandExt;
use std::panic;
use std::process::Command;
use std::thread;

use rustix::process::{parent_process_death_signal, set_parent_process_death_signal};

/// Replaces this process with another program, like [`CommandExt::exec`], but does not wait for
/// sends in flight. If it succeeds, it does not return.
///
/// The bytes that sockets have accepted still reach their peers. The new program has the same
/// process ID, and inherits what it would inherit from [`CommandExt::exec`]. If a peer has
/// still not acknowledged the bytes after five minutes, the kernel logs a warning, as it also does
/// after the end of a process. This matters only if `kernel.panic_on_warn` is set.
///
/// # Why this function exists
///
/// If a thread calls `execve(2)` while memory that it has sent with `send_zc` is in flight, the
/// call waits until the kernel is done with that memory: until the peer has acknowledged the bytes,
/// or the connection has ended. So a peer that stops reading delays the call indefinitely. No
/// signal ends the wait, not even SIGKILL, which only makes it use all the time of a CPU.
///
/// The kernel does not wait for the sends of other threads, so this function makes the call in a
/// new thread. In a program that sends memory, use this function, or call `execve(2)` in a thread
/// that has sent nothing. Neither running a program in a child process nor ending the process
/// waits.
///
/// If other code calls `execve(2)` in a thread that sends memory, the wait has no fixed limit:
///
/// - If the peer is gone, the kernel ends the connection after about 15 minutes
///   (`net.ipv4.tcp_retries2`). If the peer is there but does not read, the kernel never does.
/// - The socket option `TCP_USER_TIMEOUT` limits the wait in both cases. It may also reset the
///   connection of a peer that reads slowly but steadily.
/// - `ss --kill` ends a connection from outside the process, if the kernel supports this.
///
/// # Differences from [`CommandExt::exec`]
///
/// - The new thread has the settings that threads inherit, such as credentials, namespaces and the
///   CPU affinity. This function also copies the parent-death signal (`PR_SET_PDEATHSIG`), which
///   threads do not inherit.
/// - The calling thread ends. If it has started a child process that has set a parent-death signal,
///   the child receives this signal.
/// - The closures of [`CommandExt::pre_exec`] run in the new thread.
///
/// # Errors
///
/// Always returns an error: that of [`CommandExt::exec`], with the same effects on the process, or
/// `EAGAIN` if the thread cannot be created.
///
/// ```no_run
/// use std::process::Command;
///
/// let error = uncopied::exec(Command::new("/usr/local/bin/server").arg("--resume"));
/// eprintln!("cannot start the new version: {error}");
/// ```
pub fn exec(command: &mut Command) -> io::Error {
    let death_signal = parent_process_death_signal().ok().flatten();
    let exec = || {
        if death_signal.is_some()
            && let Err(errno) = set_parent_process_death_signal(death_signal)
        {
            return errno.into();
        }
        command.exec()
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("uncopied-exec".into());
        match thread.spawn_scoped(scope, exec) {
            Ok(thread) => thread
                .join()
                .unwrap_or_else(|payload| panic::resume_unwind(payload)),
            Err(error) => error,
        }
    })
}
