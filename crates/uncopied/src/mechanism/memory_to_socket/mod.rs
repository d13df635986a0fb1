//! The mechanisms that move memory to a stream socket.

mod copy;
mod msg_zerocopy;
pub(crate) mod send_zc;
mod vmsplice;

#[cfg(feature = "tokio")]
use std::future::poll_fn;
use std::io;
use std::os::fd::BorrowedFd;
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::{Outcome, Status};
use crate::arena::Memory;
use crate::in_flight::{
    Acknowledgements, LimitAction, NotificationSource, NotificationStats, OrphanedErrorQueue,
    Quota, SendTracker, reaper,
};
use crate::policy::{Driver, Mechanism, Support};
use crate::report::Report;
use crate::sys::{Kernel, Linux};
use msg_zerocopy::MsgZerocopy;
use vmsplice::Vmsplice;

/// The input of a step: the socket, and the parts of memory to move, in this order. There is at
/// least one part.
#[derive(Clone, Copy)]
pub(crate) struct MemoryStep<'a> {
    pub(crate) sink: BorrowedFd<'a>,
    pub(crate) parts: &'a [Memory],
    /// Tracks the send that the bytes belong to.
    pub(crate) tracker: &'a SendTracker,
}

impl MemoryStep<'_> {
    fn first(&self) -> &Memory {
        &self.parts[0]
    }
}

/// What a step needs to lease memory: the quota that the leases count against, and the statistics
/// that their notifications are counted in.
pub(crate) struct LeaseContext<'a> {
    quota: &'a Arc<Quota>,
    stats: &'a Arc<NotificationStats>,
    /// The sends that the peer has not acknowledged. `None` unless the peer is known to be on
    /// another machine, because only then does an acknowledgement mean that the memory can be
    /// reused.
    acknowledgements: Option<&'a Arc<Acknowledgements>>,
}

/// The longest time for which a send waits before it checks again whether the memory in flight is
/// below the limits. Memory of other senders may have become reusable meanwhile, and nothing
/// reports that to this sender.
const LIMIT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What is known about a socket that memory is sent to, and the memory that is in flight on it.
#[derive(Debug)]
pub(crate) struct MemorySink {
    driver: Driver,
    is_tcp: bool,
    assume_remote_peer: bool,
    pub(crate) at_limit: LimitAction,
    pub(crate) support: Support,
    /// The report of all sends on this socket. Each step adds to it.
    pub(crate) report: Report,
    quota: Arc<Quota>,
    stats: Arc<NotificationStats>,
    msg_zerocopy: Option<MsgZerocopy>,
    vmsplice: Vmsplice,
    acknowledgements: Option<Arc<Acknowledgements>>,
    /// A duplicate of the socket's descriptor, for sends that wait in a batch. The caller could
    /// close its own descriptor meanwhile, and the number of that descriptor could then refer to
    /// another file.
    #[cfg(feature = "tokio")]
    batch_descriptor: Option<Arc<OwnedFd>>,
}

impl MemorySink {
    pub(crate) fn new(
        driver: Driver,
        is_tcp: bool,
        assume_remote_peer: bool,
        in_flight_limit: u64,
        at_limit: LimitAction,
    ) -> Self {
        Self {
            driver,
            is_tcp,
            assume_remote_peer,
            at_limit,
            support: Support::of_process(),
            report: Report::default(),
            quota: Quota::new(in_flight_limit),
            stats: Arc::default(),
            msg_zerocopy: None,
            vmsplice: Vmsplice::default(),
            acknowledgements: None,
            #[cfg(feature = "tokio")]
            batch_descriptor: None,
        }
    }

    pub(crate) fn driver(&self) -> Driver {
        self.driver
    }

    pub(crate) fn is_tcp(&self) -> bool {
        self.is_tcp
    }

    pub(crate) fn stats(&self) -> &NotificationStats {
        &self.stats
    }

    /// Returns how many bytes are in flight. A page that is partly in flight counts as a whole
    /// page.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.quota.in_flight_bytes()
    }

    /// Tries once to move bytes with `mechanism`, starting at the first byte of `step`.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &MemoryStep<'_>,
    ) -> Outcome {
        if mechanism == Mechanism::Vmsplice && self.tracks_acknowledgements() {
            // If this fails, acknowledgements are not tracked, and the pages are gifted to the
            // kernel (never written to again).
            self.acknowledgements = Acknowledgements::of(step.sink).ok().map(Arc::new);
        }
        let context = LeaseContext {
            acknowledgements: self.acknowledgements.as_ref(),
            quota: &self.quota,
            stats: &self.stats,
        };
        if mechanism != Mechanism::Vmsplice {
            self.vmsplice.discard();
        }
        match mechanism {
            Mechanism::Copy => copy::step(kernel, step),
            Mechanism::Vmsplice => self.vmsplice.step(kernel, step, &context),
            // tokio treats a socket with entries in its error queue as broken.
            Mechanism::MsgZerocopy if self.driver == Driver::Tokio => {
                Status::Unsupported(Errno::OPNOTSUPP).into()
            }
            Mechanism::MsgZerocopy => {
                let active = match &self.msg_zerocopy {
                    Some(active) => active,
                    None => match MsgZerocopy::new(kernel, step.sink) {
                        Ok(active) => self.msg_zerocopy.insert(active),
                        Err(errno) => return Status::Unsupported(errno).into(),
                    },
                };
                active.step(kernel, step, &context)
            }
            Mechanism::SendZc => send_zc::step(step, &context),
            // A mechanism that does not move memory.
            _ => Status::Unsupported(Errno::INVAL).into(),
        }
    }

    /// Whether to begin tracking which bytes the peer has acknowledged. This is not done on tokio,
    /// where nothing would wake a task that waits for an acknowledgement.
    fn tracks_acknowledgements(&self) -> bool {
        self.assume_remote_peer
            && self.is_tcp
            && self.driver == Driver::Caller
            && self.acknowledgements.is_none()
    }

    /// Tries once to send with `send_zc`, in the same system call as sends of other connections of
    /// this thread. Only pages may be sent in this way. A region would have to be protected while
    /// the system call is made, but another task may make that call.
    ///
    /// # Cancellation
    ///
    /// See [`send_zc::step_in_batch`].
    #[cfg(feature = "tokio")]
    pub(crate) async fn step_in_batch(&mut self, step: &MemoryStep<'_>) -> Outcome {
        let descriptor = match &self.batch_descriptor {
            Some(descriptor) => descriptor,
            None => match rustix::io::fcntl_dupfd_cloexec(step.sink, 3) {
                Ok(descriptor) => self.batch_descriptor.insert(Arc::new(descriptor)),
                Err(errno) => return Status::CopyOnce(errno).into(),
            },
        };
        self.vmsplice.discard();
        let context = LeaseContext {
            acknowledgements: None,
            quota: &self.quota,
            stats: &self.stats,
        };
        send_zc::step_in_batch(Arc::clone(descriptor), step, &context).await
    }

    /// Processes the notifications that have arrived, and completes the sends that they belong to.
    /// Returns how many sends were completed by the socket's error queue.
    pub(crate) fn reap(&self) -> usize {
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
        }
        match &self.msg_zerocopy {
            Some(active) => active.queue().drain(&Linux),
            None => 0,
        }
    }

    /// Waits until some of the memory in flight may have become reusable, for at most
    /// [`LIMIT_POLL_INTERVAL`]. The limit may be reached because of other senders, whose
    /// notifications do not end this wait.
    pub(crate) fn wait_at_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let interval = limit.map_or(LIMIT_POLL_INTERVAL, |limit| limit.min(LIMIT_POLL_INTERVAL));
        match &self.msg_zerocopy {
            Some(active) if !active.queue().is_empty() => active.queue().wait(interval),
            _ => {
                thread::sleep(interval);
                Ok(())
            }
        }
    }

    /// Waits in the same way as [`wait_at_limit`](Self::wait_at_limit), on tokio. If this sender
    /// has memory in flight, waits for its next notification instead of polling.
    #[cfg(feature = "tokio")]
    pub(crate) async fn until_below_limit(&self) {
        let seen = self.stats.notifications();
        if self.in_flight_bytes() > 0 {
            poll_fn(|cx| self.stats.poll_notification(cx, seen)).await;
        } else {
            // All of the memory in flight belongs to other senders, and nothing reports to this
            // sender when it can be reused.
            let wait = || thread::sleep(LIMIT_POLL_INTERVAL);
            let _ = tokio::task::spawn_blocking(wait).await;
        }
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
            acknowledgements.gift_all();
        }
        let Some(active) = &self.msg_zerocopy else {
            return;
        };
        let queue = Arc::clone(active.queue());
        if queue.belongs_to_parent() {
            // After a fork, the queue belongs to the parent process. Dropping it in the child would
            // take its lock, which may stay locked forever there, so it is leaked.
            std::mem::forget(queue);
            return;
        }
        queue.reap();
        if !queue.is_empty() {
            reaper::adopt(Box::new(OrphanedErrorQueue(queue)));
        }
    }
}
