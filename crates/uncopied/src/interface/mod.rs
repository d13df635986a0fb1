//! What a network interface can do for zero copy, and what to change if it cannot.
//!
//! # Sending
//!
//! The kernel can send pages without copying them only if the interface gathers a packet from
//! several pieces of memory (scatter-gather): see [`Interface::offloads`].
//!
//! # Receiving
//!
//! A network card writes a packet into memory before anybody has looked at its headers. The kernel
//! can hand the payload to a program without copying it only if the card puts the payload into
//! memory of its own, apart from the headers. This is **header splitting**, which ethtool calls
//! `tcp-data-split`. Both ways of receiving without a copy depend on it:
//!
//! - `TCP_ZEROCOPY_RECEIVE` maps the pages of the payloads. So it also needs [payloads of whole
//!   pages](crate::PagePayload).
//! - io_uring zero-copy receive needs that even the smallest packets are split, and a receive queue
//!   of its own, to which the card steers the connections.
//!
//! On the loopback interface and on other virtual interfaces, no card writes packets, so there is
//! nothing to split.
//!
//! ```no_run
//! use uncopied::interface::{HeaderSplit, Interface};
//!
//! let interface = Interface::by_name("eth0")?;
//! if interface.header_split != HeaderSplit::On {
//!     for advice in interface.advice() {
//!         println!("{advice}");
//!     }
//! }
//! # Ok::<(), uncopied::interface::InterfaceError>(())
//! ```
//!
//! # References
//!
//! The documentation of Linux describes the settings in [`ethtool-netlink.rst`], and what io_uring
//! needs in [`iou-zcrx.rst`].
//!
//! [`ethtool-netlink.rst`]: https://docs.kernel.org/networking/ethtool-netlink.html
//! [`iou-zcrx.rst`]: https://docs.kernel.org/networking/iou-zcrx.html

mod advice;
mod error;
mod offloads;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::sys::{
    Ethtool, Rings, driver, index_of_address, interface_flags, interface_indices, mtu,
};
pub(crate) use advice::shell_word;
pub use advice::{Advice, Obstacle};
pub use error::InterfaceError;
pub use offloads::{Offload, Offloads};

/// The length, in bytes, of the TCP timestamp option with its padding, which every segment has if
/// both sides use timestamps. That is the default of Linux.
pub(crate) const TIMESTAMP_BYTES: u32 = 12;

/// The version of the Internet Protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IpVersion {
    /// IPv4, whose header takes 20 bytes.
    V4,
    /// IPv6, whose header takes 40 bytes.
    V6,
}

impl IpVersion {
    /// The length of the IP header and the TCP header, both without options, in bytes.
    pub(crate) const fn header_bytes(self) -> u32 {
        match self {
            Self::V4 => 20 + 20,
            Self::V6 => 40 + 20,
        }
    }
}

/// Whether an interface receives the headers and the payload of a TCP packet into separate buffers
/// (`ethtool -g`: `TCP data split`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum HeaderSplit {
    /// It does.
    ///
    /// Some drivers split headers whenever that suits their other settings, without having been
    /// told to. io_uring accepts an interface only if splitting was switched on explicitly
    /// (`ethtool -G eth0 tcp-data-split on`). The kernel does not tell one from the other.
    On,
    /// It does not.
    Off,
    /// The driver does not tell, which in most cases means that it cannot split headers. Nor does a
    /// kernel older than 5.18 tell.
    Unknown,
    /// The driver has no receive rings. This is so for virtual interfaces, such as `lo` and `veth`.
    Unsupported,
}

/// What a network interface can do for zero copy.
///
/// The values are those at the time of the call. Anybody who administers the machine can change
/// them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Interface {
    /// The name, such as `eth0`.
    pub name: String,
    /// The number by which the kernel identifies the interface in this network namespace.
    pub index: u32,
    /// The name of the driver, such as `bnxt_en`, or `None` if the interface has no driver.
    pub driver: Option<String>,
    /// Whether the interface is up (`ip link set dev eth0 up`).
    pub is_up: bool,
    /// Whether this is a loopback interface, such as `lo`.
    pub is_loopback: bool,
    /// Which parts of the work on a packet the interface does, or `None` if the kernel does not
    /// tell.
    pub offloads: Option<Offloads>,
    /// The largest IP packet that the interface sends, in bytes, with the headers of IP and TCP. In
    /// nearly all networks, packets that arrive are no larger, either.
    pub mtu: u32,
    /// Whether headers and payloads are received into separate buffers.
    pub header_split: HeaderSplit,
    /// The length, in bytes, up to which packets are not split even if
    /// [`header_split`](Self::header_split) is on (`hds-thresh`). `None` if the driver has no such
    /// setting.
    pub header_split_threshold: Option<u32>,
    /// The number of packet buffers in each receive ring, or `None` if the driver has none.
    pub rx_ring_size: Option<u32>,
    /// The largest number of packet buffers that a receive ring can have.
    pub rx_ring_size_max: Option<u32>,
    /// The number of packet buffers in each send ring, or `None` if the driver has none.
    pub tx_ring_size: Option<u32>,
    /// The largest number of packet buffers that a send ring can have.
    pub tx_ring_size_max: Option<u32>,
    /// The length of each receive buffer, in bytes (`rx-buf-len`). Few drivers tell.
    pub rx_buffer_bytes: Option<u32>,
    /// The number of receive queues, with those that are combined with a send queue, or `None` if
    /// the driver does not tell.
    pub rx_queues: Option<u32>,
    /// The largest number of receive queues that the interface can have.
    pub rx_queues_max: Option<u32>,
    /// The number of send queues, with those that are combined with a receive queue, or `None` if
    /// the driver does not tell.
    pub tx_queues: Option<u32>,
    /// The largest number of send queues that the interface can have.
    pub tx_queues_max: Option<u32>,
    /// Whether queues are added with `ethtool -L … combined`, instead of `ethtool -L … rx`.
    adds_combined_queues: bool,
}

impl Interface {
    /// Returns what the interface with this name can do.
    ///
    /// The network namespace is that of the calling thread. No privilege is needed. The call may
    /// wait while another process changes the settings of an interface.
    ///
    /// # Errors
    ///
    /// - [`InterfaceError::NoSuchInterface`]: no interface has this name, or it has been removed
    ///   during the call.
    /// - [`InterfaceError::NoEthtoolNetlink`]: the kernel does not tell the settings of interfaces.
    /// - [`InterfaceError::Io`]: a system call failed for another reason. For example, the process
    ///   has no free descriptor, or is forbidden to open a netlink socket.
    ///
    /// What the driver does not tell is not an error, but [`HeaderSplit::Unknown`] or `None`.
    ///
    /// ```no_run
    /// use uncopied::interface::{Interface, IpVersion};
    ///
    /// let interface = Interface::by_name("eth0")?;
    /// println!("MTU {}, header splitting {:?}", interface.mtu, interface.header_split);
    /// println!("payloads of {} bytes", interface.page_payload_bytes(IpVersion::V6));
    /// # Ok::<(), uncopied::interface::InterfaceError>(())
    /// ```
    pub fn by_name(name: &str) -> Result<Self, InterfaceError> {
        let socket = control_socket()?;
        let index = name_to_index(&socket, name).map_err(InterfaceError::of)?;
        Self::by_index(&socket, index)
    }

    /// Returns what each interface in the network namespace of the calling thread can do, in the
    /// order of their indices. An interface that is removed during the call is left out.
    ///
    /// # Errors
    ///
    /// Those of [`by_name`](Self::by_name), except [`InterfaceError::NoSuchInterface`].
    ///
    /// ```no_run
    /// use uncopied::interface::{Interface, Offload};
    ///
    /// for interface in Interface::all()? {
    ///     let gathers = interface.offloads.map(|it| it.scatter_gather);
    ///     if gathers == Some(Offload::Off) {
    ///         println!("zero-copy sends are copied: run `ethtool -K {} sg on`", interface.name);
    ///     }
    /// }
    /// # Ok::<(), uncopied::interface::InterfaceError>(())
    /// ```
    pub fn all() -> Result<Vec<Self>, InterfaceError> {
        let socket = control_socket()?;
        let mut interfaces = Vec::new();
        for index in interface_indices().map_err(InterfaceError::of)? {
            match Self::by_index(&socket, index) {
                Ok(interface) => interfaces.push(interface),
                Err(InterfaceError::NoSuchInterface) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(interfaces)
    }

    /// Returns what the interface that has this local address can do.
    ///
    /// Packets to the address need not arrive at this interface if the machine has several, or if
    /// the interface is a bridge, a bond or a VLAN: then ask about the card below it, with
    /// [`by_name`](Self::by_name). If several interfaces have the address, the result is about the
    /// first of them.
    ///
    /// # Errors
    ///
    /// [`InterfaceError::NoInterfaceHasAddress`], and those of [`by_name`](Self::by_name).
    pub fn by_address(address: IpAddr) -> Result<Self, InterfaceError> {
        let socket = control_socket()?;
        // A socket for both versions of IP has the address `::ffff:192.0.2.1`.
        let address = address.to_canonical();
        match index_of_address(socket.as_fd(), address).map_err(InterfaceError::of)? {
            Some(index) => Self::by_index(&socket, index),
            None => Err(InterfaceError::NoInterfaceHasAddress(address)),
        }
    }

    /// Returns what the interface that has the local address of this socket can do. See
    /// [`by_address`](Self::by_address).
    ///
    /// The socket must be connected, or bound to one address. A listener on all addresses
    /// (`0.0.0.0` or `::`) has no interface, but each connection that it accepts has one.
    ///
    /// # Errors
    ///
    /// [`InterfaceError::NotAnIpSocket`], and those of [`by_address`](Self::by_address).
    ///
    /// ```no_run
    /// use std::net::TcpListener;
    /// use uncopied::interface::Interface;
    ///
    /// let (socket, peer) = TcpListener::bind("0.0.0.0:9000")?.accept()?;
    /// let interface = Interface::of_socket(&socket)?;
    /// println!("{peer} is connected to {}", interface.name);
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn of_socket(socket: impl AsFd) -> Result<Self, InterfaceError> {
        let address = rustix::net::getsockname(socket).map_err(InterfaceError::of)?;
        match SocketAddr::try_from(address) {
            // Several interfaces may have the same link-local address. The scope is the index of
            // the right one.
            Ok(SocketAddr::V6(address)) if address.scope_id() != 0 => {
                Self::by_index(&control_socket()?, address.scope_id())
            }
            Ok(address) => Self::by_address(address.ip()),
            Err(_) => Err(InterfaceError::NotAnIpSocket),
        }
    }

    fn by_index(socket: &OwnedFd, index: u32) -> Result<Self, InterfaceError> {
        let mut ethtool = Ethtool::open().map_err(|errno| match errno {
            Errno::NOENT | Errno::PROTONOSUPPORT | Errno::AFNOSUPPORT => {
                InterfaceError::NoEthtoolNetlink
            }
            _ => InterfaceError::of(errno),
        })?;
        Self::describe(socket, &mut ethtool, index).map_err(InterfaceError::of)
    }

    /// Asks for everything about the interface with this index.
    fn describe(socket: &OwnedFd, ethtool: &mut Ethtool, index: u32) -> Result<Self, Errno> {
        // The name that the kernel uses. The caller's name may be an alternative one.
        let name = index_to_name(socket, index)?;
        let mtu = mtu(socket.as_fd(), &name)?;
        let driver = driver(socket.as_fd(), &name)?;
        let flags = interface_flags(socket.as_fd(), &name)?;
        let features = ethtool.features(index)?;
        let rings = ethtool.rings(index)?;
        let channels = ethtool.channels(index)?;
        let header_split = match rings {
            None => HeaderSplit::Unsupported,
            Some(rings) => match rings.tcp_data_split {
                None => HeaderSplit::Unknown,
                Some(false) => HeaderSplit::Off,
                Some(true) => HeaderSplit::On,
            },
        };
        let Rings {
            rx,
            rx_max,
            tx,
            tx_max,
            rx_buffer_bytes,
            split_threshold_bytes,
            ..
        } = rings.unwrap_or_default();
        Ok(Self {
            name,
            index,
            driver,
            is_up: flags.is_up,
            is_loopback: flags.is_loopback,
            offloads: features.as_ref().map(Offloads::of),
            mtu,
            header_split,
            header_split_threshold: split_threshold_bytes,
            rx_ring_size: rx,
            rx_ring_size_max: rx_max,
            tx_ring_size: tx,
            tx_ring_size_max: tx_max,
            rx_buffer_bytes,
            rx_queues: channels.map(|it| it.rx),
            rx_queues_max: channels.map(|it| it.rx_max),
            tx_queues: channels.map(|it| it.tx),
            tx_queues_max: channels.map(|it| it.tx_max),
            adds_combined_queues: channels.is_some_and(|it| it.is_combined),
        })
    }

    /// Returns the length, in bytes, of the largest TCP payload that consists of whole pages and
    /// fits into one packet of this interface. Returns 0 if not even one page fits.
    ///
    /// This is the [MTU](Self::mtu) without the headers of IP and TCP and without the TCP timestamp
    /// option, which takes 12 bytes, rounded down to a multiple of the page size of the machine. So
    /// one page of 4 KiB needs an MTU of 4148 bytes with IPv4, and of 4168 bytes with IPv6.
    ///
    /// That payloads really have this length takes a [`PagePayload`](crate::PagePayload).
    #[must_use]
    pub fn page_payload_bytes(&self, version: IpVersion) -> usize {
        let room = self
            .mtu
            .saturating_sub(version.header_bytes() + TIMESTAMP_BYTES);
        let page = rustix::param::page_size();
        room as usize / page * page
    }

    /// Returns what keeps zero-copy receiving from working on this interface, in words, with the
    /// commands that change it. The most important comes first.
    ///
    /// An empty list does not promise that a mechanism works: the kernel does not tell whether the
    /// driver supports io_uring zero-copy receive, for example.
    #[must_use]
    pub fn advice(&self) -> Vec<Advice> {
        advice::about(self)
    }
}

/// Creates a socket for `ioctl(2)` requests about interfaces.
fn control_socket() -> Result<OwnedFd, InterfaceError> {
    // Any family will do. The kernel may have been built without the others.
    let flags = SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None);
    socket.map_err(InterfaceError::of)
}
