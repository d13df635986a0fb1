//! From memory to a stream socket.

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

/// What a step is to move: several parts, in their order, and at least one.
#[derive(Clone, Copy)]
pub(crate) struct MemoryStep<'a> {
    pub(crate) sink: BorrowedFd<'a>,
    pub(crate) parts: &'a [Memory],
    /// The send that the bytes belong to.
    pub(crate) tracker: &'a SendTracker,
}

impl MemoryStep<'_> {
    fn first(&self) -> &Memory {
        &self.parts[0]
    }
}

/// What new leases count against and report to.
pub(crate) struct LeaseContext<'a> {
    quota: &'a Arc<Quota>,
    stats: &'a Arc<NotificationStats>,
    /// If the peer is known to be on another machine, what it acknowledges is free.
    acknowledgements: Option<&'a Arc<Acknowledgements>>,
}

/// How long at most a send waits before it checks again whether memory of other senders is free.
const LIMIT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// What is known about one socket that memory is sent to, and what is in flight on it.
#[derive(Debug)]
pub(crate) struct MemorySink {
    driver: Driver,
    is_tcp: bool,
    assume_remote_peer: bool,
    pub(crate) at_limit: LimitAction,
    pub(crate) support: Support,
    /// What was sent in total. It grows with each step.
    pub(crate) report: Report,
    quota: Arc<Quota>,
    stats: Arc<NotificationStats>,
    msg_zerocopy: Option<MsgZerocopy>,
    vmsplice: Vmsplice,
    acknowledgements: Option<Arc<Acknowledgements>>,
    /// A descriptor of the socket for sends that are queued: the number of the caller's own could
    /// come to mean another file meanwhile.
    #[cfg(feature = "tokio")]
    batch_descriptor: Option<Arc<OwnedFd>>,
    /// Whether the socket stays open when this is dropped.
    pub(crate) stays_open: bool,
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
            stays_open: false,
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

    /// How many bytes are in flight, counted by whole pages.
    pub(crate) fn in_flight_bytes(&self) -> u64 {
        self.quota.in_flight_bytes()
    }

    /// Makes one try to move bytes by `mechanism`, from the first byte of the step on.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &MemoryStep<'_>,
    ) -> Outcome {
        if mechanism == Mechanism::Vmsplice && self.tracks_acknowledgements() {
            // If this fails, nothing becomes free.
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
            // A filled error queue looks like a broken connection to tokio.
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
            // A mechanism of another direction.
            _ => Status::Unsupported(Errno::INVAL).into(),
        }
    }

    /// Whether to begin tracking what the peer has acknowledged. Not on tokio, where nothing would
    /// wake a task that waits for it.
    fn tracks_acknowledgements(&self) -> bool {
        self.assume_remote_peer
            && self.is_tcp
            && self.driver == Driver::Caller
            && self.acknowledgements.is_none()
    }

    /// Makes one try by `send_zc`, together with other connections of the thread. This is only for
    /// pages: those of a region must be protected at the time of the call.
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

    /// Processes the notifications that have arrived, which completes their sends. Returns how many
    /// sends the socket's error queue completed.
    pub(crate) fn reap(&self) -> usize {
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
        }
        match &self.msg_zerocopy {
            Some(active) => active.queue().drain(&Linux),
            None => 0,
        }
    }

    /// Waits until some of the memory in flight may be free, but not long: it may be other senders
    /// that are at the limit.
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

    /// As [`wait_at_limit`](Self::wait_at_limit), on tokio.
    #[cfg(feature = "tokio")]
    pub(crate) async fn until_below_limit(&self) {
        let seen = self.stats.notifications();
        if self.in_flight_bytes() > 0 {
            poll_fn(|cx| self.stats.poll_notification(cx, seen)).await;
        } else {
            // The memory in flight belongs to other senders, and nothing reports when it is free.
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
            // It is the parent's: dropping it would take its lock.
            std::mem::forget(queue);
            return;
        }
        queue.reap();
        if queue.is_empty() {
            return;
        }
        let is_closed = !self.stays_open;
        if is_closed {
            queue.shut_down();
        }
        reaper::adopt(Box::new(OrphanedErrorQueue { queue, is_closed }));
    }
}
