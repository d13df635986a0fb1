//! Sending memory over a socket that somebody else owns.

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::{SocketAddrAny, getpeername, getsockname};

use super::{SendOptions, Sent};
use crate::arena::Memory;
use crate::error::Error;
use crate::mechanism::memory_to_socket::MemorySink;
use crate::policy::{Driver, MemoryPlanInput, Plan, plan_memory, zero_copy_send_enabled};
use crate::report::Report;
use crate::transfer::{MemoryProgress, MemoryTransfer};

/// What a [`Sender`](crate::Sender) knows about its socket and has in flight on it, without the
/// socket itself: for I/O objects that keep their socket elsewhere.
///
/// Each channel belongs to one socket, which every call must be given. Dropping the channel means
/// that the socket is closed as well; otherwise call [`leave_open`](Self::leave_open).
#[derive(Debug)]
pub struct Channel {
    forced: Option<Plan>,
    /// Whether the peer's address is one of this machine's, so that the kernel copies.
    peer_is_local: bool,
    sink: MemorySink,
    unfinished: Option<Unfinished>,
    /// How many of the next sends do not try zero copy, because the kernel copied the latest ones.
    paused_sends: u32,
}

/// Zero-copy sends pause after this many notifications in a row that report a copy.
const PAUSE_AFTER_COPIES: u32 = 8;

/// How many sends a pause lasts. The next ones try again, because routes change.
const PAUSE_SENDS: u32 = 256;

/// A send that the socket did not accept all of. When the caller tries again with the rest, the
/// rest gets the plan for the whole: it is shorter, and begins where the socket stopped, which is
/// hardly ever at the start of a page.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    whole: MemoryShape,
    /// The address of the first byte that the socket did not accept.
    rest: usize,
}

/// What matters for a plan about the memory of a send.
#[derive(Clone, Copy, Debug)]
struct MemoryShape {
    len: usize,
    is_page_aligned: bool,
    is_permanent: bool,
    min_bytes: usize,
}

impl MemoryShape {
    fn of(parts: &[Memory]) -> Self {
        let page = rustix::param::page_size();
        Self {
            len: parts.iter().map(Memory::len).sum(),
            is_page_aligned: parts
                .first()
                .is_some_and(|first| first.address().is_multiple_of(page)),
            is_permanent: parts.iter().all(Memory::is_permanent),
            min_bytes: parts.iter().map(Memory::min_bytes).max().unwrap_or(0),
        }
    }
}

/// Who is at the other end of a socket.
struct Peer {
    is_tcp: bool,
    is_local: bool,
}

impl Peer {
    fn of(socket: BorrowedFd<'_>) -> Self {
        let ip = |address: SocketAddrAny| SocketAddr::try_from(address).ok();
        let peer = getpeername(socket).ok().flatten().and_then(ip);
        let own = getsockname(socket).ok().and_then(ip);
        let is_local = peer.is_some_and(|peer| {
            let peer = peer.ip().to_canonical();
            peer.is_loopback() || own.is_some_and(|own| own.ip().to_canonical() == peer)
        });
        Self {
            is_tcp: peer.is_some(),
            is_local,
        }
    }
}

impl Channel {
    /// The channel to this connected socket, which `driver` waits for.
    #[must_use]
    pub fn new(socket: impl AsFd, driver: Driver, options: SendOptions) -> Self {
        let peer = Peer::of(socket.as_fd());
        let sink = MemorySink::new(
            driver,
            peer.is_tcp,
            options.assume_remote_peer,
            options.in_flight_limit,
            options.at_limit,
        );
        Self {
            forced: options.forced,
            peer_is_local: peer.is_local,
            sink,
            unfinished: None,
            paused_sends: 0,
        }
    }

    /// Makes one try to send these bytes, without waiting. The result says how many of them the
    /// socket accepted, from the first on, at most 2 MiB; 0 if it is full, or if nothing more may
    /// be [in flight](crate::LimitAction::Wait).
    ///
    /// The socket must be non-blocking: `vmsplice` waits for a blocking one.
    ///
    /// A try with exactly the rest of what the last one was given continues as that one began;
    /// anything else gets a new plan.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](crate::ErrorKind).
    pub fn try_send(
        &mut self,
        memory: impl Into<Memory>,
        socket: impl AsFd,
    ) -> Result<Sent, Error> {
        let memory = memory.into();
        let (address, len) = (memory.address(), memory.len());
        let parts = vec![memory];
        let whole = match self.unfinished.take() {
            Some(unfinished) if unfinished.rest == address => unfinished.whole,
            _ => MemoryShape::of(&parts),
        };
        let mut transfer = MemoryTransfer::new(parts, self.plan(whole));
        while let MemoryProgress::FellBack = transfer.step(&mut self.sink, socket.as_fd())? {}
        let sent = Sent::from(transfer);
        let accepted = sent.bytes() as usize;
        self.unfinished = (accepted < len).then(|| Unfinished {
            whole,
            rest: address + accepted,
        });
        Ok(sent)
    }

    /// Whether these bytes are the rest of what the last [try](Self::try_send) was given.
    #[must_use]
    pub fn goes_on_with(&self, bytes: &[u8]) -> bool {
        let address = bytes.as_ptr().addr();
        self.unfinished.is_some_and(|it| it.rest == address)
    }

    /// A send of these parts, in their order, of which nothing has happened yet, and the sink to
    /// step it with.
    pub(crate) fn transfer(&mut self, parts: Vec<Memory>) -> (MemoryTransfer, &mut MemorySink) {
        let plan = self.plan(MemoryShape::of(&parts));
        (MemoryTransfer::new(parts, plan), &mut self.sink)
    }

    fn plan(&mut self, shape: MemoryShape) -> Plan {
        let zero_copy_enabled = zero_copy_send_enabled();
        if let Some(forced) = self.forced
            && zero_copy_enabled
        {
            return forced;
        }
        let input = MemoryPlanInput {
            len: shape.len,
            is_page_aligned: shape.is_page_aligned,
            is_permanent: shape.is_permanent,
            min_bytes: shape.min_bytes,
            kernel_copies: self.peer_is_local || self.count_paused_send(),
            is_tcp: self.sink.is_tcp(),
            driver: self.sink.driver(),
            zero_copy_enabled,
        };
        plan_memory(&input, &self.sink.support)
    }

    /// Counts a send against the pause. Returns whether zero-copy sends pause, because the kernel
    /// keeps copying.
    fn count_paused_send(&mut self) -> bool {
        let stats = self.sink.stats();
        if self.paused_sends == 0 && stats.copied_notifications_in_a_row() >= PAUSE_AFTER_COPIES {
            stats.reset_copied_in_a_row();
            self.paused_sends = PAUSE_SENDS;
        }
        let is_paused = self.paused_sends > 0;
        self.paused_sends = self.paused_sends.saturating_sub(1);
        is_paused
    }

    /// What was sent in total, by mechanism, and how much of it the kernel is known to have copied.
    /// Of the fallbacks, the first of each kind.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.sink.report.clone();
        report.count_kernel_copied(self.sink.stats().copied_bytes());
        report
    }

    /// How many bytes are in flight, counted by whole pages.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.sink.in_flight_bytes()
    }

    /// Processes the notifications that have arrived, which completes their sends. Returns how many
    /// sends the socket's error queue completed.
    pub fn reap(&self) -> usize {
        self.sink.reap()
    }

    /// Drops the channel to a socket that stays open.
    pub fn leave_open(mut self) {
        self.sink.stays_open = true;
    }

    #[cfg(test)]
    pub(crate) fn sink_mut(&mut self) -> &mut MemorySink {
        &mut self.sink
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};
    use std::thread;

    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::*;
    use crate::arena::PageBuffer;
    use crate::policy::Mechanism;

    /// If the socket stops within a page, a plan for the rest alone would copy it.
    #[test]
    fn the_rest_goes_by_the_plan_for_the_whole() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).expect("connected");
        set_socket_send_buffer_size(&socket, 30_000).expect("set");
        socket.set_nonblocking(true).expect("set");
        let (mut peer, _) = listener.accept().expect("accepted");

        let mut buffer = PageBuffer::zeroed((4 << 20) + 77).expect("taken");
        for (at, byte) in buffer.iter_mut().enumerate() {
            *byte = (at % 251) as u8;
        }
        let pages = buffer.freeze_permanently();
        let len = pages.len();
        let reading = thread::spawn(move || {
            let mut got = vec![0; len];
            // An odd number at a time opens the window by an odd number.
            for piece in got.chunks_mut(7001) {
                peer.read_exact(piece).expect("all of it");
            }
            got
        });
        let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
        let (mut at, mut within_pages) = (0, 0);
        while at < len {
            let sent = channel.try_send(pages.slice(at..), &socket);
            let sent = sent.expect("the peer reads");
            at += sent.bytes() as usize;
            within_pages += usize::from(at % 4096 != 0);
        }
        assert!(within_pages > 1, "the socket must stop within pages");
        let got = reading.join().expect("read");
        assert!(got[..] == pages[..]);
        assert_eq!(channel.report().by(Mechanism::Vmsplice), len as u64);

        let sent = channel.try_send(pages.slice(1..), &socket).expect("sent");
        assert_eq!(sent.report().by(Mechanism::Vmsplice), 0, "planned anew");
        assert!(sent.bytes() > 0);
    }
}
