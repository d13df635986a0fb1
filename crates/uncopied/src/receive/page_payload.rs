//! Makes TCP payloads consist of whole pages.

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::{Errno, retry_on_intr};
use rustix::net::sockopt::set_socket_reuseaddr;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::interface::{IpVersion, TIMESTAMP_BYTES};
use crate::sys::{set_max_segment, uses_tcp_timestamps};

/// The largest value of `TCP_MAXSEG`, in bytes: `MAX_TCP_WINDOW` of Linux.
const MAX_SEGMENT_BYTES: u32 = 32767;

/// Makes the payloads of TCP connections consist of whole pages, so that the kernel can map them
/// into the memory of the receiver (`TCP_ZEROCOPY_RECEIVE`) instead of copying them.
///
/// By default, a payload is as long as the MTU allows. For example, an MTU of 9000 bytes leaves
/// 8948 bytes for the payload, which is not a multiple of the page size. This type limits the
/// maximum segment size (MSS, `TCP_MAXSEG`) of a socket to a number of whole pages, plus 12 bytes
/// for the TCP timestamp option if this machine uses it.
///
/// ```
/// use uncopied::PagePayload;
/// use uncopied::interface::IpVersion;
///
/// let payload = PagePayload::new(1)?;
/// println!("needs an MTU of {} bytes", payload.mtu(IpVersion::V6));
/// let listener = payload.bind("127.0.0.1:0")?;
/// # Ok::<(), std::io::Error>(())
/// ```
///
/// # What both sides must do
///
/// It is enough that one side uses this type, preferably the one that receives. The MSS of a
/// listener or of a connecting socket is announced to the peer in the handshake, and limits both
/// what the peer sends and what this side sends. Connections that a listener accepts inherit it.
/// The rest must fit on both sides:
///
/// - **MTU.** The interfaces of both machines, and the network between them, need an MTU of at
///   least [`mtu`](Self::mtu). The kernel reduces the MSS silently to what the MTU of the route or
///   of the path allows, and then payloads are not whole pages: they are copied, and nothing is
///   lost but speed. On a network with a larger MTU, the payloads are whole pages all the same.
/// - **Timestamps.** `net.ipv4.tcp_timestamps` must be switched on at both sides, as it is by
///   default, or switched off at the side that uses this type. If only the peer has switched it
///   off, payloads are 12 bytes too long. Other TCP options, such as those of TCP-AO, and
///   extension headers of IPv6 make payloads shorter.
/// - **Lengths.** The sender must write multiples of [`bytes`](Self::bytes), or write faster than
///   the network sends: when nothing more is to be sent, the last segment is as short as it has to
///   be. A sender that has itself lost packets to report (SACK) sends shorter segments meanwhile.
/// - **Buffers.** The receive buffer must hold at least two payloads, because the kernel sends no
///   segment longer than half of the peer's largest window.
///
/// The card of the receiver must also put payloads into memory of their own. See the module
/// [`interface`](crate::interface).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PagePayload {
    /// The length of a payload.
    bytes: u32,
    /// The length of a payload with the TCP options.
    max_segment_bytes: u32,
}

impl PagePayload {
    /// Returns a limit of `pages` pages for each payload.
    ///
    /// Finds out whether the network namespace of this thread uses TCP timestamps
    /// (`net.ipv4.tcp_timestamps`). Later changes of that setting have no effect on this value.
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if `pages` is 0 or more than
    /// [`max_pages`](Self::max_pages).
    pub fn new(pages: usize) -> io::Result<Self> {
        if pages == 0 {
            return Err(invalid("a payload must have at least one page"));
        }
        let max = Self::max_pages();
        if pages > max {
            return Err(invalid(format!(
                "a payload of {pages} pages does not fit into a TCP segment, whose maximum size \
                 cannot be set to more than {MAX_SEGMENT_BYTES} bytes ({max} pages)"
            )));
        }
        // At most `MAX_SEGMENT_BYTES`.
        let bytes = (pages * rustix::param::page_size()) as u32;
        let option_bytes = match uses_tcp_timestamps() {
            true => TIMESTAMP_BYTES,
            false => 0,
        };
        Ok(Self {
            bytes,
            max_segment_bytes: bytes + option_bytes,
        })
    }

    /// Returns the largest number of pages: 7 with pages of 4 KiB, 1 with pages of 16 KiB, and 0
    /// with pages of 64 KiB, because the kernel allows an MSS of at most 32767 bytes.
    #[must_use]
    pub fn max_pages() -> usize {
        (MAX_SEGMENT_BYTES - TIMESTAMP_BYTES) as usize / rustix::param::page_size()
    }

    /// Returns the length of a payload, in bytes.
    #[must_use]
    pub const fn bytes(self) -> usize {
        self.bytes as usize
    }

    /// Returns the MSS, in bytes: the length of a payload with the TCP options, as in `TCP_MAXSEG`.
    #[must_use]
    pub const fn max_segment_bytes(self) -> usize {
        self.max_segment_bytes as usize
    }

    /// Returns the smallest MTU, in bytes, with which payloads are not shortened: 4148 for a page
    /// of 4 KiB with IPv4, and 4168 with IPv6 (`ip link set dev eth0 mtu 4168`).
    #[must_use]
    pub const fn mtu(self, version: IpVersion) -> u32 {
        self.max_segment_bytes + version.header_bytes()
    }

    /// Sets the MSS of a TCP socket that is not connected yet, before it listens or connects.
    ///
    /// If the socket is listening already, connections that arrive from now on have the MSS. With
    /// tokio, pass its `TcpSocket` or `TcpListener`.
    ///
    /// # Errors
    ///
    /// - [`InvalidInput`](io::ErrorKind::InvalidInput): the socket is connected, so the MSS of its
    ///   connection cannot be changed.
    /// - Another error of `setsockopt(2)`: the descriptor is not a TCP socket, for example.
    ///
    /// ```
    /// use rustix::net::{AddressFamily, SocketType};
    ///
    /// let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None)?;
    /// uncopied::PagePayload::new(1)?.apply(&socket)?;
    /// # Ok::<(), std::io::Error>(())
    /// ```
    pub fn apply(self, socket: impl AsFd) -> io::Result<()> {
        let socket = socket.as_fd();
        if rustix::net::getpeername(socket).is_ok() {
            let why = "the maximum segment size of a connected socket cannot be changed";
            return Err(invalid(why));
        }
        Ok(set_max_segment(socket, self.max_segment_bytes)?)
    }

    /// Like [`TcpListener::bind`], but the payloads of the connections that the listener accepts
    /// are whole pages.
    ///
    /// # Errors
    ///
    /// Those of [`TcpListener::bind`]. If `address` stands for several addresses, the error is that
    /// of the last one.
    pub fn bind(self, address: impl ToSocketAddrs) -> io::Result<TcpListener> {
        for_each(address, |address| {
            let socket = self.socket(address)?;
            // As the standard library does, so that a server can be restarted at once.
            set_socket_reuseaddr(&socket, true)?;
            rustix::net::bind(&socket, &address)?;
            // The kernel uses `net.core.somaxconn` if that is smaller.
            rustix::net::listen(&socket, i32::MAX)?;
            Ok(socket.into())
        })
    }

    /// Like [`TcpStream::connect`], but the payloads of the connection are whole pages.
    ///
    /// # Errors
    ///
    /// Those of [`TcpStream::connect`]. If `address` stands for several addresses, the error is
    /// that of the last one.
    pub fn connect(self, address: impl ToSocketAddrs) -> io::Result<TcpStream> {
        for_each(address, |address| {
            let socket = self.socket(address)?;
            match retry_on_intr(|| rustix::net::connect(&socket, &address)) {
                // After a signal, the call is repeated, and the connection may exist by then.
                Ok(()) | Err(Errno::ISCONN) => Ok(socket.into()),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    /// Creates a socket for this address, with the MSS.
    fn socket(self, address: SocketAddr) -> io::Result<OwnedFd> {
        let family = match address {
            SocketAddr::V4(_) => AddressFamily::INET,
            SocketAddr::V6(_) => AddressFamily::INET6,
        };
        let flags = SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        set_max_segment(socket.as_fd(), self.max_segment_bytes)?;
        Ok(socket)
    }
}

/// Tries the addresses until one of them works.
fn for_each<T>(
    addresses: impl ToSocketAddrs,
    mut with: impl FnMut(SocketAddr) -> io::Result<T>,
) -> io::Result<T> {
    let mut result = Err(invalid("there is no address"));
    for address in addresses.to_socket_addrs()? {
        result = with(address);
        if result.is_ok() {
            break;
        }
    }
    result
}

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}
