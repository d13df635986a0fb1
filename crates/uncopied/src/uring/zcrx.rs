//! Receives from several sockets with one registered interface queue.
//!
//! Each socket has at most one request, which the kernel completes many times: once for each piece
//! of received bytes. A request ends at the end of the stream or with an error, but also when the
//! completion queue is full, or when no buffer of the area is free. In the latter two cases,
//! [`RingReceiver::advance`] makes a new request, which continues with the next byte.
//!
//! A request without a free buffer is *starved*. A new request waits until memory was given back.
//! The kernel may not look into the refill ring by itself, so the ring is flushed first. Because a
//! network card can also return buffers in other ways, a starved request is repeated after
//! [`RETRY_INTERVAL`] in any case.

use std::collections::{HashMap, VecDeque};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use rustix::io::{Errno, Result};

use crate::sys::zcrx::{Completion, Lease, Zcrx};

/// How long a starved request waits if no memory is given back.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_millis(100);

/// How long to wait for the end of a request that was cancelled, and how often. The kernel ends it
/// at once, unless it is broken.
const CANCEL_WAIT: Duration = Duration::from_millis(100);
const MAX_CANCEL_TRIES: u32 = 20;

/// What has arrived for a socket.
#[derive(Debug)]
pub(crate) enum Arrival {
    /// Bytes of the stream.
    Bytes(Lease),
    /// The end of the stream. The socket has no request any more.
    End,
    /// The kernel cannot receive from this socket without copying. No byte is lost: an ordinary
    /// receive continues with the next one. The socket has no request any more.
    Unsupported(Errno),
    /// The connection has failed. The socket has no request any more.
    Failed(Errno),
}

/// The request of a socket.
#[derive(Debug)]
struct Request {
    state: State,
    /// Whether it has received bytes since it was last made.
    has_received: bool,
}

/// The state of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// There is none, but there should be.
    Due,
    Armed,
    /// There is none, because no buffer was free.
    Starved,
    /// It has been asked to end.
    Cancelled,
}

/// What to do when a request has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AfterEnd {
    Repeat,
    RepeatWhenFree,
    End,
    Unsupported,
    Fail,
}

impl AfterEnd {
    fn of(result: Result<()>) -> Self {
        match result {
            Ok(()) => Self::End,
            // The completion queue was full, or a signal arrived.
            Err(Errno::NOSPC | Errno::INTR) => Self::Repeat,
            // No buffer was free, or the kernel could not wait for the socket.
            Err(Errno::NOMEM | Errno::NOBUFS | Errno::AGAIN) => Self::RepeatWhenFree,
            // The socket is not a plain TCP socket, or the kernel lacks this kind of request.
            Err(Errno::PROTONOSUPPORT | Errno::OPNOTSUPP | Errno::INVAL) => Self::Unsupported,
            Err(_) => Self::Fail,
        }
    }
}

/// Receives from several sockets with one interface queue. Tokens identify the sockets. Only the
/// thread that created the ring may use this.
pub(crate) struct RingReceiver {
    ring: Zcrx,
    requests: HashMap<u64, Request>,
    /// The tokens of the requests to make, in order. A token whose request is in another state by
    /// then is skipped.
    due: VecDeque<u64>,
    /// The tokens of those to make after them. If the completion queue is small, the first request
    /// gets all of it. So a request that got bytes is repeated after those that got none.
    due_later: VecDeque<u64>,
    arrivals: VecDeque<(u64, Arrival)>,
    /// When to repeat starved requests, if there are any.
    retry_at: Option<Instant>,
}

impl RingReceiver {
    pub(crate) fn new(ring: Zcrx) -> Self {
        Self {
            ring,
            requests: HashMap::new(),
            due: VecDeque::new(),
            due_later: VecDeque::new(),
            arrivals: VecDeque::new(),
            retry_at: None,
        }
    }

    pub(crate) fn ring(&self) -> &Zcrx {
        &self.ring
    }

    /// Receives from the socket that has this token, from the next [`advance`](Self::advance) on.
    pub(crate) fn add(&mut self, token: u64) {
        let request = Request {
            state: State::Due,
            has_received: false,
        };
        self.requests.insert(token, request);
        self.due.push_back(token);
    }

    /// Returns what has arrived next, of any socket.
    pub(crate) fn next(&mut self) -> Option<(u64, Arrival)> {
        self.arrivals.pop_front()
    }

    /// Whether a socket cannot receive, because no buffer is free.
    pub(crate) fn is_starved(&self) -> bool {
        self.retry_at.is_some()
    }

    /// Whether the next [`advance`](Self::advance) makes a request. The caller must not wait before
    /// that.
    pub(crate) fn has_due(&self) -> bool {
        !(self.due.is_empty() && self.due_later.is_empty())
    }

    /// Returns how long to wait for something to arrive before the next
    /// [`advance`](Self::advance), if there is a limit.
    pub(crate) fn wait_limit(&self) -> Option<Duration> {
        let retry_at = self.retry_at?;
        Some(retry_at.saturating_duration_since(Instant::now()))
    }

    /// Makes the requests that are due, and lets the kernel receive. Does not wait.
    ///
    /// # Errors
    ///
    /// The errno of `io_uring_enter(2)`.
    pub(crate) fn advance<'a>(
        &mut self,
        socket_of: impl Fn(u64) -> Option<BorrowedFd<'a>>,
    ) -> Result<()> {
        self.relieve();
        let entered = self.enter();
        entered.and_then(|()| self.make_due(socket_of))
    }

    /// Lets the kernel receive, and takes what has arrived.
    fn enter(&mut self) -> Result<()> {
        // While the kernel holds back completions for which the queue had no room, every new
        // request would end at once, without having received anything. So take all of them first.
        // Each pass takes at least one, and no request adds more than one: its end.
        for _ in 0..=self.requests.len() + self.due.len() {
            let entered = self.ring.enter();
            // What arrived before an error is not lost.
            self.drain();
            entered?;
            if !self.ring.has_overflow() {
                break;
            }
        }
        Ok(())
    }

    /// Makes the requests that are due.
    fn make_due<'a>(&mut self, socket_of: impl Fn(u64) -> Option<BorrowedFd<'a>>) -> Result<()> {
        if !self.has_due() {
            return Ok(());
        }
        let mut sockets = Vec::new();
        for token in self.due.drain(..).chain(self.due_later.drain(..)) {
            let Some(request) = self.requests.get_mut(&token) else {
                continue;
            };
            if let (State::Due, Some(socket)) = (request.state, socket_of(token)) {
                request.state = State::Armed;
                request.has_received = false;
                sockets.push((socket, token));
            }
        }
        let received = self.ring.receive(&sockets);
        self.drain();
        received
    }

    /// Repeats starved requests if memory was given back, or if they have waited long enough.
    fn relieve(&mut self) {
        // This also moves memory that had no room in the refill ring. It comes after `want`, so
        // that memory that is given back later raises the signal.
        if self.is_starved() {
            self.ring.signal().want();
        }
        let returned = self.ring.refill();
        let Some(retry_at) = self.retry_at else {
            return;
        };
        let is_flushed = returned > 0 && self.ring.flush().is_ok();
        if is_flushed || Instant::now() >= retry_at {
            self.retry_at = None;
            for (&token, request) in &mut self.requests {
                if request.state == State::Starved {
                    request.state = State::Due;
                    self.due.push_back(token);
                }
            }
        }
    }

    fn drain(&mut self) {
        let Self {
            ring,
            requests,
            due,
            due_later,
            arrivals,
            retry_at,
        } = self;
        ring.drain(|completion| match completion {
            Completion::Bytes { token, lease } => {
                // If nobody wants the bytes, dropping the lease gives the memory back.
                if let Some(request) = requests.get_mut(&token) {
                    request.has_received = true;
                    arrivals.push_back((token, Arrival::Bytes(lease)));
                }
            }
            Completion::Ended { token, result } => {
                let Some(request) = requests.get_mut(&token) else {
                    return;
                };
                let is_cancelled = request.state == State::Cancelled;
                let arrival = match (AfterEnd::of(result), result) {
                    (AfterEnd::End, _) | (_, Ok(())) => Some(Arrival::End),
                    (AfterEnd::Repeat, _) if !is_cancelled => {
                        request.state = State::Due;
                        let due = if request.has_received {
                            &mut *due_later
                        } else {
                            &mut *due
                        };
                        due.push_back(token);
                        return;
                    }
                    (AfterEnd::RepeatWhenFree, _) if !is_cancelled => {
                        request.state = State::Starved;
                        retry_at.get_or_insert_with(|| Instant::now() + RETRY_INTERVAL);
                        return;
                    }
                    (AfterEnd::Unsupported, Err(errno)) if !is_cancelled => {
                        Some(Arrival::Unsupported(errno))
                    }
                    // An error of the connection is reported once, so it must not be lost.
                    (AfterEnd::Fail, Err(errno)) if !is_cancelled || errno != Errno::CANCELED => {
                        Some(Arrival::Failed(errno))
                    }
                    _ => None,
                };
                requests.remove(&token);
                arrivals.extend(arrival.map(|arrival| (token, arrival)));
            }
        });
    }

    /// Stops receiving from the socket that has this token, or from all sockets, and waits until
    /// the kernel has stopped. What has arrived until then is still returned by
    /// [`next`](Self::next).
    ///
    /// # Errors
    ///
    /// The errno of `io_uring_enter(2)`, or `ETIMEDOUT` if the kernel does not stop. The kernel may
    /// then still take bytes from the socket.
    pub(crate) fn stop(&mut self, token: Option<u64>) -> Result<()> {
        let is_meant = |it: u64| token.is_none_or(|token| it == token);
        self.requests.retain(|&it, request| {
            !is_meant(it) || matches!(request.state, State::Armed | State::Cancelled)
        });
        if !self.requests.values().any(|it| it.state == State::Starved) {
            self.retry_at = None;
        }
        for _ in 0..MAX_CANCEL_TRIES {
            let mut has_request = false;
            for (&it, request) in &mut self.requests {
                if is_meant(it) {
                    request.state = State::Cancelled;
                    has_request = true;
                }
            }
            if !has_request {
                return Ok(());
            }
            // The kernel does not find a request whose work it has postponed, so ask again.
            self.ring.cancel(token)?;
            self.ring.wait(CANCEL_WAIT)?;
            self.drain();
        }
        Err(Errno::TIMEDOUT)
    }
}

impl AsFd for RingReceiver {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

impl Drop for RingReceiver {
    fn drop(&mut self) {
        // A child shares the submission queue with its parent, and must not touch it.
        if !self.ring.owner_process().is_current() {
            return;
        }
        // Otherwise the kernel would go on to take bytes from the sockets for as long as leases
        // keep the ring open. If it does not stop, nothing else is affected: nobody sees what it
        // receives.
        let _ = self.stop(None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The results with which the kernel ends a request, and what follows.
    #[test]
    fn after_the_end_of_a_request() {
        for (result, expected) in [
            (Ok(()), AfterEnd::End),
            (Err(Errno::NOSPC), AfterEnd::Repeat),
            (Err(Errno::INTR), AfterEnd::Repeat),
            (Err(Errno::NOMEM), AfterEnd::RepeatWhenFree),
            (Err(Errno::NOBUFS), AfterEnd::RepeatWhenFree),
            (Err(Errno::AGAIN), AfterEnd::RepeatWhenFree),
            (Err(Errno::PROTONOSUPPORT), AfterEnd::Unsupported),
            (Err(Errno::OPNOTSUPP), AfterEnd::Unsupported),
            (Err(Errno::INVAL), AfterEnd::Unsupported),
            (Err(Errno::CONNRESET), AfterEnd::Fail),
            (Err(Errno::NOTCONN), AfterEnd::Fail),
            (Err(Errno::TIMEDOUT), AfterEnd::Fail),
            (Err(Errno::FAULT), AfterEnd::Fail),
            (Err(Errno::CANCELED), AfterEnd::Fail),
        ] {
            assert_eq!(AfterEnd::of(result), expected, "{result:?}");
        }
    }
}
