//! Moves memory to a TCP socket with io_uring's `SEND_ZC` and `SENDMSG_ZC`.
//!
//! # Moves
//!
//! The socket takes references to the pages. Each send has two completions. The second one is a
//! notification that nothing refers to the pages any longer, and it says whether the kernel copied
//! them after all. The kernel does not copy if the network device supports scatter-gather and
//! checksum offload and no program captures packets. It always copies if the peer is on the same
//! machine.
//!
//! # Needs
//!
//! TCP, Linux 6.2 (`SEND_ZC` needs 6.0, `SENDMSG_ZC` 6.1, the report about copies 6.2), and a
//! kernel that lets this process create a ring. This mechanism needs no socket option, and uses
//! none of the memory that `net.core.optmem_max` limits.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | protecting a region | any | this step is copied |
//! | creating the ring | `ENOSYS`, `EPERM` | unsupported in this process |
//! | creating the ring | `EINVAL`, `EOPNOTSUPP` | unsupported: a kernel before 5.19 |
//! | creating the ring | any other (`EMFILE`, `ENOMEM`, …) | unsupported for this socket |
//! | submitting | `EAGAIN`, `ENOMEM`, nothing submitted | this step is copied, the ring retired |
//! | submitting | `EPERM`, `EACCES`, `ENOSYS` | unsupported in this process, reported as `ENOSYS` |
//! | submitting | `EBUSY`, `EINTR` | repeated up to 64 times, then treated as `ENOMEM` |
//! | waiting for the result | any that persists | failed (`EIO`) |
//! | the result | `EAGAIN` | blocked on the sink |
//! | the result | `EINTR` | the send is repeated: no byte was moved |
//! | the result | `ENOMEM`, `ENOBUFS` | this step is copied: `RLIMIT_MEMLOCK`, or no memory |
//! | the result | `EPERM`, `EACCES` | this step is copied |
//! | the result | `EOPNOTSUPP`, `EINVAL` | unsupported for this socket |
//! | the result | `ECANCELED` | this step is copied: the ring is retired |
//! | the result | any other | failed on the sink |
//!
//! - Protecting a region: [`Region::protection`](crate::arena::Region::protection) lists the
//!   reasons for a failure.
//! - Creating the ring: this fails if the kernel has no io_uring, or if a seccomp filter or
//!   `kernel.io_uring_disabled` forbids it. The ring takes about 20 KiB, which also count against
//!   `RLIMIT_MEMLOCK`.
//! - Submitting: if the kernel does not take an entry from the submission queue, the bytes are sent
//!   in another way, and the ring is retired. If the ring were used again, the kernel would take
//!   the old entry as well, and would send its bytes a second time. `EBUSY` means that completions
//!   must be processed first. `EPERM` comes from a seccomp filter.
//! - Waiting: the transfer fails, because the kernel has accepted the send but its result is
//!   unknown.
//! - The result: `EPERM` comes from a packet filter or a security module. It concerns only this
//!   send, not the ring, and the copy will fail with `EPERM` too. `EOPNOTSUPP` means a Unix socket,
//!   kernel TLS or a sockmap on the socket, or a kernel without the operation. `ECANCELED` means
//!   that the ring is retired, which happens when its thread or runtime ends, and in a child
//!   process.
//!
//! # Caveats
//!
//! - The memory must not change until the notification, which arrives once the peer has
//!   acknowledged the bytes. If the peer does not read, no notification arrives.
//! - A notification may follow even if the result is an error. Only the flag `IORING_CQE_F_MORE` on
//!   the result shows whether a notification follows.
//! - The notification of a failed send says "copied". This is ignored, because no byte was sent.
//! - Only one send of a connection is in progress at a time, because the kernel may reorder
//!   concurrent sends.
//! - The kernel posts a notification the next time that the sending thread enters the kernel. If
//!   the thread is in `epoll_wait(2)`, the notification interrupts that call with `EINTR`.
//! - `execve(2)` waits until the notifications of all sends that the calling thread has made have
//!   arrived: with a peer that began to read only after 4 s, the call took 4 s. A signal does not
//!   end the wait: even after SIGKILL, the thread keeps waiting, in a loop that occupies a CPU.
//!   `execve(2)` in another thread does not wait (see [`exec`](crate::exec())), and neither does
//!   the end of a thread or of the process, or running a program in a child process.
//! - If a process has ended or replaced itself with another program, and a notification has still
//!   not arrived five minutes later, the kernel logs a warning about the ring
//!   (`io_ring_exit_work`), once until the next boot. A peer that does not read can cause this:
//!   Linux 6.12 ended such a connection almost 6 minutes after the process had exited. The
//!   warning is harmless, unless `kernel.panic_on_warn` is set.
//! - Registered buffers are not used. They would save taking page references for each send, but a
//!   registered address keeps referring to the page frames that it had when it was registered. The
//!   arena returns frames to the kernel and later gets new ones for the same address, but the ring
//!   would still send the old ones. Over loopback, registered buffers took 0.90 to 0.99 times the
//!   CPU time of ordinary ones (16 and 64 KiB, Linux 6.18), which is within the noise. The kernel
//!   copies over loopback, so the gain with a network device is unknown.
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

/// Tries once to send the parts of `step` with this thread's ring, and never waits.
pub(crate) fn step(step: &MemoryStep<'_>, context: &LeaseContext<'_>) -> Outcome {
    let ring = match ring_of_thread() {
        Ok(ring) => ring,
        Err(outcome) => return outcome,
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

/// Does the same as [`step`], but in one system call together with the sends of other connections
/// of this thread.
///
/// # Cancellation
///
/// If the future is dropped before it is ready, some or all of the bytes may have been sent, and it
/// is unknown how many.
#[cfg(feature = "tokio")]
pub(crate) async fn step_in_batch(
    sink: Arc<OwnedFd>,
    step: &MemoryStep<'_>,
    context: &LeaseContext<'_>,
) -> Outcome {
    let ring = match ring_of_thread() {
        Ok(ring) => ring,
        Err(outcome) => return outcome,
    };
    let Some((leases, part)) = lease(&ring, step.parts, step, context) else {
        return Status::AtLimit.into();
    };
    match batch::send(ring, sink, leases, part).await {
        // Nothing was sent. Report `Blocked` although the socket may not be full, because `Blocked`
        // makes the driver retry the step on its own instead of in a batch.
        Err(Errno::INTR) => Status::Blocked(Side::Sink).into(),
        result => outcome_of(result),
    }
}

fn ring_of_thread() -> Result<Arc<ThreadRing>, Outcome> {
    ThreadRing::of_thread().map_err(|errno| match errno {
        RING_RETIRED => Status::CopyOnce(RING_RETIRED).into(),
        errno => Status::Unsupported(errno).in_call("io_uring_setup"),
    })
}

/// Leases as many parts, starting with the first, as the limits allow. Returns the leases and the
/// [`SendPart`] that they complete, or `None` if the limits do not even allow the first part.
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

/// Returns the status for an errno of a send.
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
