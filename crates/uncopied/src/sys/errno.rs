//! The errno type of the public API. The library defines its own, so that its API does not depend
//! on the types of another crate.

use std::fmt;
use std::io;

/// The errno with which the kernel refused a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(i32);

/// Defines a constant for each errno of the list.
macro_rules! errnos {
    ($($(#[$doc:meta])* $name:ident = $value:ident;)+) => {
        impl Errno {
            $($(#[$doc])* pub const $name: Self = Self(libc::$value);)+
        }
    };
}

errnos! {
    /// Permission denied.
    ACCESS = EACCES;
    /// File descriptor in bad state: a [`Channel`](crate::Channel) was given another socket.
    BADFD = EBADFD;
    /// Device or resource busy.
    BUSY = EBUSY;
    /// Connection reset by peer.
    CONNRESET = ECONNRESET;
    /// Bad address.
    FAULT = EFAULT;
    /// Invalid argument.
    INVAL = EINVAL;
    /// Input/output error.
    IO = EIO;
    /// Too many open files in this process.
    MFILE = EMFILE;
    /// Too many open files in the system.
    NFILE = ENFILE;
    /// No buffer space available.
    NOBUFS = ENOBUFS;
    /// No such device.
    NODEV = ENODEV;
    /// Cannot allocate memory.
    NOMEM = ENOMEM;
    /// Function not implemented.
    NOSYS = ENOSYS;
    /// Operation not supported.
    OPNOTSUPP = EOPNOTSUPP;
    /// Operation not permitted.
    PERM = EPERM;
    /// Broken pipe.
    PIPE = EPIPE;
    /// Illegal seek.
    SPIPE = ESPIPE;
}

impl Errno {
    /// Returns the errno that has this number.
    #[must_use]
    pub const fn from_raw_os_error(raw: i32) -> Self {
        Self(raw)
    }

    /// Returns the number of this errno, as in [`io::Error::raw_os_error`].
    #[must_use]
    pub const fn raw_os_error(self) -> i32 {
        self.0
    }

    /// Returns the errno of a failed call of rustix.
    pub(crate) const fn of(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

/// Formats the errno like an [`io::Error`]: `Invalid argument (os error 22)`.
impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", io::Error::from(*self))
    }
}
