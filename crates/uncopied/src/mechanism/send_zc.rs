//! Lends memory to a socket by io_uring's `SEND_ZC` and `SENDMSG_ZC`.
//!
//! # Moves
//!
//! The socket takes references to the pages and the kernel says by a notice, the send's second
//! completion, when nothing refers to them any more and whether it copied them after all. It never copies
//! where the network device gathers, has checksums done, and nobody listens in; it always copies for
//! peers on the same machine.
//!
//! # Needs
//!
//! TCP, Linux 6.2 (`SEND_ZC` is of 6.0, `SENDMSG_ZC` of 6.1, the usage report of 6.2), and a kernel that
//! lets this process have a ring. No socket option, and no room of `net.core.optmem_max`.
//!
//! # Errno
//!
//! | step | errno | outcome | because |
//! |---|---|---|---|
//! | making the ring | `ENOSYS`, `EPERM` | unsupported in this process | no io_uring in the kernel; a seccomp filter; `kernel.io_uring_disabled` |
//! | making the ring | `EINVAL`, `EOPNOTSUPP` | unsupported | a kernel before 5.19 |
//! | making the ring | `EMFILE`, `ENFILE`, `ENOMEM`, any other | unsupported for this socket | no room for a ring now (its 20 KiB or so count against `RLIMIT_MEMLOCK` too) |
//! | entering it | `EAGAIN`, `ENOMEM`, or nothing taken in | this send is copied, the ring given up | no memory for the request; the stuck entry must never go out later |
//! | entering it | `EPERM`, `EACCES`, `ENOSYS` | unsupported in this process, as `ENOSYS` | a seccomp filter of the call |
//! | entering it | `EBUSY` | again, 64 times, then as `ENOMEM` | completions are to be taken in first |
//! | entering it | `EINTR` | as `EBUSY` | |
//! | waiting for the answer | `EIO`: any that lasts | failed | the kernel has the send, and nobody knows how it went |
//! | the answer | `EAGAIN` | blocked | |
//! | the answer | `EINTR` | again | no byte had moved |
//! | the answer | `ENOMEM`, `ENOBUFS` | this send is copied | over `RLIMIT_MEMLOCK`, or memory is short |
//! | the answer | `EPERM`, `EACCES` | this send is copied | a packet filter or security module speaks of the send, not of rings; the copy meets it too |
//! | the answer | `EOPNOTSUPP`, `EINVAL` | unsupported for this socket | Unix sockets; kTLS or a sockmap on the socket; a kernel without the operation |
//! | the answer | `ECANCELED` | this send is copied | the ring was retired with its thread or runtime, or is the parent process's |
//! | the answer | any other | failed | |
//!
//! # Caveats
//!
//! - The memory must not change until the notice. It comes when the peer has acknowledged the bytes: if
//!   that stops reading, not at all.
//! - An answer that is an error can be followed by a notice too. Only the answer's own F_MORE says so;
//!   the ledger believes nothing else.
//! - A failed send's notice says "copied": it is ignored, no byte went.
//! - Only one send of a connection is under way at a time: the kernel may reorder more.
//! - Notices are posted by the thread that sent, when it next enters the kernel, and interrupt an
//!   `epoll_wait(2)` of that thread with `EINTR`.
//! - `execve(2)` in the process that sent waits until all notices have come: 4 s with a peer that began
//!   to read after 4 s. Leaving it by `exit(3)`, or running a program in a child, does not wait.
//! - Registered buffers are not used. They save the page references, but name the frames that lay at an
//!   address when it was registered: the arena gives frames back to the kernel, and the ring would then
//!   send what is no longer there. Over loopback they took 0.90 to 0.99 of the CPU time (16 and 64 KiB, Linux
//!   6.18), within the noise; the kernel copies there, so what a network device would gain is not shown.
//!
//! # References
//!
//! `io_uring_enter(2)`, `io_uring_prep_send_zc(3)`, `io_uring_setup(2)`.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

use crate::completion::Part;
use crate::drive::ring::SharedRing;
use crate::sys::Leases;
use crate::sys::ring::RETIRED;

/// What came of one try to lend memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The socket took so many bytes. The leases of these are kept until the notice.
    Took(usize),
    /// The socket's buffer is full.
    Blocked,
    /// A signal came first: try again.
    Again,
    /// Not this time: copy this send. The next may be lent again.
    CopyThis(Errno),
    /// Not on this socket.
    Unsupported(Errno),
    /// Nor by any other mechanism.
    Failed(Errno),
}

/// Tries once, without waiting, to send from `leases`. Unless bytes were taken, `part` does not count,
/// and the leases are gone.
pub(crate) fn step(
    ring: &SharedRing,
    sink: BorrowedFd<'_>,
    leases: impl Into<Leases>,
    part: Part,
) -> Answer {
    match ring.send(sink, leases.into(), part) {
        Ok(bytes) => Answer::Took(bytes),
        Err(errno) => meaning(errno),
    }
}

/// What an errno of [`SharedRing::send`] comes to.
pub(crate) fn meaning(errno: Errno) -> Answer {
    match errno {
        Errno::AGAIN => Answer::Blocked,
        Errno::INTR => Answer::Again,
        Errno::NOMEM | Errno::NOBUFS | Errno::PERM | Errno::ACCESS | RETIRED => {
            Answer::CopyThis(errno)
        }
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS => Answer::Unsupported(errno),
        errno => Answer::Failed(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        let rows = [
            (Errno::AGAIN, Answer::Blocked),
            (Errno::INTR, Answer::Again),
            (Errno::NOMEM, Answer::CopyThis(Errno::NOMEM)),
            (Errno::NOBUFS, Answer::CopyThis(Errno::NOBUFS)),
            (Errno::PERM, Answer::CopyThis(Errno::PERM)),
            (Errno::ACCESS, Answer::CopyThis(Errno::ACCESS)),
            (Errno::CANCELED, Answer::CopyThis(Errno::CANCELED)),
            (Errno::OPNOTSUPP, Answer::Unsupported(Errno::OPNOTSUPP)),
            (Errno::INVAL, Answer::Unsupported(Errno::INVAL)),
            (Errno::NOSYS, Answer::Unsupported(Errno::NOSYS)),
            (Errno::PIPE, Answer::Failed(Errno::PIPE)),
            (Errno::CONNRESET, Answer::Failed(Errno::CONNRESET)),
            (Errno::IO, Answer::Failed(Errno::IO)),
        ];
        for (errno, answer) in rows {
            assert_eq!(meaning(errno), answer, "{errno:?}");
        }
    }
}
