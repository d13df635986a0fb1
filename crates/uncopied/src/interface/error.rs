//! Why an interface could not be described.

use std::fmt;
use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

/// The reason why the kernel did not describe an [`Interface`](super::Interface).
#[derive(Debug)]
#[non_exhaustive]
pub enum InterfaceError {
    /// There is no such interface in the network namespace of this thread.
    NoSuchInterface,
    /// No interface in the network namespace of this thread has this address.
    NoInterfaceHasAddress(IpAddr),
    /// The socket has no IP address: it is a Unix socket, for example.
    NotAnIpSocket,
    /// The kernel does not tell the settings of interfaces over netlink: it is older than 5.6, it
    /// was built without `CONFIG_ETHTOOL_NETLINK`, or a sandbox hides it.
    NoEthtoolNetlink,
    /// A system call failed for another reason.
    Io(io::Error),
}

impl InterfaceError {
    /// Returns the error for an errno of a request about an interface.
    pub(super) fn of(errno: Errno) -> Self {
        match errno {
            Errno::NODEV => Self::NoSuchInterface,
            _ => Self::Io(errno.into()),
        }
    }
}

impl fmt::Display for InterfaceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchInterface => f.write_str("there is no such network interface"),
            Self::NoInterfaceHasAddress(address) => {
                write!(f, "no network interface has the address {address}")
            }
            Self::NotAnIpSocket => f.write_str("the socket has no IP address"),
            Self::NoEthtoolNetlink => f.write_str(
                "the kernel does not tell the settings of network interfaces: it has no ethtool \
                 netlink, which needs Linux 5.6 and CONFIG_ETHTOOL_NETLINK",
            ),
            Self::Io(_) => f.write_str("cannot find out what the network interface can do"),
        }
    }
}

impl std::error::Error for InterfaceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io(source) => Some(source),
            _ => None,
        }
    }
}

/// Keeps the error as the inner error, and chooses the [`io::ErrorKind`] that fits best.
impl From<InterfaceError> for io::Error {
    fn from(error: InterfaceError) -> Self {
        let kind = match &error {
            InterfaceError::NoSuchInterface => io::ErrorKind::NotFound,
            InterfaceError::NoInterfaceHasAddress(_) => io::ErrorKind::AddrNotAvailable,
            InterfaceError::NotAnIpSocket => io::ErrorKind::InvalidInput,
            InterfaceError::NoEthtoolNetlink => io::ErrorKind::Unsupported,
            InterfaceError::Io(source) => source.kind(),
        };
        Self::new(kind, error)
    }
}
