//! The queue: receives from several sockets.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::io::{Errno as RawErrno, Result as RawResult};

use super::Refusal;
use super::chunk::Chunk;
use super::copying::Copying;
use crate::endpoint::{StreamSocket, check_stream_socket};
use crate::error::{Error, ErrorKind};
use crate::in_flight::registry::reap_all;
use crate::policy::{Direction, Mechanism, zero_copy_receive_enabled};
use crate::report::{Fallback, Report};
use crate::sys::Errno;
use crate::sys::fork::OwnerProcess;
use crate::sys::zcrx::Signal;
use crate::uring::zcrx::{Arrival, RETRY_INTERVAL, RingReceiver};

/// How often a call whose timeout has passed looks again, if the kernel says that there is work,
/// but nothing arrives.
const MAX_IDLE_PASSES: u32 = 64;

/// Identifies a socket of a [`Queue`]. No two sockets ever have the same one, even in different
/// queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u64);

impl Id {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// What has happened to a socket of a [`Queue`].
#[derive(Debug)]
pub enum Event {
    /// Bytes of the stream have arrived. Those of one socket come in order.
    Chunk(Chunk),
    /// The stream has ended: the peer has shut down its side. Nothing more will be received from
    /// the socket.
    End,
    /// The connection has failed, for example because the peer has reset it. Nothing more will be
    /// received from the socket. The error says how many bytes were received before.
    Failed(Error),
}

/// Receives from several sockets into one area of memory.
///
/// A [`Builder`](super::Builder) creates a queue. [`add`](Self::add) adds a socket, and
/// [`receive`](Self::receive) returns what arrives next, of any of them.
///
/// A queue is bound to the thread that has created it, because the kernel demands that. [`Chunk`]s
/// can be used and dropped in any thread.
///
/// ```compile_fail,E0277
/// fn is_send<T: Send>() {}
/// is_send::<uncopied::zcrx::Queue<std::net::TcpStream>>();
/// ```
///
/// # When memory runs out
///
/// If chunks hold all buffers of the area, nothing more is received, the bytes wait in the sockets,
/// and the peers are slowed down by TCP's flow control. [`receive`](Self::receive) then waits until
/// a chunk is dropped, and [`is_starved`](Self::is_starved) returns true. That is no error, and no
/// byte is lost. But a thread that holds all chunks itself must not wait without a timeout.
///
/// Chunks that were sent on are held until the peer has acknowledged them, so make the area larger
/// than what all senders have [in flight](crate::SendOptions::in_flight_limit).
///
/// # In an event loop of your own
///
/// The queue's descriptor ([`AsFd`]) is readable once `receive` may have something to return. Call
/// `receive(Some(Duration::ZERO))` until it returns `None`, and only then wait for the descriptor.
/// While the queue [is starved](Self::is_starved), also call it every 100 ms.
///
/// # Dropping it
///
/// Dropping the queue stops receiving, and drops the sockets. What has arrived and was not returned
/// yet is lost. Chunks stay valid, and keep the receive queue of the network card registered.
///
/// A forked child cannot use the queue of its parent: [`receive`](Self::receive) fails there. But
/// it keeps the receive queue registered, until it exits or replaces itself by another program.
pub struct Queue<S: StreamSocket> {
    /// `None` if every byte is copied by ordinary calls.
    ring: Option<RingReceiver>,
    /// Whether the ring has no device, so that the kernel copies.
    is_kernel_copying: bool,
    refusal: Option<Refusal>,
    copying: Copying,
    sockets: HashMap<u64, Member<S>>,
    events: VecDeque<(Id, Event)>,
    report: Report,
    owner_process: OwnerProcess,
    /// The ring may be used by one thread only.
    not_send: PhantomData<*const ()>,
}

struct Member<S> {
    socket: S,
    state: State,
    report: Report,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The ring receives.
    Ring,
    /// Ordinary calls receive.
    Copy(Why),
    /// Nothing is received any more.
    Ended,
}

/// Why ordinary calls receive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Zero-copy receiving is switched off. If it is switched on, the ring receives again.
    SwitchedOff,
    /// The queue or the socket supports nothing else.
    Unsupported,
}

impl<S: StreamSocket> Queue<S> {
    pub(super) fn new(
        ring: Option<(RingReceiver, bool)>,
        signal: Arc<Signal>,
        area_bytes: usize,
        refusal: Option<Refusal>,
    ) -> RawResult<Self> {
        let (ring, is_kernel_copying) = ring.unzip();
        Ok(Self {
            ring,
            is_kernel_copying: is_kernel_copying.unwrap_or(false),
            refusal,
            copying: Copying::new(signal, area_bytes)?,
            sockets: HashMap::new(),
            events: VecDeque::new(),
            report: Report::default(),
            owner_process: OwnerProcess::current(),
            not_send: PhantomData,
        })
    }

    /// Adds a connected socket, and returns its identifier. What is received from then on comes out
    /// of [`receive`](Self::receive). Meanwhile, nothing else may read from the socket: not another
    /// queue, nor this queue through a clone of the socket.
    ///
    /// Only plain TCP is received without copying. From other stream sockets, and from TCP sockets
    /// with another protocol on top (Multipath TCP, kernel TLS), the queue receives with ordinary
    /// calls. The socket need not be non-blocking.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::Unsupported`]: the process is a forked child of the one that has created
    ///   the queue.
    /// - `ENOTSOCK`, `EPROTOTYPE`: the descriptor is not that of a stream socket.
    /// - If the queue copies: `EEXIST` if the socket is in the queue already, `ENOSPC` or `ENOMEM`
    ///   if the limit on the number of watched descriptors is reached, or there is no memory.
    pub fn add(&mut self, socket: S) -> io::Result<Id> {
        self.check_process()?;
        check_stream_socket(socket.as_fd())?;
        let id = Id::next();
        let state = if self.ring.is_none() {
            State::Copy(Why::Unsupported)
        } else if zero_copy_receive_enabled() {
            State::Ring
        } else {
            State::Copy(Why::SwitchedOff)
        };
        match (&mut self.ring, state) {
            (Some(ring), State::Ring) => ring.add(id.0),
            _ => self.copying.add(id.0, socket.as_fd())?,
        }
        let member = Member {
            socket,
            state,
            report: Report::default(),
        };
        self.sockets.insert(id.0, member);
        Ok(id)
    }

    /// Returns a socket, for example to send a reply.
    #[must_use]
    pub fn get(&self, id: Id) -> Option<&S> {
        Some(&self.sockets.get(&id.0)?.socket)
    }

    /// Stops receiving from a socket, and returns it. Also returns what has arrived and was not
    /// returned by [`receive`](Self::receive) yet, in order: the next bytes that are read from the
    /// socket follow those of these chunks.
    ///
    /// # Errors
    ///
    /// - [`io::ErrorKind::NotFound`]: the queue has no such socket.
    /// - The errno of `io_uring_enter(2)`, if the kernel does not stop receiving. The socket stays
    ///   in the queue.
    pub fn remove(&mut self, id: Id) -> io::Result<(S, Vec<Event>)> {
        self.check_process()?;
        let member = self.sockets.get(&id.0).ok_or(io::ErrorKind::NotFound)?;
        match member.state {
            State::Ring => self.stop_ring(Some(id.0))?,
            State::Copy(_) => self.copying.remove(id.0, member.socket.as_fd()),
            State::Ended => {}
        }
        let member = self.sockets.remove(&id.0).ok_or(io::ErrorKind::NotFound)?;
        let (removed, others) = std::mem::take(&mut self.events)
            .into_iter()
            .partition::<Vec<_>, _>(|(it, _)| *it == id);
        self.events = others.into();
        let removed = removed.into_iter().map(|(_, event)| event).collect();
        Ok((member.socket, removed))
    }

    /// Returns what happens next to any of the sockets, and waits for it for at most `timeout`, or
    /// without a limit.
    ///
    /// Returns `None` if nothing has happened within the timeout, or if no socket of the queue can
    /// receive anything any more.
    ///
    /// # Errors
    ///
    /// The ring of the queue has failed: the errno of `io_uring_enter(2)`, for example because a
    /// seccomp filter forbids it. Errors of a connection are [events](Event::Failed). In a forked
    /// child: [`io::ErrorKind::Unsupported`].
    pub fn receive(&mut self, timeout: Option<Duration>) -> io::Result<Option<(Id, Event)>> {
        self.check_process()?;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        let mut late_passes = 0;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            let result = self.follow_switch().and_then(|()| self.receive_with_ring());
            self.receive_by_copying();
            if !self.events.is_empty() {
                continue;
            }
            result?;
            let is_over = |it: &Member<S>| it.state == State::Ended;
            if self.sockets.values().all(is_over) {
                return Ok(None);
            }
            if self.is_starved() {
                // Chunks that were sent on are dropped when somebody reads the notifications of the
                // kernel. If this thread is the one that sends, nobody else does meanwhile.
                reap_all();
            }
            let has_due = self.ring.as_ref().is_some_and(RingReceiver::has_due);
            let has_work = has_due || self.wait(deadline)?;
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                late_passes += 1;
                if !has_work || late_passes > MAX_IDLE_PASSES {
                    return Ok(None);
                }
            }
        }
    }

    /// Returns why the queue copies every byte, if it does. See
    /// [`Builder::register_or_copy`](super::Builder::register_or_copy).
    #[must_use]
    pub fn refusal(&self) -> Option<&Refusal> {
        self.refusal.as_ref()
    }

    /// Whether chunks held all memory of the area when [`receive`](Self::receive) last tried to
    /// receive. Dropping a chunk ends that.
    #[must_use]
    pub fn is_starved(&self) -> bool {
        let ring = self.ring.as_ref();
        ring.is_some_and(RingReceiver::is_starved) || self.copying.is_starved()
    }

    /// Returns the size of a buffer of the area, in bytes. No chunk that the network card has
    /// received is larger. Returns `None` if the queue copies every byte.
    #[must_use]
    pub fn buffer_bytes(&self) -> Option<usize> {
        Some(self.ring.as_ref()?.ring().buffer_bytes())
    }

    /// Returns the report of everything that the queue has received.
    #[must_use]
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Returns how many bytes the kernel itself has copied into the area, because the network card
    /// did not put them there. Returns `None` if the kernel does not count that: Linux before 7.2.
    ///
    /// If the number grows as fast as bytes are received, the connections are not steered to the
    /// queue, or the network card does not split headers from data: see
    /// [above](super#when-the-kernel-copies). Bytes of small packets that are in the same piece of
    /// memory as the headers are copied, but not counted.
    #[must_use]
    pub fn copied_by_kernel(&self) -> Option<u64> {
        self.ring.as_ref()?.ring().copied_bytes()
    }

    /// Returns the report of everything that was received from one socket. It does not say what the
    /// kernel has copied, unless the queue has no device: the kernel counts that for the whole
    /// queue.
    #[must_use]
    pub fn report_of(&self, id: Id) -> Option<&Report> {
        Some(&self.sockets.get(&id.0)?.report)
    }

    /// Waits until there may be something to receive. Returns whether there is.
    fn wait(&mut self, deadline: Option<Instant>) -> RawResult<bool> {
        let left = deadline.map(|it| it.saturating_duration_since(Instant::now()));
        let retry = self.ring.as_ref().and_then(RingReceiver::wait_limit);
        let reap = self.copying.is_starved().then_some(RETRY_INTERVAL);
        let limit = [left, retry, reap].into_iter().flatten().min();
        let ring = self.ring.as_ref().map(AsFd::as_fd);
        self.copying.wait(ring, limit)
    }

    fn check_process(&self) -> io::Result<()> {
        if self.owner_process.is_current() {
            return Ok(());
        }
        let why = "the queue was created before the process forked: only the parent can receive";
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    }

    /// Moves sockets between the ring and ordinary calls, if zero-copy receiving was switched on or
    /// off.
    fn follow_switch(&mut self) -> RawResult<()> {
        if self.ring.is_none() {
            return Ok(());
        }
        let (from, to) = if zero_copy_receive_enabled() {
            (State::Copy(Why::SwitchedOff), State::Ring)
        } else {
            (State::Ring, State::Copy(Why::SwitchedOff))
        };
        if !self.sockets.values().any(|it| it.state == from) {
            return Ok(());
        }
        if from == State::Ring {
            self.stop_ring(None)?;
        }
        for (&token, member) in &mut self.sockets {
            // The connection may have ended when the ring was stopped.
            if member.state != from {
                continue;
            }
            if let (State::Ring, Some(ring)) = (to, &mut self.ring) {
                self.copying.remove(token, member.socket.as_fd());
                ring.add(token);
            } else {
                self.copying.add(token, member.socket.as_fd())?;
            }
            member.state = to;
        }
        Ok(())
    }

    /// Makes the ring stop receiving from one socket or from all, and takes over what has arrived.
    fn stop_ring(&mut self, token: Option<u64>) -> RawResult<()> {
        let stopped = self.ring.as_mut().map_or(Ok(()), |ring| ring.stop(token));
        self.take_arrivals();
        stopped
    }

    fn receive_with_ring(&mut self) -> RawResult<()> {
        let sockets = &self.sockets;
        if let Some(ring) = &mut self.ring {
            let advanced = ring.advance(|token| Some(sockets.get(&token)?.socket.as_fd()));
            self.take_arrivals();
            return advanced;
        }
        Ok(())
    }

    /// Counts what the kernel has copied since the last time.
    fn count_kernel_copied(&mut self) {
        let copied = self.copied_by_kernel();
        // Without a device, every byte was counted when it arrived.
        if let Some(copied) = copied.filter(|_| !self.is_kernel_copying) {
            let counted = self.report.kernel_copied();
            self.report
                .count_kernel_copied(copied.saturating_sub(counted));
        }
    }

    /// Turns what the ring has received into events.
    fn take_arrivals(&mut self) {
        self.count_kernel_copied();
        while let Some((token, arrival)) = self.ring.as_mut().and_then(RingReceiver::next) {
            let Some(member) = self.sockets.get_mut(&token) else {
                continue;
            };
            let event = match arrival {
                Arrival::Bytes(lease) => {
                    let len = lease.len() as u64;
                    for report in [&mut member.report, &mut self.report] {
                        report.count(Mechanism::Zcrx, len);
                        if self.is_kernel_copying {
                            report.count_kernel_copied(len);
                        }
                    }
                    Event::Chunk(Chunk::leased(lease))
                }
                Arrival::End => {
                    member.state = State::Ended;
                    Event::End
                }
                Arrival::Failed(errno) => member.fail(errno, Mechanism::Zcrx),
                Arrival::Unsupported(errno) => {
                    match self.copying.add(token, member.socket.as_fd()) {
                        Ok(()) => {
                            member.state = State::Copy(Why::Unsupported);
                            let fallback = Fallback {
                                from: Mechanism::Zcrx,
                                to: Mechanism::Copy,
                                errno: Errno::of(errno),
                                at: member.report.bytes(),
                            };
                            member.report.record_fallback_once(fallback);
                            self.report.record_fallback_once(fallback);
                            continue;
                        }
                        Err(_) => member.fail(errno, Mechanism::Zcrx),
                    }
                }
            };
            self.events.push_back((Id(token), event));
        }
    }

    /// Receives once from each socket that is to be received from with ordinary calls.
    fn receive_by_copying(&mut self) {
        // Events wait in memory, so receive no more than one piece from each socket.
        for _ in 0..self.sockets.len() {
            let Some(token) = self.copying.next_readable() else {
                return;
            };
            let Some(member) = self.sockets.get_mut(&token) else {
                continue;
            };
            let event = match self.copying.receive(token, member.socket.as_fd()) {
                Ok(Some(chunk)) => {
                    for report in [&mut member.report, &mut self.report] {
                        report.count(Mechanism::Copy, chunk.len() as u64);
                        if !zero_copy_receive_enabled() {
                            report.set_switched_off(Direction::SocketToMemory);
                        }
                    }
                    Event::Chunk(chunk)
                }
                Ok(None) => {
                    self.copying.remove(token, member.socket.as_fd());
                    member.state = State::Ended;
                    Event::End
                }
                Err(RawErrno::AGAIN) => continue,
                Err(errno) => {
                    self.copying.remove(token, member.socket.as_fd());
                    member.fail(errno, Mechanism::Copy)
                }
            };
            self.events.push_back((Id(token), event));
        }
    }
}

impl<S> Member<S> {
    /// Ends the connection, and returns the event that says so.
    fn fail(&mut self, errno: RawErrno, mechanism: Mechanism) -> Event {
        self.state = State::Ended;
        let call = match mechanism {
            Mechanism::Copy => "recv",
            _ => mechanism.system_call(),
        };
        let kind = ErrorKind::of_received(errno);
        let report = self.report.clone();
        let error = Error::of_transfer(kind, mechanism, call, report, Some(errno.into()));
        Event::Failed(error.in_direction(Direction::SocketToMemory))
    }
}

impl<S: StreamSocket> AsFd for Queue<S> {
    /// Returns the descriptor to wait for [in an event loop](Self#in-an-event-loop-of-your-own).
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.copying.as_fd()
    }
}

impl<S: StreamSocket> fmt::Debug for Queue<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("sockets", &self.sockets.len())
            .field("refusal", &self.refusal)
            .field("is_starved", &self.is_starved())
            .field("report", &self.report)
            .finish_non_exhaustive()
    }
}
