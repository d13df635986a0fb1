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
//! - NotificationSource are posted by the thread that sent, when it next enters the kernel, and interrupt an
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

#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::io::Errno;

use super::{LeaseContext, MemoryStep};
use crate::arena::Memory;
use crate::in_flight::{Lease, Leases, SendPart};
use crate::mechanism::{Outcome, Side, Status};
#[cfg(feature = "tokio")]
use crate::uring::batch;
use crate::uring::{RETIRED, ThreadRing};

/// Tries once, without waiting, to send the parts of the step by the ring of this thread.
pub(crate) fn step(step: &MemoryStep<'_>, context: &LeaseContext<'_>) -> Outcome {
    let ring = match ring_of_thread() {
        Ok(ring) => ring,
        Err(status) => return status.into(),
    };
    let parts = step.parts.to_vec();
    let calls: Result<Vec<_>, Errno> = parts.iter().map(Memory::prepare).collect();
    let _calls = match calls {
        Ok(calls) => calls,
        Err(errno) => return Status::CopyOnce(errno).into(),
    };
    loop {
        let Some((leases, part)) = lease(&ring, &parts, step, context) else {
            return Status::AtLimit.into();
        };
        match ring.send(step.sink, leases, part) {
            Err(Errno::INTR) => {}
            result => return outcome_of(result),
        }
    }
}

/// As [`step`], in one system call together with the sends of other connections of this thread.
///
/// # Cancellation
///
/// If the future is dropped before it is ready, either nothing was sent, or the number of bytes that
/// were sent is lost.
#[cfg(feature = "tokio")]
pub(crate) async fn step_in_batch(
    sink: Arc<OwnedFd>,
    step: &MemoryStep<'_>,
    context: &LeaseContext<'_>,
) -> Outcome {
    let ring = match ring_of_thread() {
        Ok(ring) => ring,
        Err(status) => return status.into(),
    };
    let Some((leases, part)) = lease(&ring, step.parts, step, context) else {
        return Status::AtLimit.into();
    };
    match batch::send(ring, sink, leases, part).await {
        // The next try is made without a batch.
        Err(Errno::INTR) => Status::Blocked(Side::Sink).into(),
        result => outcome_of(result),
    }
}

fn ring_of_thread() -> Result<Arc<ThreadRing>, Status> {
    ThreadRing::of_thread().map_err(|errno| match errno {
        RETIRED => Status::CopyOnce(RETIRED),
        errno => Status::Unsupported(errno),
    })
}

/// Leases of as many parts, from the first on, as the limits allow, and the part of the send that
/// they complete.
fn lease(
    ring: &ThreadRing,
    parts: &[Memory],
    step: &MemoryStep<'_>,
    context: &LeaseContext<'_>,
) -> Option<(Leases, SendPart)> {
    let take = || {
        let take = |part: &Memory| Lease::take(part.clone(), context.quota);
        Leases::of(parts.iter().map_while(take))
    };
    let source = ring.notification_source();
    let leases = take().or_else(|| {
        source.reap();
        take()
    })?;
    Some((leases, step.tracker.part(context.stats, Some(source))))
}

fn outcome_of(result: Result<usize, Errno>) -> Outcome {
    match result {
        Ok(0) => Status::Blocked(Side::Sink).into(),
        Ok(moved) => Outcome::moved(moved),
        Err(errno) => status_of(errno).into(),
    }
}

/// What the errno of a send means.
pub(crate) fn status_of(errno: Errno) -> Status {
    match errno {
        Errno::AGAIN => Status::Blocked(Side::Sink),
        Errno::NOMEM | Errno::NOBUFS | Errno::PERM | Errno::ACCESS | RETIRED => {
            Status::CopyOnce(errno)
        }
        Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS => Status::Unsupported(errno),
        errno => Status::Failed(Side::Sink, errno),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_of_the_errno_table() {
        use Status::{Blocked, CopyOnce, Failed, Unsupported};
        let failed = |errno| Failed(Side::Sink, errno);
        let rows = [
            (Errno::AGAIN, Blocked(Side::Sink)),
            (Errno::NOMEM, CopyOnce(Errno::NOMEM)),
            (Errno::NOBUFS, CopyOnce(Errno::NOBUFS)),
            (Errno::PERM, CopyOnce(Errno::PERM)),
            (Errno::ACCESS, CopyOnce(Errno::ACCESS)),
            (Errno::CANCELED, CopyOnce(Errno::CANCELED)),
            (Errno::OPNOTSUPP, Unsupported(Errno::OPNOTSUPP)),
            (Errno::INVAL, Unsupported(Errno::INVAL)),
            (Errno::NOSYS, Unsupported(Errno::NOSYS)),
            (Errno::PIPE, failed(Errno::PIPE)),
            (Errno::CONNRESET, failed(Errno::CONNRESET)),
            (Errno::IO, failed(Errno::IO)),
        ];
        for (errno, status) in rows {
            assert_eq!(status_of(errno), status, "{errno:?}");
        }
    }
}
