//! Moves memory to a TCP socket with `send(2)` and `MSG_ZEROCOPY`.
//!
//! # Moves
//!
//! The socket takes references to the pages, and the network device reads them. A notification in
//! the socket's error queue reports when nothing refers to the pages any longer, and whether the
//! kernel copied them after all.
//!
//! # Needs
//!
//! A TCP socket on which `SO_ZEROCOPY` can be set, and a caller that drains the error queue. A
//! socket on tokio does not qualify, because tokio treats a socket with entries in its error queue
//! as broken.
//!
//! # Errno
//!
//! | step | errno | outcome |
//! |---|---|---|
//! | before any call | none, but the socket is on tokio | unsupported (`EOPNOTSUPP`) |
//! | before any call | none, but another process created the sender | unsupported (`EBUSY`) |
//! | `SO_COOKIE` | none, but it is that of another socket | this step is copied (`EBADFD`) |
//! | `SO_COOKIE` | any (`ENOPROTOOPT`) | unsupported |
//! | duplicating the descriptor | any (`EMFILE`, `ENFILE`) | unsupported |
//! | locking the socket | `EAGAIN`, `EACCES` | unsupported (`EBUSY`) |
//! | locking the socket | any other (`ENOLCK`) | unsupported |
//! | `SO_ZEROCOPY` | none, but it is already set | unsupported (`EBUSY`) |
//! | `SO_ZEROCOPY` | any (`EOPNOTSUPP`, `EINVAL`, `EPERM`, `ENOPROTOOPT`, …) | unsupported |
//! | protecting a region | any | this step is copied |
//! | the send | `ENOBUFS` | this step is copied |
//! | the send | `EINVAL`, `EOPNOTSUPP`, `ENOSYS`, `EPERM` | unsupported, e.g. with kernel TLS |
//! | the send | `EAGAIN` | blocked on the sink |
//! | the send | `EINTR` | the call is repeated: no byte was moved |
//! | the send | any other | failed on the sink |
//!
//! The kernel numbers the `MSG_ZEROCOPY` sends of a socket, and its notifications refer to these
//! numbers. So only one sender, in one process, may send with `MSG_ZEROCOPY` on a socket: any other
//! send would shift the numbers, and the memory of later sends would be reused too early. If
//! `SO_ZEROCOPY` is already set, another sender has claimed the socket. To claim it, a sender takes
//! a lock of this process and the socket's own lock, checks `SO_ZEROCOPY`, and sets it. The
//! socket's lock excludes other processes that share the socket, such as a forked child. Because
//! each socket has its own numbers, a step first compares the `SO_COOKIE` of its socket with that
//! of the socket to which earlier numbers belong.
//!
//! The descriptor is duplicated in order to read notifications, without which no memory may be put
//! in flight. All sends use this duplicate, so they and the notifications belong to one socket.
//! [`Region::protection`](crate::arena::Region::protection) lists why a region cannot be protected.
//! `ENOBUFS` means that too many notifications are outstanding (`optmem_max`) or too much memory is
//! locked (`RLIMIT_MEMLOCK`). Nothing was queued, and a plain send works.
//!
//! # Caveats
//!
//! - The kernel assigns a number to each call that moved at least one byte, even if it moved fewer
//!   bytes than requested. Other calls get no number.
//! - Notifications arrive once the peer has acknowledged the bytes. So a peer that stops reading
//!   keeps the pages in flight.
//! - One notification may cover several calls. Whether the notification says "copied" depends only
//!   on the first of these calls.
//! - If the peer is on the same machine, the kernel always copies. It does so later than a plain
//!   send, and at a higher cost.
//!
//! # References
//!
//! `Documentation/networking/msg_zerocopy.rst`; `send(2)`, `socket(7)`, `ip(7)` on IP_RECVERR.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use rustix::io::Errno;

use super::{LeaseContext, MemoryStep};
use crate::in_flight::{ErrorQueue, Lease, SentLease, registry};
use crate::mechanism::{Outcome, Side, Status, retry_on_intr};
use crate::sys::Kernel;
use crate::sys::fork::PerProcess;

/// If at least this many sends are outstanding, each send first processes the notifications that
/// have arrived. This is well below the kernel's limit, which is about 150 outstanding sends with
/// the default `optmem_max`.
const REAP_FROM_OUTSTANDING: usize = 16;

/// Held while a thread of this process claims a socket, so that no two threads do so at once.
static CLAIMING: PerProcess<Mutex<()>> = PerProcess::new();

/// The `MSG_ZEROCOPY` sends of a socket that this value has claimed.
#[derive(Debug)]
pub(crate) struct MsgZerocopy {
    queue: Arc<ErrorQueue>,
}

impl MsgZerocopy {
    pub(crate) fn new(kernel: &impl Kernel, sink: BorrowedFd<'_>) -> Result<Self, Outcome> {
        let queue = Arc::new(ErrorQueue::of(sink).map_err(refused("fcntl"))?);
        claim(kernel, queue.as_fd())?;
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
        // Read notifications before the kernel's limit on outstanding sends is reached: a send
        // counts against that limit until its notification has been read.
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
            retry_on_intr(|| kernel.send_zerocopy(self.queue.as_fd(), bytes))
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

/// Claims the numbers of the socket for one sender. Fails with `EBUSY` if another sender has
/// claimed them, or another process is about to.
fn claim(kernel: &impl Kernel, socket: BorrowedFd<'_>) -> Result<(), Outcome> {
    let _claiming = CLAIMING
        .get()
        .lock()
        .unwrap_or_else(PoisonError::into_inner);
    kernel.lock_socket(socket).map_err(|errno| match errno {
        Errno::AGAIN | Errno::ACCESS => refused("fcntl")(Errno::BUSY),
        errno => refused("fcntl")(errno),
    })?;
    // The kernel releases the lock when this process closes any of its descriptors of the socket.
    // This function closes none, and its caller does so only after `SO_ZEROCOPY` has been set or
    // the claim has failed.
    if kernel
        .allows_zerocopy(socket)
        .map_err(refused("getsockopt"))?
    {
        return Err(refused("getsockopt")(Errno::BUSY));
    }
    kernel.allow_zerocopy(socket).map_err(refused("setsockopt"))
}

/// Returns a function that converts an errno to the outcome of a claim in which `call` failed with
/// that errno: `MSG_ZEROCOPY` is unsupported on the socket.
fn refused(call: &'static str) -> impl Fn(Errno) -> Outcome {
    move |errno| Status::Unsupported(errno).in_call(call)
}
