//! Sends memory over a socket that another object owns.

use std::os::fd::AsFd;

use super::{SendOptions, Sent};
use crate::arena::Memory;
use crate::endpoint::{self, IpAddresses, interface_gathers};
use crate::error::{Error, ErrorKind};
use crate::mechanism::memory_to_socket::MemorySink;
use crate::policy::{
    Driver, MemoryPlanInput, Plan, Tuning, WriteProtection, plan_memory, zero_copy_send_enabled,
};
use crate::report::Report;
use crate::transfer::{MemoryProgress, MemoryTransfer};

/// Sends memory over a socket that another I/O object owns. A [`Sender`](crate::Sender) consists of
/// a channel and a socket of its own.
///
/// A channel belongs to the socket that it was created for, and that socket should be passed to
/// every call. The channel checks this by reading `SO_COOKIE`, which costs one system call, before
/// each send with `MSG_ZEROCOPY`, and before each send with `vmsplice` whose
/// [acknowledgements](SendOptions::assume_remote_peer) it tracks. On a different socket, the
/// channel copies instead of using `MSG_ZEROCOPY`, and reports `EBADFD` as the reason. Pages that
/// it sends to a different socket with `vmsplice` are [gifted](crate::FreeReason::Gifted).
///
/// Several channels and senders may share a socket, but only one of them can use `MSG_ZEROCOPY`:
/// see [`Sender`](crate::Sender#what-else-may-use-the-socket). A channel that has used
/// `MSG_ZEROCOPY`, `vmsplice`, or `send_zc` on tokio has a duplicate of the socket's descriptor.
/// Dropping a channel never closes the socket or shuts it down, but if memory is in flight, the
/// library keeps the duplicate: see [`Sender`](crate::Sender#dropping-it).
#[derive(Debug)]
pub struct Channel {
    forced: Option<Plan>,
    /// Whether the peer's address belongs to this machine, in which case the kernel copies every
    /// byte that is sent with `msg_zerocopy` or `send_zc`.
    peer_is_local: bool,
    /// Whether the interface on the way to the peer can send a packet without copying its parts
    /// together. If not, the kernel copies every byte, whatever the mechanism is.
    is_gathered: bool,
    sink: MemorySink,
    unfinished: Option<Unfinished>,
    /// The number of upcoming sends that use neither `msg_zerocopy` nor `send_zc`, because the
    /// kernel copied the latest ones.
    paused_sends: u32,
}

/// After this many notifications in a row that report a copy, `msg_zerocopy` and `send_zc` are not
/// used for the next [`PAUSE_SENDS`] sends.
const PAUSE_AFTER_COPIES: u32 = 8;

/// The length of such a pause, in sends. After it, the mechanisms are tried again, because the
/// route to the peer may have changed.
const PAUSE_SENDS: u32 = 256;

/// A send of which the socket has accepted only a part. When the caller tries again with the rest,
/// the plan for the whole send is used. A plan for the rest alone might copy it, because the rest
/// is shorter and begins where the socket stopped, which is rarely the start of a page.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    whole: MemoryShape,
    /// The address of the first byte that the socket did not accept.
    rest: usize,
}

/// The properties of a send's memory that its plan depends on.
#[derive(Clone, Copy, Debug)]
struct MemoryShape {
    len: usize,
    is_page_aligned: bool,
    is_permanent: bool,
    protection: WriteProtection,
}

impl MemoryShape {
    /// Must be called once for each send, which this counts for its memory.
    fn of(parts: &[Memory], tuning: &Tuning) -> Self {
        let page = rustix::param::page_size();
        Self {
            len: parts.iter().map(Memory::len).sum(),
            is_page_aligned: parts
                .first()
                .is_some_and(|first| first.address().is_multiple_of(page)),
            is_permanent: parts.iter().all(Memory::is_permanent),
            protection: parts
                .iter()
                .map(|part| part.protection_of_next_send(tuning))
                .max()
                .unwrap_or(WriteProtection::NotNeeded),
        }
    }
}

impl Channel {
    /// Creates a channel for this connected stream socket. `driver` is what waits for the socket.
    ///
    /// If the descriptor is not that of a stream socket, every send fails with
    /// [`NotAStreamSocket`](crate::ErrorKind::NotAStreamSocket).
    #[must_use]
    pub fn new(socket: impl AsFd, driver: Driver, options: SendOptions) -> Self {
        let addresses = IpAddresses::of(socket.as_fd());
        let peer_is_local = addresses.is_local();
        let gathers = |own| interface_gathers(socket.as_fd(), own);
        let is_gathered = peer_is_local || addresses.own().is_none_or(gathers);
        let mut sink = MemorySink::new(
            driver,
            addresses.is_connected(),
            options.assume_remote_peer,
            options.in_flight_limit,
            options.at_limit,
        );
        sink.not_a_stream = endpoint::check_stream_socket(socket.as_fd()).err();
        if !is_gathered {
            sink.stats().expect_copies();
        }
        Self {
            forced: options.forced,
            peer_is_local,
            is_gathered,
            sink,
            unfinished: None,
            paused_sends: 0,
        }
    }

    /// Creates a channel for a socket that a [`Sender`](crate::Sender) owns. While the sender
    /// exists, the socket's descriptor stays open. So the channel can recognise the socket by the
    /// number of its descriptor, and need not read the socket's `SO_COOKIE` before each send.
    pub(super) fn of_owned(socket: impl AsFd, driver: Driver, options: SendOptions) -> Self {
        let mut channel = Self::new(socket, driver, options);
        channel.sink.descriptor_stays_open = true;
        channel
    }

    /// Makes the next send check whether the socket is still the same. Called before the owner of
    /// the socket gets access with which it can replace the socket.
    pub(super) fn expect_another_socket(&mut self) {
        self.sink.expect_another_socket();
    }

    /// Tries once to send these bytes, at most 2 MiB, without waiting. The result says how many
    /// bytes the socket accepted, counted from the first.
    ///
    /// The socket must be non-blocking, because sending with `vmsplice` would wait for a blocking
    /// one.
    ///
    /// If the socket accepts only some of the bytes, call this again at once with exactly the rest;
    /// only [`ErrorKind::WouldBlock`] means that it is full. The rest is then sent according to the
    /// same plan. For any other memory, a new plan is made.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`]. If the socket accepted no byte:
    ///
    /// - [`ErrorKind::WouldBlock`]: the socket is full.
    /// - [`ErrorKind::InFlightLimit`]: no more bytes may be in flight. This happens only with
    ///   [`LimitAction::Wait`](crate::LimitAction::Wait).
    pub fn try_send(
        &mut self,
        memory: impl Into<Memory>,
        socket: impl AsFd,
    ) -> Result<Sent, Error> {
        let memory = memory.into();
        let (address, len) = (memory.address(), memory.len());
        let parts = vec![memory];
        let tuning = Tuning::current();
        let whole = match self.unfinished.take() {
            Some(unfinished) if unfinished.rest == address => unfinished.whole,
            _ => MemoryShape::of(&parts, &tuning),
        };
        let mut transfer = MemoryTransfer::new(parts, self.plan(whole, tuning));
        let progress = loop {
            match transfer.step(&mut self.sink, socket.as_fd())? {
                MemoryProgress::FellBack => {}
                progress => break progress,
            }
        };
        let accepted = transfer.bytes() as usize;
        self.unfinished = (accepted < len).then(|| Unfinished {
            whole,
            rest: address + accepted,
        });
        match progress {
            MemoryProgress::Blocked if accepted == 0 => {
                Err(transfer.would_block(ErrorKind::WouldBlock))
            }
            MemoryProgress::AtLimit if accepted == 0 => {
                Err(transfer.would_block(ErrorKind::InFlightLimit))
            }
            _ => Ok(transfer.into()),
        }
    }

    /// Whether these bytes begin where the last [`try_send`](Self::try_send) stopped, so that
    /// sending them continues that send.
    #[must_use]
    pub fn goes_on_with(&self, bytes: &[u8]) -> bool {
        let address = bytes.as_ptr().addr();
        self.unfinished.is_some_and(|it| it.rest == address)
    }

    /// Returns a new transfer of these parts, in this order, and the sink to step it with. Nothing
    /// is sent yet.
    pub(crate) fn transfer(&mut self, parts: Vec<Memory>) -> (MemoryTransfer, &mut MemorySink) {
        let tuning = Tuning::current();
        let plan = self.plan(MemoryShape::of(&parts, &tuning), tuning);
        (MemoryTransfer::new(parts, plan), &mut self.sink)
    }

    fn plan(&mut self, shape: MemoryShape, tuning: Tuning) -> Plan {
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
            protection: shape.protection,
            kernel_copies: self.peer_is_local || self.count_paused_send(),
            is_gathered: self.is_gathered,
            is_tcp: self.sink.is_tcp(),
            driver: self.sink.driver(),
            zero_copy_enabled,
            tuning,
        };
        plan_memory(&input, &self.sink.support)
    }

    /// Returns whether `msg_zerocopy` and `send_zc` are paused, because the kernel keeps copying.
    /// If so, counts this send as one of the [`PAUSE_SENDS`] of the pause.
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

    /// Returns how many bytes were sent in total, by mechanism, and how many of them the kernel is
    /// known to have copied. If a mechanism fell back several times with the same errno, only the
    /// first time is listed.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.sink.report.clone();
        report.count_kernel_copied(self.sink.stats().copied_bytes());
        report.count_copied_on_write(self.sink.stats().copied_on_write().get());
        report
    }

    /// Returns how many bytes are in flight. A page that is partly in flight counts as a whole
    /// page. Reads the length of the socket's queue if bytes may be in it that were sent with
    /// `vmsplice`.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.sink.in_flight_bytes()
    }

    /// Processes the notifications that have arrived, and completes the sends that they belong to.
    /// Returns how many sends were completed by the socket's error queue.
    pub fn reap(&self) -> usize {
        self.sink.reap()
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
    use crate::policy::{Mechanism, Support};

    /// A socket that becomes full often stops in the middle of a page. A plan for the rest alone
    /// would copy the rest, because it does not begin at the start of a page.
    #[test]
    fn the_rest_of_a_send_uses_the_plan_for_the_whole() {
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
            // Reading an odd number of bytes opens the peer's receive window by an odd number, so
            // the socket stops in the middle of pages.
            for piece in got.chunks_mut(7001) {
                peer.read_exact(piece).expect("all of it");
            }
            got
        });
        let mut channel = Channel::new(&socket, Driver::Caller, SendOptions::default());
        // A test with a faulty kernel may have refused `vmsplice` to the whole process.
        channel.sink_mut().support = Support::none_refused();
        let (mut at, mut within_pages) = (0, 0);
        while at < len {
            at += match channel.try_send(pages.slice(at..), &socket) {
                Ok(sent) => sent.bytes() as usize,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => panic!("{error}"),
            };
            within_pages += usize::from(at % 4096 != 0);
        }
        assert!(within_pages > 1, "the socket must stop within pages");
        let got = reading.join().expect("read");
        assert!(got[..] == pages[..]);
        assert_eq!(channel.report().by(Mechanism::Vmsplice), len as u64);

        let sent = channel.try_send(pages.slice(1..), &socket).expect("sent");
        assert_eq!(sent.report().by(Mechanism::Vmsplice), 0, "a new plan");
        assert!(sent.bytes() > 0);
    }
}
