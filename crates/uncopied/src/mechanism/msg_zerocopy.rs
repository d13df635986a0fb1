//! Moves memory to a TCP socket by `send(2)` with `MSG_ZEROCOPY`.
//!
//! # Moves
//!
//! The socket takes references to the pages; the network device reads them. A notice on the socket's
//! error queue says when nothing refers to them any more, and whether the kernel copied them after all.
//!
//! # Needs
//!
//! A TCP socket that lets `SO_ZEROCOPY` be set, and somebody who takes the notices in. tokio takes a
//! filled error queue for a broken connection: not on a socket that it watches.
//!
//! # Errno
//!
//! | step | errno | outcome | because |
//! |---|---|---|---|
//! | none | the socket is tokio's | unsupported (`EOPNOTSUPP`) | see Needs |
//! | `SO_ZEROCOPY` | none, but it is set | unsupported (`EBUSY`) | somebody else counts this socket's sends, and nobody can say how far |
//! | `SO_ZEROCOPY` | any (`EOPNOTSUPP`, `ENOTSUPP`, `EINVAL`, `EPERM`, `ENOPROTOOPT`) | unsupported | the socket is of another kind, or the kernel too old |
//! | a descriptor for the notices | any (`EMFILE`, `ENFILE`) | unsupported | without notices nothing can be lent |
//! | protecting a region | any | this send is copied | see [`Region::protection`](crate::arena::Region::protection) |
//! | the send | `ENOBUFS` | this send is copied | too many notices outstanding (`optmem_max`), or too much locked (`RLIMIT_MEMLOCK`); nothing was queued, and a plain send works |
//! | the send | `EINVAL`, `EOPNOTSUPP`, `ENOSYS`, `EPERM` | unsupported | as with kernel TLS |
//! | the send | `EAGAIN` | blocked on the sink | |
//! | the send | `EINTR` | again | no byte had moved |
//! | the send | any other | failed, of the sink | |
//!
//! # Caveats
//!
//! - The kernel numbers the calls that moved at least one byte, short ones too, and no others.
//! - Notices come once the peer has acknowledged: a peer that stops reading keeps the pages.
//! - Of several calls that share a notice, "copied" is told of the first.
//! - A peer on the same machine always gets a copy, made later and dearer than by a plain send.
//!
//! # References
//!
//! `Documentation/networking/msg_zerocopy.rst`; `send(2)`, `socket(7)`, `ip(7)` on IP_RECVERR.

use std::os::fd::BorrowedFd;
use std::sync::{Arc, Weak};

use rustix::io::Errno;

use super::again;
use super::memory::{MemoryOutcome, Terms};
use crate::error_queue::{ErrorQueue, Lent};
use crate::lease::{Lease, Memory};
use crate::lenders;
use crate::sys::Kernel;

/// From so many outstanding sends on, each send takes in the notices first. The kernel allows for some
/// 150, with its usual `optmem_max`.
const TAKE_IN_FROM: usize = 16;

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
        let lender: Weak<ErrorQueue> = Arc::downgrade(&queue);
        lenders::enter(lender);
        Ok(Self { queue })
    }

    pub(crate) fn queue(&self) -> &Arc<ErrorQueue> {
        &self.queue
    }

    pub(crate) fn step(
        &self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
        memory: &Memory,
        terms: &Terms<'_>,
    ) -> MemoryOutcome {
        // Notices that nobody takes in count against what may be outstanding.
        if self.queue.len() >= TAKE_IN_FROM {
            self.queue.take_all(kernel);
        }
        let memory = memory.clone();
        let _loan = match memory.lend() {
            Ok(loan) => loan,
            Err(errno) => return MemoryOutcome::CopyThis(errno),
        };
        let once_more = || {
            self.queue.take_all(kernel);
            Lease::take(memory.clone(), terms.quota)
        };
        let lease = Lease::take(memory.clone(), terms.quota).or_else(once_more);
        let Some(lease) = lease else {
            return MemoryOutcome::OverQuota;
        };
        let notices = self.queue.clone();
        let part = terms.sending.part(terms.account, Some(notices));
        let send = |lease: &Lease| again(|| kernel.send_lent(sink, lease));
        match self.queue.lend(Lent { lease, part }, send) {
            Ok(0) | Err(Errno::AGAIN) => MemoryOutcome::Blocked,
            Ok(moved) => MemoryOutcome::Moved(moved),
            Err(Errno::NOBUFS) => {
                self.queue.take_all(kernel);
                MemoryOutcome::CopyThis(Errno::NOBUFS)
            }
            Err(errno @ (Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM)) => {
                MemoryOutcome::Unsupported(errno)
            }
            Err(errno) => MemoryOutcome::Failed(errno),
        }
    }
}
