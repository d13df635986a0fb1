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
//! | protecting a region | any | this send is copied | see [`Region::protection`](crate::arena::Region::protection) |
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
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::memory::{MemoryOutcome, Terms};
use crate::completion::Part;
#[cfg(feature = "tokio")]
use crate::drive::batch;
use crate::drive::ring::SharedRing;
use crate::lease::{Lease, Memory};
use crate::sys::Leases;
use crate::sys::ring::RETIRED;

/// Tries once, without waiting, to send these parts by the ring of this thread.
pub(crate) fn step(sink: BorrowedFd<'_>, parts: &[Memory], terms: &Terms<'_>) -> MemoryOutcome {
    let ring = match of_thread() {
        Ok(ring) => ring,
        Err(outcome) => return outcome,
    };
    let parts = parts.to_vec();
    let loans: Result<Vec<_>, Errno> = parts.iter().map(Memory::lend).collect();
    let _loans = match loans {
        Ok(loans) => loans,
        Err(errno) => return MemoryOutcome::CopyThis(errno),
    };
    loop {
        let Some((leases, part)) = lease(&ring, &parts, terms) else {
            return MemoryOutcome::OverQuota;
        };
        match ring.send(sink, leases, part) {
            Err(Errno::INTR) => {}
            answer => return outcome(answer),
        }
    }
}

/// As [`step`], in one call of the kernel with what other connections of this thread have to send.
///
/// # Cancellation
///
/// Dropped before it is ready it has not sent, or nobody learns how many bytes it has.
#[cfg(feature = "tokio")]
pub(crate) async fn gather(
    sink: Arc<OwnedFd>,
    parts: &[Memory],
    terms: &Terms<'_>,
) -> MemoryOutcome {
    let ring = match of_thread() {
        Ok(ring) => ring,
        Err(outcome) => return outcome,
    };
    let Some((leases, part)) = lease(&ring, parts, terms) else {
        return MemoryOutcome::OverQuota;
    };
    match batch::send(ring, sink, leases, part).await {
        // The next try is one by itself.
        Err(Errno::INTR) => MemoryOutcome::Blocked,
        answer => outcome(answer),
    }
}

fn of_thread() -> Result<Arc<SharedRing>, MemoryOutcome> {
    SharedRing::of_thread().map_err(|errno| match errno {
        RETIRED => MemoryOutcome::CopyThis(RETIRED),
        errno => MemoryOutcome::Unsupported(errno),
    })
}

/// Leases of as many parts, from the first on, as may be lent, and what settles them.
fn lease(ring: &SharedRing, parts: &[Memory], terms: &Terms<'_>) -> Option<(Leases, Part)> {
    let take = || {
        let take = |part: &Memory| Lease::take(part.clone(), terms.quota);
        Leases::of(parts.iter().map_while(take))
    };
    let leases = take().or_else(|| {
        ring.notices().reap();
        take()
    })?;
    let part = terms.sending.part(terms.account, Some(ring.notices()));
    Some((leases, part))
}

fn outcome(answer: Result<usize, Errno>) -> MemoryOutcome {
    match answer {
        Ok(0) => MemoryOutcome::Blocked,
        Ok(moved) => MemoryOutcome::Moved(moved),
        Err(errno) => meaning(errno),
    }
}

/// What an errno of a send comes to.
pub(crate) fn meaning(errno: Errno) -> MemoryOutcome {
    match errno {
        Errno::AGAIN => MemoryOutcome::Blocked,
        Errno::NOMEM | Errno::NOBUFS | Errno::PERM | Errno::ACCESS | RETIRED => {
            MemoryOutcome::CopyThis(errno)
        }
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS => MemoryOutcome::Unsupported(errno),
        errno => MemoryOutcome::Failed(errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_table() {
        use MemoryOutcome::{Blocked, CopyThis, Failed, Unsupported};
        let rows = [
            (Errno::AGAIN, Blocked),
            (Errno::NOMEM, CopyThis(Errno::NOMEM)),
            (Errno::NOBUFS, CopyThis(Errno::NOBUFS)),
            (Errno::PERM, CopyThis(Errno::PERM)),
            (Errno::ACCESS, CopyThis(Errno::ACCESS)),
            (Errno::CANCELED, CopyThis(Errno::CANCELED)),
            (Errno::OPNOTSUPP, Unsupported(Errno::OPNOTSUPP)),
            (Errno::INVAL, Unsupported(Errno::INVAL)),
            (Errno::NOSYS, Unsupported(Errno::NOSYS)),
            (Errno::PIPE, Failed(Errno::PIPE)),
            (Errno::CONNRESET, Failed(Errno::CONNRESET)),
            (Errno::IO, Failed(Errno::IO)),
        ];
        for (errno, answer) in rows {
            assert_eq!(meaning(errno), answer, "{errno:?}");
        }
    }
}
