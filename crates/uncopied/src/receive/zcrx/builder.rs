//! Creating a queue.

use std::io;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::Queue;
use super::refusal::{Cause, Refusal};
use crate::endpoint::StreamSocket;
use crate::policy::zero_copy_receive_enabled;
use crate::sys::zcrx::{Device, Layout, RegistrationError, Signal, Step, Zcrx};
use crate::uring::zcrx::RingReceiver;

/// Default size of the area, in bytes.
pub const DEFAULT_AREA_BYTES: usize = 16 << 20;

/// The limits of the kernel on the entries of the refill ring and of the completion queue.
const MAX_REFILL_ENTRIES: u32 = 32 << 10;
const MAX_COMPLETION_ENTRIES: u32 = 64 << 10;

/// Creates a [`Queue`].
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until it registers a queue"]
pub struct Builder {
    interface: Option<(String, u32)>,
    area_bytes: usize,
    refill_entries: Option<u32>,
    completion_entries: Option<u32>,
}

impl Builder {
    /// Receives with a receive queue of a network card. Queues are numbered from 0.
    ///
    /// The connections must be steered to that queue: see
    /// [preparing the network card](super#preparing-the-network-card).
    /// What arrives by another queue is received as well, but the kernel copies it.
    pub fn for_interface(interface: impl Into<String>, queue: u32) -> Self {
        Self::new(Some((interface.into(), queue)))
    }

    /// Receives without a network card: the kernel copies every byte into the area, and reports
    /// say so. This is for tests of programs on machines that lack such a card.
    ///
    /// Needs Linux 7.1 or later, and `CAP_NET_ADMIN`.
    pub fn without_device() -> Self {
        Self::new(None)
    }

    fn new(interface: Option<(String, u32)>) -> Self {
        Self {
            interface,
            area_bytes: DEFAULT_AREA_BYTES,
            refill_entries: None,
            completion_entries: None,
        }
    }

    /// Sets the size of the area, in bytes, which is rounded up to whole pages. The default is
    /// [`DEFAULT_AREA_BYTES`].
    ///
    /// The area must hold what the network card receives before the program has it, and all chunks
    /// that the program holds. It stays locked in memory. Without `CAP_IPC_LOCK`, it counts against
    /// the limit on locked memory (`RLIMIT_MEMLOCK`).
    pub fn area_bytes(mut self, bytes: usize) -> Self {
        self.area_bytes = bytes;
        self
    }

    /// Sets the number of entries of the refill ring, which is rounded up to a power of two. The
    /// default is one entry for each page of the area. The maximum is 32768.
    ///
    /// If more chunks are dropped than the ring has entries, before the kernel looks into it, the
    /// library keeps the others until there is room.
    pub fn refill_entries(mut self, entries: u32) -> Self {
        self.refill_entries = Some(entries);
        self
    }

    /// Sets the number of entries of the completion queue, which is rounded up to a power of two.
    /// The default is one entry for each page of the area. The maximum is 65536.
    ///
    /// Each entry describes one chunk that the kernel has received and that the program has not got
    /// yet. If the queue is full, the kernel stops receiving until the program calls
    /// [`Queue::receive`] again.
    pub fn completion_entries(mut self, entries: u32) -> Self {
        self.completion_entries = Some(entries);
        self
    }

    /// Registers the queue.
    ///
    /// # Errors
    ///
    /// Why this is not possible here. To receive nevertheless, use
    /// [`register_or_copy`](Self::register_or_copy), or receive from the sockets without a queue.
    pub fn register<S: StreamSocket>(&self) -> Result<Queue<S>, Refusal> {
        self.try_register(&new_signal(&self.interface)?)
    }

    /// Registers the queue. If that is not possible, returns a queue that receives with ordinary
    /// calls, which copy every byte. [`Queue::refusal`] says why. Chunks that are held count
    /// against the size of the area then as well.
    ///
    /// ```
    /// use std::{io::Write, net::{TcpListener, TcpStream}};
    /// use uncopied::zcrx::{Builder, Event};
    ///
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let mut peer = TcpStream::connect(listener.local_addr()?)?;
    /// let mut queue = Builder::for_interface("eth0", 1).register_or_copy()?;
    /// if let Some(refusal) = queue.refusal() {
    ///     eprintln!("every byte is copied: {refusal}");
    /// }
    /// let id = queue.add(listener.accept()?.0)?;
    /// peer.write_all(b"hello")?;
    /// match queue.receive(None)? {
    ///     Some((from, Event::Chunk(chunk))) => {
    ///         assert_eq!((from, &chunk[..]), (id, &b"hello"[..]));
    ///     }
    ///     other => panic!("{other:?}"),
    /// }
    /// # Ok::<(), std::io::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// There is no file descriptor left, or no memory.
    pub fn register_or_copy<S: StreamSocket>(&self) -> io::Result<Queue<S>> {
        let signal = new_signal(&self.interface)?;
        match self.try_register(&signal) {
            Ok(queue) => Ok(queue),
            Err(refusal) => {
                let area_bytes = self.area_bytes.max(1);
                Ok(Queue::new(None, signal, area_bytes, Some(refusal))?)
            }
        }
    }

    fn try_register<S: StreamSocket>(&self, signal: &Arc<Signal>) -> Result<Queue<S>, Refusal> {
        let interface = self.interface.clone();
        if !zero_copy_receive_enabled() {
            return Err(Refusal::without_errno(Cause::SwitchedOff, interface));
        }
        let Some(layout) = self.layout() else {
            return Err(Refusal::without_errno(Cause::InvalidSizes, interface));
        };
        let device = match &interface {
            None => Device::None,
            Some(interface) => Device::Interface {
                index: interface_index(interface)?,
                queue: interface.1,
            },
        };
        let ring = Zcrx::register(device, layout, Arc::clone(signal))
            .map_err(|error| Refusal::of(error, interface.clone()))?;
        let area_bytes = ring.area_bytes();
        let receiver = RingReceiver::new(ring);
        let is_copied = device == Device::None;
        let queue = Queue::new(
            Some((receiver, is_copied)),
            Arc::clone(signal),
            area_bytes,
            None,
        );
        queue.map_err(|errno| Refusal::of(setup_error(errno), interface))
    }

    /// Returns the sizes, or `None` if they cannot be used.
    fn layout(&self) -> Option<Layout> {
        let page = rustix::param::page_size();
        let pages = u32::try_from(self.area_bytes.div_ceil(page)).unwrap_or(u32::MAX);
        let entries = |set: Option<u32>, max: u32| {
            let entries = set.unwrap_or(pages.min(max));
            (1..=max)
                .contains(&entries)
                .then(|| entries.next_power_of_two())
        };
        Some(Layout {
            area_bytes: (pages > 0).then_some(self.area_bytes)?,
            refill_entries: entries(self.refill_entries, MAX_REFILL_ENTRIES)?,
            completion_entries: entries(self.completion_entries, MAX_COMPLETION_ENTRIES)?,
        })
    }
}

fn new_signal(interface: &Option<(String, u32)>) -> Result<Arc<Signal>, Refusal> {
    let signal = Signal::new();
    let signal = signal.map_err(|errno| Refusal::of(setup_error(errno), interface.clone()))?;
    Ok(Arc::new(signal))
}

fn setup_error(errno: Errno) -> RegistrationError {
    RegistrationError {
        step: Step::Setup,
        errno,
        is_known: true,
    }
}

fn interface_index(interface: &(String, u32)) -> Result<u32, Refusal> {
    let any_socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let any_socket =
        any_socket.map_err(|errno| Refusal::of(setup_error(errno), Some(interface.clone())))?;
    rustix::net::netdevice::name_to_index(any_socket, &interface.0)
        .map_err(|errno| Refusal::no_such_interface(errno, interface.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sizes_of_a_queue() {
        let page = rustix::param::page_size();
        let sizes = |builder: &Builder| {
            let layout = builder.layout()?;
            Some((layout.refill_entries, layout.completion_entries))
        };
        let builder = Builder::without_device();
        let pages = u32::try_from(DEFAULT_AREA_BYTES / page).expect("few");
        assert_eq!(sizes(&builder), Some((pages, pages)));
        assert_eq!(sizes(&builder.clone().area_bytes(1)), Some((1, 1)));
        let odd = builder.clone().area_bytes(5 * page);
        assert_eq!(sizes(&odd), Some((8, 8)));
        let huge = builder.clone().area_bytes(1 << 40);
        let max = (MAX_REFILL_ENTRIES, MAX_COMPLETION_ENTRIES);
        assert_eq!(sizes(&huge), Some(max));
        let set = odd.refill_entries(3).completion_entries(100);
        assert_eq!(sizes(&set), Some((4, 128)));

        for invalid in [
            builder.clone().area_bytes(0),
            builder.clone().refill_entries(0),
            builder.clone().refill_entries(MAX_REFILL_ENTRIES + 1),
            builder.clone().completion_entries(0),
            builder
                .clone()
                .completion_entries(MAX_COMPLETION_ENTRIES + 1),
        ] {
            assert_eq!(sizes(&invalid), None, "{invalid:?}");
        }
    }
}
