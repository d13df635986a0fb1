//! Why a queue cannot receive without copying, and what would mend it.

use std::fmt;
use std::io;

use rustix::io::Errno as RawErrno;

use crate::interface::shell_word;
use crate::sys::Errno;
use crate::sys::zcrx::{RegistrationError, Step};

/// Why a [`Queue`](super::Queue) cannot receive without copying.
///
/// The text says so in one sentence. If there is a command that mends it, the text names the
/// command.
///
/// ```
/// use uncopied::zcrx::{Builder, Cause};
///
/// let refusal = Builder::for_interface("no-such-card", 0).register::<std::net::TcpStream>();
/// let refusal = refusal.unwrap_err();
/// assert!(refusal.to_string().contains("no-such-card"), "{refusal}");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    cause: Cause,
    errno: Option<Errno>,
    /// The name of the interface and the number of the queue. `None` without a device.
    interface: Option<(String, u32)>,
}

/// The cause of a [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Cause {
    /// Zero-copy receiving is [switched off](crate::set_zero_copy_receive).
    SwitchedOff,
    /// The [`Builder`](super::Builder) has sizes that cannot be used: 0, or more than the kernel
    /// allows.
    InvalidSizes,
    /// The kernel is older than Linux 6.15.
    KernelTooOld,
    /// The kernel was built without zero-copy receive (`CONFIG_IO_URING_ZCRX`).
    NotBuiltIn,
    /// The kernel is older than Linux 7.1, and does not know queues
    /// [without a device](super::Builder::without_device).
    NeedsDevice,
    /// io_uring is forbidden, by `kernel.io_uring_disabled` or by a seccomp filter, or the kernel
    /// was built without it.
    IoUringForbidden,
    /// The process lacks `CAP_NET_ADMIN`.
    NoPermission,
    /// There is no interface of this name.
    NoSuchInterface,
    /// The driver of the interface does not support it.
    NoDriverSupport,
    /// The interface has no receive queue of this number.
    NoSuchQueue,
    /// The receive queue is in use by another zero-copy receiver or by AF_XDP, or the interface
    /// runs an XDP program.
    QueueInUse,
    /// The network card does not split headers from data.
    DataSplitOff,
    /// There is no memory, or the limit on locked memory (`RLIMIT_MEMLOCK`) is exceeded.
    NoMemory,
    /// There is no file descriptor left.
    NoDescriptor,
    /// Another error: see [`Refusal::errno`].
    Other,
}

impl Cause {
    /// Returns the cause of a failed registration.
    fn of(error: RegistrationError, has_device: bool) -> Self {
        let RegistrationError {
            step,
            errno,
            is_known,
        } = error;
        match (step, errno) {
            (_, RawErrno::MFILE | RawErrno::NFILE) => Self::NoDescriptor,
            (_, RawErrno::NOMEM) => Self::NoMemory,
            (Step::Setup, RawErrno::PERM | RawErrno::ACCESS | RawErrno::NOSYS) => {
                Self::IoUringForbidden
            }
            (Step::Setup, RawErrno::INVAL) => Self::KernelTooOld,
            (Step::Setup | Step::Map, _) => Self::Other,
            // `is_known` is false as well without the permission, because the kernel checks that
            // first.
            (Step::Register, RawErrno::PERM) => Self::NoPermission,
            // A seccomp filter may allow the ring, but nothing to be registered with it.
            (Step::Register, RawErrno::ACCESS | RawErrno::NOSYS) => Self::IoUringForbidden,
            (Step::Register, RawErrno::INVAL) if !is_known => Self::KernelTooOld,
            (Step::Register, RawErrno::OPNOTSUPP) if !is_known => Self::NotBuiltIn,
            (Step::Register, RawErrno::INVAL) if has_device => Self::DataSplitOff,
            (Step::Register, RawErrno::INVAL) => Self::NeedsDevice,
            (Step::Register, RawErrno::NODEV) => Self::NoSuchInterface,
            (Step::Register, RawErrno::OPNOTSUPP) => Self::NoDriverSupport,
            (Step::Register, RawErrno::RANGE) => Self::NoSuchQueue,
            (Step::Register, RawErrno::EXIST | RawErrno::BUSY) => Self::QueueInUse,
            (Step::Register, _) => Self::Other,
        }
    }

    fn io_kind(self) -> io::ErrorKind {
        match self {
            Self::InvalidSizes => io::ErrorKind::InvalidInput,
            Self::NoSuchInterface | Self::NoSuchQueue => io::ErrorKind::NotFound,
            Self::IoUringForbidden | Self::NoPermission => io::ErrorKind::PermissionDenied,
            Self::QueueInUse => io::ErrorKind::ResourceBusy,
            Self::NoMemory => io::ErrorKind::OutOfMemory,
            Self::NoDescriptor | Self::Other => io::ErrorKind::Other,
            Self::SwitchedOff
            | Self::KernelTooOld
            | Self::NotBuiltIn
            | Self::NeedsDevice
            | Self::NoDriverSupport
            | Self::DataSplitOff => io::ErrorKind::Unsupported,
        }
    }
}

impl Refusal {
    pub(super) fn without_errno(cause: Cause, interface: Option<(String, u32)>) -> Self {
        Self {
            cause,
            errno: None,
            interface,
        }
    }

    pub(super) fn no_such_interface(errno: RawErrno, interface: (String, u32)) -> Self {
        Self {
            cause: Cause::NoSuchInterface,
            errno: Some(Errno::of(errno)),
            interface: Some(interface),
        }
    }

    pub(super) fn of(error: RegistrationError, interface: Option<(String, u32)>) -> Self {
        Self {
            cause: Cause::of(error, interface.is_some()),
            errno: Some(Errno::of(error.errno)),
            interface,
        }
    }

    /// Returns the cause.
    #[must_use]
    pub fn cause(&self) -> Cause {
        self.cause
    }

    /// Returns the errno with which the kernel has refused, if it was the kernel.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        self.errno
    }
}

/// Says why, what mends it, and the errno: "eth0 does not split headers from data: run `ethtool -G
/// eth0 tcp-data-split on hds-thresh 0` (Invalid argument (os error 22))".
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, queue) = match &self.interface {
            Some((name, queue)) => (shell_word(name), *queue),
            None => ("the interface".to_owned(), 0),
        };
        match self.cause {
            Cause::SwitchedOff => write!(f, "zero-copy receiving is switched off")?,
            Cause::InvalidSizes => write!(
                f,
                "the sizes of the queue cannot be used: the area needs at least one page, and a \
                 ring 1 to 32768 entries"
            )?,
            Cause::KernelTooOld => write!(
                f,
                "the kernel has no zero-copy receive: it needs Linux 6.15 or later"
            )?,
            Cause::NotBuiltIn => write!(
                f,
                "the kernel was built without zero-copy receive (CONFIG_IO_URING_ZCRX)"
            )?,
            Cause::NeedsDevice => write!(
                f,
                "the kernel has no zero-copy receive without a device: it needs Linux 7.1 or \
                 later, or the queue of a network card"
            )?,
            Cause::IoUringForbidden => write!(
                f,
                "io_uring is forbidden: run `sysctl kernel.io_uring_disabled=0`, or allow it in \
                 the seccomp filter of the container"
            )?,
            Cause::NoPermission => write!(
                f,
                "the process may not register a receive queue: give it CAP_NET_ADMIN"
            )?,
            Cause::NoSuchInterface => write!(f, "there is no interface {name}: see `ip link`")?,
            Cause::NoDriverSupport => write!(
                f,
                "the driver of {name} does not support zero-copy receive: see `ethtool -i {name}`"
            )?,
            Cause::NoSuchQueue => write!(
                f,
                "{name} has no receive queue {queue}: run `ethtool -L {name} combined {}`",
                u64::from(queue) + 1
            )?,
            Cause::QueueInUse => write!(
                f,
                "receive queue {queue} of {name} is in use: choose another one, or stop the other \
                 receiver; if {name} runs an XDP program, run `ip link set dev {name} xdp off`"
            )?,
            Cause::DataSplitOff => write!(
                f,
                "{name} does not split headers from data: run `ethtool -G {name} tcp-data-split \
                 on hds-thresh 0`"
            )?,
            Cause::NoMemory => write!(
                f,
                "there is no memory for the queue, or too little may be locked: raise the limit \
                 with `ulimit -l`, or make the area smaller"
            )?,
            Cause::NoDescriptor => write!(
                f,
                "there is no file descriptor left: raise the limit with `ulimit -n`"
            )?,
            Cause::Other => write!(f, "the kernel refused to register the queue")?,
        }
        match self.errno {
            Some(errno) => write!(f, " ({errno})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> Self {
        Self::new(refusal.cause.io_kind(), refusal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: bool = true;
    const NO_DEVICE: bool = false;
    const KNOWN: bool = true;
    const UNKNOWN: bool = false;

    /// Each errno of each step, with the cause and a part of the text.
    #[test]
    fn each_errno_of_each_step_has_a_cause_and_says_what_mends_it() {
        use Step::{Map, Register, Setup};
        for (step, errno, is_known, has_device, cause, text) in [
            (
                Setup,
                RawErrno::PERM,
                KNOWN,
                DEVICE,
                Cause::IoUringForbidden,
                "io_uring_disabled=0",
            ),
            (
                Setup,
                RawErrno::ACCESS,
                KNOWN,
                DEVICE,
                Cause::IoUringForbidden,
                "seccomp",
            ),
            (
                Setup,
                RawErrno::NOSYS,
                KNOWN,
                NO_DEVICE,
                Cause::IoUringForbidden,
                "forbidden",
            ),
            (
                Setup,
                RawErrno::INVAL,
                KNOWN,
                DEVICE,
                Cause::KernelTooOld,
                "Linux 6.15",
            ),
            (
                Setup,
                RawErrno::NOMEM,
                KNOWN,
                DEVICE,
                Cause::NoMemory,
                "ulimit -l",
            ),
            (
                Setup,
                RawErrno::MFILE,
                KNOWN,
                DEVICE,
                Cause::NoDescriptor,
                "ulimit -n",
            ),
            (
                Setup,
                RawErrno::NFILE,
                KNOWN,
                DEVICE,
                Cause::NoDescriptor,
                "descriptor",
            ),
            (
                Setup,
                RawErrno::IO,
                KNOWN,
                DEVICE,
                Cause::Other,
                "os error 5",
            ),
            (
                Map,
                RawErrno::NOMEM,
                KNOWN,
                DEVICE,
                Cause::NoMemory,
                "make the area smaller",
            ),
            (
                Map,
                RawErrno::INVAL,
                KNOWN,
                DEVICE,
                Cause::Other,
                "os error 22",
            ),
            (
                Register,
                RawErrno::PERM,
                UNKNOWN,
                DEVICE,
                Cause::NoPermission,
                "CAP_NET_ADMIN",
            ),
            (
                Register,
                RawErrno::ACCESS,
                UNKNOWN,
                DEVICE,
                Cause::IoUringForbidden,
                "seccomp",
            ),
            (
                Register,
                RawErrno::NOSYS,
                UNKNOWN,
                DEVICE,
                Cause::IoUringForbidden,
                "seccomp",
            ),
            (
                Register,
                RawErrno::INVAL,
                UNKNOWN,
                DEVICE,
                Cause::KernelTooOld,
                "Linux 6.15",
            ),
            (
                Register,
                RawErrno::INVAL,
                UNKNOWN,
                NO_DEVICE,
                Cause::KernelTooOld,
                "Linux 6.15",
            ),
            (
                Register,
                RawErrno::OPNOTSUPP,
                UNKNOWN,
                DEVICE,
                Cause::NotBuiltIn,
                "IO_URING_ZCRX",
            ),
            (
                Register,
                RawErrno::INVAL,
                KNOWN,
                DEVICE,
                Cause::DataSplitOff,
                "`ethtool -G eth0 tcp-data-split on hds-thresh 0`",
            ),
            (
                Register,
                RawErrno::INVAL,
                KNOWN,
                NO_DEVICE,
                Cause::NeedsDevice,
                "Linux 7.1",
            ),
            (
                Register,
                RawErrno::NODEV,
                KNOWN,
                DEVICE,
                Cause::NoSuchInterface,
                "interface eth0",
            ),
            (
                Register,
                RawErrno::OPNOTSUPP,
                KNOWN,
                DEVICE,
                Cause::NoDriverSupport,
                "the driver of eth0",
            ),
            (
                Register,
                RawErrno::RANGE,
                KNOWN,
                DEVICE,
                Cause::NoSuchQueue,
                "`ethtool -L eth0 combined 8`",
            ),
            (
                Register,
                RawErrno::EXIST,
                KNOWN,
                DEVICE,
                Cause::QueueInUse,
                "queue 7 of eth0",
            ),
            (
                Register,
                RawErrno::BUSY,
                KNOWN,
                DEVICE,
                Cause::QueueInUse,
                "xdp off",
            ),
            (
                Register,
                RawErrno::NOMEM,
                KNOWN,
                DEVICE,
                Cause::NoMemory,
                "os error 12",
            ),
            (
                Register,
                RawErrno::FAULT,
                KNOWN,
                DEVICE,
                Cause::Other,
                "os error 14",
            ),
        ] {
            let error = RegistrationError {
                step,
                errno,
                is_known,
            };
            let interface = has_device.then(|| ("eth0".to_owned(), 7));
            let refusal = Refusal::of(error, interface);
            let said = refusal.to_string();
            assert_eq!(refusal.cause(), cause, "{error:?}");
            assert_eq!(refusal.errno(), Some(Errno::of(errno)), "{error:?}");
            assert!(said.contains(text), "{error:?}: {said}");
        }
    }

    #[test]
    fn a_refusal_stays_available_in_an_io_error() {
        let refusal = Refusal::without_errno(Cause::SwitchedOff, None);
        let error = io::Error::from(refusal.clone());
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        let inner = error.get_ref().and_then(|it| it.downcast_ref::<Refusal>());
        assert_eq!(inner, Some(&refusal));
        assert_eq!(error.to_string(), "zero-copy receiving is switched off");
    }
}
