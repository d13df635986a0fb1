//! Moves memory to a TCP socket by io_uring's `SEND_ZC` and `SENDMSG_ZC`.
//!
//! # Moves
//!
//! The socket takes references to the pages. A notification, the second completion of the send,
//! says when nothing refers to them any more, and whether the kernel copied them after all. It does
//! not copy if the network device supports scatter-gather and checksum offload and nothing captures
//! packets; it always copies for peers on the same machine.
//!
//! # Needs
//!
//! TCP, Linux 6.2 (`SEND_ZC` needs 6.0, `SENDMSG_ZC` 6.1, the usage report 6.2), and a kernel that
//! grants this process a ring. No socket option, and none of the memory that
//! `net.core.optmem_max` limits.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | protecting a region | any | this send is copied |
//! | making the ring | `ENOSYS`, `EPERM` | unsupported in this process |
//! | making the ring | `EINVAL`, `EOPNOTSUPP` | unsupported: a kernel before 5.19 |
//! | making the ring | any other (`EMFILE`, `ENOMEM`, …) | unsupported for this socket |
//! | submitting | `EAGAIN`, `ENOMEM`, nothing submitted | this send is copied, the ring retired |
//! | submitting | `EPERM`, `EACCES`, `ENOSYS` | unsupported in this process, as `ENOSYS` |
//! | submitting | `EBUSY`, `EINTR` | again, 64 times, then as `ENOMEM` |
//! | waiting for the result | any that lasts | failed (`EIO`) |
//! | the result | `EAGAIN` | blocked on the sink |
//! | the result | `EINTR` | again: no byte was moved |
//! | the result | `ENOMEM`, `ENOBUFS` | this send is copied: `RLIMIT_MEMLOCK`, or no memory |
//! | the result | `EPERM`, `EACCES` | this send is copied |
//! | the result | `EOPNOTSUPP`, `EINVAL` | unsupported for this socket |
//! | the result | `ECANCELED` | this send is copied: the ring is retired |
//! | the result | any other | failed, of the sink |
//!
//! - Protecting a region: see [`Region::protection`](crate::arena::Region::protection).
//! - Making the ring: the kernel has no io_uring, or a seccomp filter or `kernel.io_uring_disabled`
//!   forbids it. Its 20 KiB or so count against `RLIMIT_MEMLOCK` too.
//! - Submitting: an entry that is stuck in the queue must never go out later, so the ring is
//!   retired. `EBUSY` means that completions must be processed first. `EPERM` comes from a seccomp
//!   filter.
//! - Waiting: the kernel has accepted the send, and its result is unknown.
//! - The result: `EPERM` comes from a packet filter or security module. It is about the send, not
//!   about rings, and the copy meets it too. `EOPNOTSUPP`: a Unix socket, kernel TLS or a sockmap
//!   on the socket, or a kernel without the operation. A ring is retired with its thread or
//!   runtime, and in a child process.
//!
//! # Caveats
//!
//! - The memory must not change until the notification, which arrives when the peer has
//!   acknowledged the bytes: not at all while the peer does not read.
//! - A result that is an error can be followed by a notification too. Only F_MORE on the result
//!   says whether one follows.
//! - The notification of a failed send says "copied". It is ignored: no byte was sent.
//! - Only one send of a connection is in progress at a time: the kernel may reorder several.
//! - Notifications are posted by the thread that sent, when it next enters the kernel, and
//!   interrupt an `epoll_wait(2)` of that thread with `EINTR`.
//! - `execve(2)` in the process that sent waits until all notifications have arrived: 4 s with a
//!   peer that began to read after 4 s. `exit(3)`, and running a program in a child, do not wait.
//! - Registered buffers are not used. They save the page references, but refer to the page frames
//!   that lay at an address when it was registered. The arena returns frames to the kernel, and the
//!   ring would then send what is no longer there. Over loopback they took 0.90 to 0.99 of the CPU
//!   time (16 and 64 KiB, Linux 6.18), within the noise; the kernel copies there, so that the gain
//!   with a network device is unknown.
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
use crate::uring::{RING_RETIRED, ThreadRing};

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
/// If the future is dropped before it is ready, either nothing was sent, or the number of bytes
/// that were sent is lost.
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
        RING_RETIRED => Status::CopyOnce(RING_RETIRED),
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
        Errno::NOMEM | Errno::NOBUFS | Errno::PERM | Errno::ACCESS | RING_RETIRED => {
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
