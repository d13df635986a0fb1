//! What a sender knows of its socket, and has lent to it.

#[cfg(feature = "tokio")]
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
#[cfg(feature = "tokio")]
use std::os::fd::OwnedFd;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{SocketAddrAny, getpeername, getsockname};

use crate::acknowledgements::Acknowledgements;
use crate::completion::{Account, Notices, Sending};
use crate::error::Error;
use crate::error_queue::Orphaned;
use crate::lease::{Memory, Quota};
use crate::mechanism::{MemoryOutcome, MsgZerocopy, Terms, Vmsplice, copy_memory, send_zc};
use crate::memory_transfer::{MemoryProgress, MemoryTransfer};
use crate::plan::{Driver, Mechanism, MemorySituation, Plan, plan_memory};
use crate::reaper;
use crate::report::{Report, StepDown};
use crate::sender::{OverQuota, SendOptions, Sent};
use crate::support::{Support, send_is_on};
use crate::sys::{Kernel, Linux};

/// What a [`Sender`](crate::Sender) knows of its socket and has lent to it, without the socket: for I/O
/// objects that have it elsewhere.
///
/// Each channel belongs to one socket, which it is given with every call. Dropping it says that the
/// socket is closed as well; see [`leave_open`](Self::leave_open).
#[derive(Debug)]
pub struct Channel {
    options: SendOptions,
    driver: Driver,
    peer: Peer,
    support: Support,
    quota: Arc<Quota>,
    account: Arc<Account>,
    msg_zerocopy: Option<MsgZerocopy>,
    vmsplice: Vmsplice,
    acknowledgements: Option<Arc<Acknowledgements>>,
    /// A descriptor of the socket's for sends that are queued: it cannot become another's meanwhile.
    #[cfg(feature = "tokio")]
    gathering: Option<Arc<OwnedFd>>,
    unfinished: Option<Unfinished>,
    /// So many sends are not lent, as the kernel copied those before them.
    pause: u32,
    report: Report,
    /// Whether the socket stays open when the channel is dropped.
    stays_open: bool,
}

/// So many notices in a row that say "copied", and lending pauses.
const COPIED_TOO_OFTEN: u32 = 8;

/// For so many sends. The next ones try again: routes change.
const PAUSE: u32 = 256;

/// For so long at most nobody looks whether others have had something back.
const MOMENT: Duration = Duration::from_millis(10);

/// A send that the socket did not take all of. Whoever tries again with the rest gets the plan for the
/// whole: the rest is shorter, and begins where the socket stopped, which is hardly ever a page.
#[derive(Clone, Copy, Debug)]
struct Unfinished {
    whole: Shape,
    /// The address of the first byte that the socket did not take.
    rest: usize,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Peer {
    is_tcp: bool,
    /// Its address is one of this machine's: the kernel copies what it is lent.
    is_here: bool,
}

/// What a plan makes of memory.
#[derive(Clone, Copy, Debug)]
struct Shape {
    len: usize,
    is_page_aligned: bool,
    is_for_good: bool,
    pays_from: usize,
}

impl Shape {
    fn of(parts: &[Memory]) -> Self {
        let page = rustix::param::page_size();
        Self {
            len: parts.iter().map(Memory::len).sum(),
            is_page_aligned: parts
                .first()
                .is_some_and(|first| first.address().is_multiple_of(page)),
            is_for_good: parts.iter().all(Memory::is_for_good),
            pays_from: parts.iter().map(Memory::pays_from).max().unwrap_or(0),
        }
    }
}

impl Peer {
    fn of(socket: BorrowedFd<'_>) -> Self {
        let ip = |address: SocketAddrAny| SocketAddr::try_from(address).ok();
        let there = getpeername(socket).ok().flatten().and_then(ip);
        let here = getsockname(socket).ok().and_then(ip);
        let is_here = there.is_some_and(|there| {
            let there = there.ip().to_canonical();
            there.is_loopback() || here.is_some_and(|here| here.ip().to_canonical() == there)
        });
        Self {
            is_tcp: there.is_some(),
            is_here,
        }
    }
}

impl Channel {
    /// The channel to this connected socket, which `driver` waits for.
    #[must_use]
    pub fn new(socket: impl AsFd, driver: Driver, options: SendOptions) -> Self {
        Self {
            driver,
            peer: Peer::of(socket.as_fd()),
            support: Support::of_process(),
            quota: Quota::new(options.leased_at_most),
            options,
            account: Arc::default(),
            msg_zerocopy: None,
            vmsplice: Vmsplice::default(),
            acknowledgements: None,
            #[cfg(feature = "tokio")]
            gathering: None,
            unfinished: None,
            pause: 0,
            report: Report::default(),
            stays_open: false,
        }
    }

    /// Makes one try to send these bytes, without waiting. The answer tells how many the socket took, from
    /// the first on, at most 2 MiB; 0 if it is full, or nothing more may be [lent](OverQuota::Wait).
    ///
    /// The socket must be non-blocking: by `vmsplice` a blocking one is waited for.
    ///
    /// A try with exactly the rest of what the last one was given goes on as that one began; anything else
    /// is planned anew.
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
            _ => Shape::of(&parts),
        };
        let mut transfer = MemoryTransfer::new(parts, self.plan(whole));
        while let MemoryProgress::SteppedDown = transfer.step(self, socket.as_fd())? {}
        let sent = transfer.into_sent();
        let taken = sent.bytes() as usize;
        self.unfinished = (taken < len).then(|| Unfinished {
            whole,
            rest: address + taken,
        });
        Ok(sent)
    }

    /// Whether these bytes are the rest of what the last [try](Self::try_send) was given.
    #[must_use]
    pub fn goes_on_with(&self, bytes: &[u8]) -> bool {
        let address = bytes.as_ptr().addr();
        self.unfinished.is_some_and(|it| it.rest == address)
    }

    /// A send of these parts, in their order, of which nothing has happened yet.
    pub(crate) fn transfer(&mut self, parts: Vec<Memory>) -> MemoryTransfer {
        let plan = self.plan(Shape::of(&parts));
        MemoryTransfer::new(parts, plan)
    }

    fn plan(&mut self, shape: Shape) -> Plan {
        let switched_on = send_is_on();
        if let Some(forced) = self.options.forced
            && switched_on
        {
            return forced;
        }
        let copies_anyway = self.peer.is_here || self.is_pausing();
        plan_memory(&MemorySituation {
            len: shape.len,
            is_page_aligned: shape.is_page_aligned,
            is_for_good: shape.is_for_good,
            pays_from: shape.pays_from,
            copies_anyway,
            is_tcp: self.peer.is_tcp,
            driver: self.driver,
            switched_on,
            support: &self.support,
        })
    }

    /// Whether lending pauses, because the kernel keeps copying what it is lent.
    fn is_pausing(&mut self) -> bool {
        if self.pause == 0 && self.account.copied_in_a_row() >= COPIED_TOO_OFTEN {
            self.account.forget_copied();
            self.pause = PAUSE;
        }
        let is_pausing = self.pause > 0;
        self.pause = self.pause.saturating_sub(1);
        is_pausing
    }

    /// Makes one try to move bytes by `mechanism`, from the beginning of these parts on, of which there is
    /// at least one. `send_zc` takes several at once.
    pub(crate) fn step(
        &mut self,
        kernel: &impl Kernel,
        mechanism: Mechanism,
        sink: BorrowedFd<'_>,
        parts: &[Memory],
        sending: &Sending,
    ) -> MemoryOutcome {
        let Some(memory) = parts.first() else {
            return MemoryOutcome::Blocked;
        };
        if mechanism == Mechanism::Vmsplice && self.counts_acknowledgements() {
            // Without one, nothing comes back.
            self.acknowledgements = Acknowledgements::of(sink).ok().map(Arc::new);
        }
        let terms = Terms {
            acknowledgements: self.acknowledgements.as_ref(),
            quota: &self.quota,
            account: &self.account,
            sending,
        };
        if mechanism != Mechanism::Vmsplice {
            self.vmsplice.forget();
        }
        match mechanism {
            Mechanism::Copy => copy_memory(kernel, sink, memory, sending),
            Mechanism::Vmsplice => self.vmsplice.step(kernel, sink, memory, &terms),
            // What fills the error queue reads as a broken connection to tokio.
            Mechanism::MsgZerocopy if self.driver == Driver::Tokio => {
                MemoryOutcome::Unsupported(Errno::OPNOTSUPP)
            }
            Mechanism::MsgZerocopy => {
                let tool = match &self.msg_zerocopy {
                    Some(tool) => tool,
                    None => match MsgZerocopy::new(kernel, sink) {
                        Ok(tool) => self.msg_zerocopy.insert(tool),
                        Err(errno) => return MemoryOutcome::Unsupported(errno),
                    },
                };
                tool.step(kernel, sink, memory, &terms)
            }
            Mechanism::SendZc => send_zc::step(sink, parts, &terms),
            // For files.
            _ => MemoryOutcome::Unsupported(Errno::INVAL),
        }
    }

    /// Whether to begin counting what the peer has acknowledged. Not on tokio, where nothing would wake
    /// whoever awaits that.
    fn counts_acknowledgements(&self) -> bool {
        self.options.peer_is_remote
            && self.peer.is_tcp
            && self.driver == Driver::Caller
            && self.acknowledgements.is_none()
    }

    /// Makes one try by `send_zc`, together with other connections of the thread. Only for pages: those of a
    /// region must be protected at the very call.
    ///
    /// # Cancellation
    ///
    /// See [`send_zc::gather`].
    #[cfg(feature = "tokio")]
    pub(crate) async fn gather(
        &mut self,
        sink: BorrowedFd<'_>,
        parts: &[Memory],
        sending: &Sending,
    ) -> MemoryOutcome {
        let descriptor = match &self.gathering {
            Some(descriptor) => descriptor,
            None => match rustix::io::fcntl_dupfd_cloexec(sink, 3) {
                Ok(descriptor) => self.gathering.insert(Arc::new(descriptor)),
                Err(errno) => return MemoryOutcome::CopyThis(errno),
            },
        };
        self.vmsplice.forget();
        let terms = Terms {
            acknowledgements: None,
            quota: &self.quota,
            account: &self.account,
            sending,
        };
        send_zc::gather(Arc::clone(descriptor), parts, &terms).await
    }

    /// Leaves to others what is of no use between two sends.
    pub(crate) fn rest(&mut self) {
        self.vmsplice.rest();
    }

    pub(crate) fn over_quota(&self) -> OverQuota {
        self.options.over_quota
    }

    pub(crate) fn count(&mut self, mechanism: Mechanism, bytes: u64) {
        self.report.count(mechanism, bytes);
    }

    /// Notes that `mechanism` does not work here.
    pub(crate) fn refuse(&mut self, mechanism: Mechanism, errno: Errno) {
        self.support.note(mechanism, errno);
    }

    pub(crate) fn note(&mut self, step: StepDown) {
        self.report.step_down_once(step);
    }

    /// What was sent in all, by mechanism, and how much of it the kernel is known to have copied after
    /// all. Of the steps down, the first of each kind.
    #[must_use]
    pub fn report(&self) -> Report {
        let mut report = self.report.clone();
        report.count_copied_after_all(self.account.copied());
        report
    }

    /// How many bytes are lent, counted by whole pages.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.quota.leased()
    }

    /// Takes in the notices that have come, which settles their completions. Answers how many sends on the
    /// socket's error queue they settled.
    pub fn reap(&self) -> usize {
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
        }
        match &self.msg_zerocopy {
            Some(tool) => tool.queue().take_all(&Linux),
            None => 0,
        }
    }

    /// Waits until some of what is lent may have come back, a short time at most: what is in the way may
    /// be lent by others.
    pub(crate) fn wait(&self, limit: Option<Duration>) -> io::Result<()> {
        let moment = limit.map_or(MOMENT, |limit| limit.min(MOMENT));
        match &self.msg_zerocopy {
            Some(tool) if !tool.queue().is_empty() => tool.queue().wait(moment),
            _ => {
                thread::sleep(moment);
                Ok(())
            }
        }
    }

    /// As [`wait`](Self::wait), on tokio.
    #[cfg(feature = "tokio")]
    pub(crate) async fn until_less_is_lent(&self) {
        let seen = self.account.notices();
        if self.leased() > 0 {
            poll_fn(|cx| self.account.poll_notice(cx, seen)).await;
        } else {
            // Others have lent what is too much, and nobody tells when they have it back.
            let _ = tokio::task::spawn_blocking(|| thread::sleep(MOMENT)).await;
        }
    }

    /// Drops the channel to a socket that stays open.
    pub fn leave_open(mut self) {
        self.stays_open = true;
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        if let Some(acknowledgements) = &self.acknowledgements {
            acknowledgements.reap();
            acknowledgements.give_all_away();
        }
        let Some(tool) = &self.msg_zerocopy else {
            return;
        };
        let queue = Arc::clone(tool.queue());
        if queue.is_of_parent() {
            // Kept, as the parent keeps its own: to drop it would take its lock.
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
        reaper::adopt(Box::new(Orphaned { queue, is_closed }));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{TcpListener, TcpStream};

    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::*;
    use crate::arena::PageBuffer;

    /// Where the socket stops within a page, the rest is not what a plan would choose to lend.
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
        let pages = buffer.freeze_for_good();
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
