//! Moves memory to a TCP socket by `send(2)` with `MSG_ZEROCOPY`.
//!
//! # Moves
//!
//! The socket takes references to the pages, and the network device reads them. A notification on
//! the socket's error queue says when nothing refers to the pages any more, and whether the kernel
//! copied them after all.
//!
//! # Needs
//!
//! A TCP socket on which `SO_ZEROCOPY` can be set, and a caller that drains the error queue. A
//! socket that tokio watches does not qualify: tokio treats a filled error queue as a broken
//! connection.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | none | the socket is tokio's | unsupported (`EOPNOTSUPP`) |
//! | `SO_ZEROCOPY` | none, but it is already set | unsupported (`EBUSY`) |
//! | `SO_ZEROCOPY` | any (`EOPNOTSUPP`, `EINVAL`, `EPERM`, `ENOPROTOOPT`, …) | unsupported |
//! | duplicating the descriptor | any (`EMFILE`, `ENFILE`) | unsupported |
//! | protecting a region | any | this send is copied |
//! | the send | `ENOBUFS` | this send is copied |
//! | the send | `EINVAL`, `EOPNOTSUPP`, `ENOSYS`, `EPERM` | unsupported, as with kernel TLS |
//! | the send | `EAGAIN` | blocked on the sink |
//! | the send | `EINTR` | again: no byte was moved |
//! | the send | any other | failed, of the sink |
//!
//! If `SO_ZEROCOPY` is already set, other code may have sent with it: the numbers of its sends are
//! unknown. The duplicate is for reading notifications, without which no memory may be in flight.
//! For regions see [`Region::protection`](crate::arena::Region::protection). `ENOBUFS` means that
//! too many notifications are outstanding (`optmem_max`) or too much memory is locked
//! (`RLIMIT_MEMLOCK`); nothing was queued, and a plain send works.
//!
//! # Caveats
//!
//! - The kernel numbers the calls that moved at least one byte, short ones too, and no others.
//! - Notifications arrive once the peer has acknowledged the bytes: a peer that stops reading keeps
//!   the pages in flight.
//! - If several calls share a notification, it says "copied" for the first of them only.
//! - A peer on the same machine always gets a copy, made later and at a higher cost than by a plain
//!   send.
//!
//! # References
//!
//! `Documentation/networking/msg_zerocopy.rst`; `send(2)`, `socket(7)`, `ip(7)` on IP_RECVERR.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::{LeaseContext, MemoryStep};
use crate::in_flight::{ErrorQueue, Lease, SentLease, registry};
use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::sys::Kernel;

/// From this many outstanding sends on, each send first processes the notifications. The kernel
/// allows about 150 with the default `optmem_max`.
const REAP_FROM_OUTSTANDING: usize = 16;

#[derive(Debug)]
pub(crate) struct MsgZerocopy {
    queue: Arc<ErrorQueue>,
}

impl MsgZerocopy {
    pub(crate) fn new(kernel: &impl Kernel, sink: BorrowedFd<'_>) -> Result<Self, Errno> {
        if kernel.allows_zerocopy(sink)? {
            return Err(Errno::BUSY);
        }
        kernel.allow_zerocopy(sink)?;
        let queue = Arc::new(ErrorQueue::of(sink)?);
        let source: Weak<ErrorQueue> = Arc::downgrade(&queue);
        registry::register(source);
        Ok(Self { queue })
    }

    pub(crate) fn queue(&self) -> &Arc<ErrorQueue> {
        &self.queue
    }

    pub(crate) fn step(
        &self,
        kernel: &impl Kernel,
        step: &MemoryStep<'_>,
        context: &LeaseContext<'_>,
    ) -> Outcome {
        // Notifications that are not processed count against the limit on outstanding sends.
        if self.queue.len() >= REAP_FROM_OUTSTANDING {
            self.queue.drain(kernel);
        }
        let memory = step.first().clone();
        let _call = match memory.prepare() {
            Ok(call) => call,
            Err(errno) => return Status::CopyOnce(errno).into(),
        };
        let drain_and_retry = || {
            self.queue.drain(kernel);
            Lease::take(memory.clone(), context.quota)
        };
        let lease = Lease::take(memory.clone(), context.quota).or_else(drain_and_retry);
        let Some(lease) = lease else {
            return Status::AtLimit.into();
        };
        let part = step.tracker.part(context.stats, Some(self.queue.clone()));
        let send = |lease: &Lease| {
            let bytes = lease.memory().mapped();
            retry_on_intr(|| kernel.send_zerocopy(step.sink, bytes))
        };
        match self.queue.send(SentLease { lease, part }, send) {
            Ok(0) | Err(Errno::AGAIN) => Status::Blocked(Side::Sink).into(),
            Ok(moved) => Outcome::moved(moved),
            Err(Errno::NOBUFS) => {
                self.queue.drain(kernel);
                Status::CopyOnce(Errno::NOBUFS).into()
            }
            Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM)) => {
                Status::Unsupported(errno).into()
            }
            Err(errno) => Status::Failed(Side::Sink, errno).into(),
        }
    }
}
