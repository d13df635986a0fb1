//! The mechanisms that move memory to a stream socket.

mod copy;
pub(crate) mod msg_zerocopy;
pub(crate) mod send_zc;
mod vmsplice;

#[cfg(feature = "tokio")]
use std::future::poll_fn;
use std::io;
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;

use super::{Outcome, Status};
use crate::arena::Memory;
use crate::in_flight::{
    Acknowledgements, ErrorQueue, LimitAction, NotificationSource, NotificationStats,
    OrphanedErrorQueue, OrphanedSocketQueue, Quota, SendTracker, SocketQueue, reaper, registry,
};
use crate::policy::{Driver, Mechanism, Support};
use crate::report::Report;
use crate::sys::fork::OwnerProcess;
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

/// The values that a step needs to lease memory: the quota that the leases count against, and the
/// statistics in which their notifications are counted.
pub(crate) struct LeaseContext<'a> {
    quota: &'a Arc<Quota>,
    stats: &'a Arc<NotificationStats>,
    /// The sends that the peer has not acknowledged. `None` unless the peer is known to be on
    /// another machine, because only then does an acknowledgement mean that the memory can be
    /// reused.
    acknowledgements: Option<&'a Arc<Acknowledgements>>,
}

/// The longest time that a send at a limit waits before it rechecks whether the memory in flight is
/// below the limits. It has to recheck regularly, because nothing tells this sender when memory of
/// other senders becomes reusable.
const LIMIT_POLL_INTERVAL: Duration = Duration::from_millis(10);

/// The same for a sender that may have gifted bytes in the queue of its socket. It is shorter,
/// because nothing tells the sender when they leave the queue, and waiting longer would slow down a
/// sender whose limit is small.
const QUEUE_POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The errno that a report gives as the reason for copying a step, if the step's socket is not the
/// one that earlier steps of the same sink sent to.
const ANOTHER_SOCKET: Errno = Errno::BADFD;

/// The number of standard error. Safe code can replace what the descriptors of the standard streams
/// refer to (`dup2(2)`), even while something else borrows them.
const LAST_STANDARD_DESCRIPTOR: RawFd = 2;

/// A number that no descriptor has.
const NO_DESCRIPTOR: RawFd = -1;

/// What is known about a socket that memory is sent to, and the memory that is in flight on it.
#[derive(Debug)]
pub(crate) struct MemorySink {
    driver: Driver,
    is_tcp: bool,
    /// `None` if the sink was created for a stream socket, otherwise the errno with which
    /// [`check_stream_socket`](crate::endpoint::check_stream_socket) failed.
    pub(crate) not_a_stream: Option<Errno>,
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
    /// The queue of the socket that bytes were last sent to with `vmsplice`.
    socket_queue: Option<Arc<SocketQueue>>,
    /// A duplicate of the socket's descriptor, for sends that wait in a batch. The caller's own
    /// descriptor cannot be used for them: the caller could close it before the batch is submitted,
    /// and its number could then refer to another file.
    #[cfg(feature = "tokio")]
    batch_descriptor: Option<Arc<OwnedFd>>,
    /// The process that created the sink. Only this process may use the two kinds of numbers that
    /// say which sends on the socket are complete: the numbers that the kernel gives to
    /// `MSG_ZEROCOPY` sends, and the counts of acknowledged bytes.
    owner_process: OwnerProcess,
    /// The socket to which both kinds of numbers belong. `None` before a step first needs one of
    /// them.
    numbered_socket: Option<NumberedSocket>,
    /// Whether the descriptor that each step gets stays open as long as this sink exists. If so,
    /// two steps with the same descriptor number have the same socket.
    pub(crate) descriptor_stays_open: bool,
}

/// The descriptor number and the `SO_COOKIE` by which a sink recognises its socket.
#[derive(Clone, Copy, Debug)]
struct NumberedSocket {
    descriptor: RawFd,
    cookie: u64,
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
            not_a_stream: None,
            assume_remote_peer,
            at_limit,
            support: Support::of_process(),
            report: Report::default(),
            quota: Quota::new(in_flight_limit),
            stats: Arc::default(),
            msg_zerocopy: None,
            vmsplice: Vmsplice::default(),
            acknowledgements: None,
            socket_queue: None,
            #[cfg(feature = "tokio")]
            batch_descriptor: None,
            owner_process: OwnerProcess::current(),
            numbered_socket: None,
            descriptor_stays_open: false,
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
        if let Some(queue) = &self.socket_queue {
            queue.recount();
        }
        self.quota.in_flight_bytes()
    }

    /// Tries once to move bytes with `mechanism`, starting at the first byte of `step`.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &MemoryStep<'_>,
    ) -> Outcome {
        if mechanism == Mechanism::Vmsplice {
            return self.vmsplice_step(kernel, step);
        }
        if mechanism == Mechanism::MsgZerocopy
            && let Err(status) = self.check_msg_zerocopy(kernel, step.sink)
        {
            return status.into();
        }
        self.vmsplice.discard(self.socket_queue.as_deref());
        let outcome = self.step_without_pipe(kernel, mechanism, step);
        self.count_sent(kernel, step.sink, outcome.moved);
        outcome
    }

    fn step_without_pipe(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        step: &MemoryStep<'_>,
    ) -> Outcome {
        let context = LeaseContext {
            acknowledgements: None,
            quota: &self.quota,
            stats: &self.stats,
        };
        match mechanism {
            Mechanism::Copy => copy::step(kernel, step),
            Mechanism::MsgZerocopy => {
                let active = match &self.msg_zerocopy {
                    Some(active) => active,
                    None => match MsgZerocopy::new(kernel, step.sink) {
                        Ok(active) => self.msg_zerocopy.insert(active),
                        Err(outcome) => return outcome,
                    },
                };
                active.step(kernel, step, &context)
            }
            Mechanism::SendZc => send_zc::step(step, &context),
            // A mechanism that does not move memory.
            _ => Status::Unsupported(Errno::INVAL).into(),
        }
    }

    fn vmsplice_step(&mut self, kernel: &impl Kernel, step: &MemoryStep<'_>) -> Outcome {
        let queue = match self.socket_queue_of(kernel, step.sink) {
            Ok(queue) => queue,
            Err(errno) => return Status::CopyOnce(errno).into(),
        };
        let acknowledgements = self.acknowledgements_of(kernel, step.sink);
        let context = LeaseContext {
            acknowledgements: acknowledgements.as_ref(),
            quota: &self.quota,
            stats: &self.stats,
        };
        self.vmsplice.step(kernel, step, &context, &queue)
    }

    /// Returns the error queue if notifications are outstanding.
    fn outstanding_error_queue(&self) -> Option<Arc<ErrorQueue>> {
        let queue = Arc::clone(self.msg_zerocopy.as_ref()?.queue());
        if queue.belongs_to_parent() {
            // Leak the queue in a forked child, because it belongs to the parent process. Dropping
            // it would take its lock, which may stay locked forever in the child.
            std::mem::forget(queue);
            return None;
        }
        queue.reap();
        (!queue.is_empty()).then_some(queue)
    }

    /// Returns the queue of `socket`, in which the bytes count that are sent with `vmsplice`.
    ///
    /// # Errors
    ///
    /// If the socket does not report the length of its queue, or its descriptor cannot be
    /// duplicated.
    fn socket_queue_of(
        &mut self,
        kernel: &impl Kernel,
        socket: BorrowedFd<'_>,
    ) -> Result<Arc<SocketQueue>, Errno> {
        if let Some(queue) = &self.socket_queue {
            if queue.is_of(kernel, socket) {
                return Ok(Arc::clone(queue));
            }
            if let Some(queue) = self.take_socket_queue() {
                reaper::adopt(Box::new(OrphanedSocketQueue(queue)));
            }
        }
        let queue = Arc::new(SocketQueue::of(kernel, socket, self.is_tcp)?);
        let source: Weak<SocketQueue> = Arc::downgrade(&queue);
        registry::register(source);
        Ok(Arc::clone(self.socket_queue.insert(queue)))
    }

    /// Counts bytes that the socket has accepted without `vmsplice`. They show when bytes that were
    /// sent before them with `vmsplice` have left the socket's queue.
    fn count_sent(&self, kernel: &impl Kernel, socket: BorrowedFd<'_>, bytes: u64) {
        if let Some(queue) = &self.socket_queue
            && queue.is_of(kernel, socket)
        {
            queue.count_sent(bytes);
        }
    }

    /// Stops using the socket's queue. Returns it if gifted bytes are in it, which count until they
    /// have left it.
    #[must_use = "the bytes in the queue still count"]
    fn take_socket_queue(&mut self) -> Option<Arc<SocketQueue>> {
        self.vmsplice.discard(self.socket_queue.as_deref());
        let queue = self.socket_queue.take()?;
        if queue.belongs_to_parent() {
            // Leak the queue in a forked child, because a thread of the parent may have been
            // changing it during the fork.
            std::mem::forget(queue);
            return None;
        }
        queue.recount();
        (!queue.is_empty()).then_some(queue)
    }

    /// Returns the record of the bytes that the peer has acknowledged, or `None` if it cannot be
    /// used for this step. The pages of the step are then gifted to the kernel (never written to
    /// again). Acknowledgements are not tracked on tokio, where nothing would wake a task that
    /// waits for one.
    fn acknowledgements_of(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
    ) -> Option<Arc<Acknowledgements>> {
        let tracks = self.assume_remote_peer && self.is_tcp && self.driver == Driver::Caller;
        if !tracks || self.check_socket(kernel, sink).is_err() {
            return None;
        }
        if self.acknowledgements.is_none() {
            self.acknowledgements = Acknowledgements::of(sink).ok().map(Arc::new);
        }
        self.acknowledgements.clone()
    }

    /// Checks whether a step may use `MSG_ZEROCOPY`. If not, returns the status of the step.
    fn check_msg_zerocopy(
        &mut self,
        kernel: &impl Kernel,
        sink: BorrowedFd<'_>,
    ) -> Result<(), Status> {
        // tokio treats a socket with entries in its error queue as broken.
        if self.driver == Driver::Tokio {
            return Err(Status::Unsupported(Errno::OPNOTSUPP));
        }
        self.check_socket(kernel, sink)
            .map_err(|errno| match errno {
                ANOTHER_SOCKET => Status::CopyOnce(errno),
                errno => Status::Unsupported(errno),
            })
    }

    /// Checks that this process may use the numbers by which sends on the step's socket are
    /// completed, and that earlier numbers of this sink belong to the same socket. Without this
    /// check, a number could be taken for that of another send, whose memory would then be reused
    /// too early.
    ///
    /// Makes a system call, except if the sink's owner keeps the descriptor open, as a
    /// [`Sender`](crate::Sender) does.
    ///
    /// # Errors
    ///
    /// - `EBUSY` in a forked child of the process that created the sink.
    /// - [`ANOTHER_SOCKET`] if earlier numbers of this sink belong to another socket.
    /// - The errno of `getsockopt(SO_COOKIE)`.
    fn check_socket(&mut self, kernel: &impl Kernel, sink: BorrowedFd<'_>) -> Result<(), Errno> {
        if !self.owner_process.is_current() {
            return Err(Errno::BUSY);
        }
        let descriptor = sink.as_raw_fd();
        match self.numbered_socket {
            Some(known)
                if self.descriptor_stays_open
                    && known.descriptor == descriptor
                    && descriptor > LAST_STANDARD_DESCRIPTOR =>
            {
                Ok(())
            }
            Some(known) if known.cookie == kernel.socket_cookie(sink)? => {
                self.numbered_socket = Some(NumberedSocket {
                    descriptor,
                    ..known
                });
                Ok(())
            }
            Some(_) => Err(ANOTHER_SOCKET),
            None => {
                let cookie = kernel.socket_cookie(sink)?;
                self.numbered_socket = Some(NumberedSocket { descriptor, cookie });
                Ok(())
            }
        }
    }

    /// Makes the next step that needs numbers look the socket up again, because the owner of the
    /// descriptor may have replaced it. The descriptor of the other socket can even have the same
    /// number.
    pub(crate) fn expect_another_socket(&mut self) {
        if let Some(known) = &mut self.numbered_socket {
            known.descriptor = NO_DESCRIPTOR;
        }
        #[cfg(feature = "tokio")]
        {
            self.batch_descriptor = None;
        }
    }

    /// Tries once to send with `send_zc`, in the same system call as sends of other connections of
    /// this thread. Must be called only if no part belongs to a region. A region would have to stay
    /// protected during the system call, which cannot be ensured here, because another task may
    /// make that call.
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
        let descriptor = Arc::clone(descriptor);
        self.vmsplice.discard(self.socket_queue.as_deref());
        let context = LeaseContext {
            acknowledgements: None,
            quota: &self.quota,
            stats: &self.stats,
        };
        let outcome = send_zc::step_in_batch(descriptor, step, &context).await;
        self.count_sent(&Linux, step.sink, outcome.moved);
        outcome
    }

    /// Processes the notifications that have arrived, and completes the sends that they belong to.
    /// Returns how many sends were completed by the socket's error queue.
    pub(crate) fn reap(&self) -> usize {
        if let Some(queue) = &self.socket_queue {
            queue.recount();
        }
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
        }
        match &self.msg_zerocopy {
            Some(active) => active.queue().drain(&Linux),
            None => 0,
        }
    }

    /// Waits until some of the memory in flight may have become reusable, for at most
    /// [`LIMIT_POLL_INTERVAL`]. The wait must be short, because the memory in flight may belong to
    /// other senders, whose notifications do not end the wait.
    pub(crate) fn wait_at_limit(&self, limit: Option<Duration>) -> io::Result<()> {
        let interval = match &self.socket_queue {
            Some(queue) if !queue.belongs_to_parent() => QUEUE_POLL_INTERVAL,
            _ => LIMIT_POLL_INTERVAL,
        };
        let interval = limit.map_or(interval, |limit| limit.min(interval));
        let in_use = |active: &&MsgZerocopy| {
            // A forked child must not take the lock of the queue.
            !active.queue().belongs_to_parent() && !active.queue().is_empty()
        };
        match self.msg_zerocopy.as_ref().filter(in_use) {
            Some(active) => active.queue().wait(interval),
            None => {
                thread::sleep(interval);
                Ok(())
            }
        }
    }

    /// Does the same as [`wait_at_limit`](Self::wait_at_limit), but on tokio. If a notification
    /// will arrive for all memory that this sender has in flight, waits for the next one instead of
    /// polling.
    #[cfg(feature = "tokio")]
    pub(crate) async fn until_below_limit(&self) {
        let seen = self.stats.notifications();
        let queue = self.socket_queue.as_ref();
        let is_notified = queue.is_none_or(|queue| queue.belongs_to_parent() || queue.is_empty());
        if is_notified && self.quota.in_flight_bytes() > 0 {
            poll_fn(|cx| self.stats.poll_notification(cx, seen)).await;
        } else {
            // Poll, because nothing tells this sender when bytes leave the socket's queue, or when
            // memory of other senders can be reused.
            let interval = match is_notified {
                true => LIMIT_POLL_INTERVAL,
                false => QUEUE_POLL_INTERVAL,
            };
            let wait = move || thread::sleep(interval);
            let _ = tokio::task::spawn_blocking(wait).await;
        }
    }
}

impl Drop for MemorySink {
    fn drop(&mut self) {
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
            let gifted = acknowledgements.gift_all();
            // The queue exists whenever acknowledgements are tracked.
            if let Some(queue) = &self.socket_queue {
                queue.push_all(gifted);
            }
        }
        let mut socket_queue = self.take_socket_queue();
        if let Some(queue) = self.outstanding_error_queue() {
            let is_same =
                |socket_queue: &mut Arc<SocketQueue>| socket_queue.is_of(&Linux, queue.as_fd());
            let socket_queue = socket_queue.take_if(is_same);
            reaper::adopt(Box::new(OrphanedErrorQueue {
                queue,
                socket_queue,
            }));
        }
        if let Some(queue) = socket_queue {
            reaper::adopt(Box::new(OrphanedSocketQueue(queue)));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;
    use crate::arena::PageBuffer;
    use crate::in_flight::{Lease, SentLease};
    use crate::sys::fork::tests::in_child;

    /// The lock of the error queue is held while the process forks, so the child's copy of the lock
    /// is never released. A child that tried to take the lock would wait forever.
    #[test]
    fn a_child_at_the_limit_does_not_wait_for_a_lock_of_its_parent() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).expect("connected");
        let mut sink = MemorySink::new(Driver::Caller, true, false, 1 << 20, LimitAction::Wait);
        let active = MsgZerocopy::new(&Linux, socket.as_fd()).expect("claimed");
        let queue = Arc::clone(sink.msg_zerocopy.insert(active).queue());
        let pages = PageBuffer::zeroed(1).expect("allocated").freeze();
        let lease = Lease::take(Memory::Pages(pages), &sink.quota).expect("within the limit");
        let part = SendTracker::new().part(&sink.stats, None);
        let wait_in_child = || {
            in_child(|| {
                thread::spawn(|| {
                    thread::sleep(Duration::from_secs(10));
                    std::process::abort();
                });
                u8::from(sink.wait_at_limit(Some(Duration::from_millis(1))).is_ok())
            })
        };
        let mut result = 0;
        let sent = queue.send(SentLease { lease, part }, |_| {
            result = wait_in_child();
            Err(Errno::AGAIN)
        });
        assert_eq!((result, sent), (1, Err(Errno::AGAIN)));
    }
}
