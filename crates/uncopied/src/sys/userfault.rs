//! Lets this process handle its own page faults: `userfaultfd(2)`. A fault is either a write to a
//! page that is protected against writes, or an access to a page that has no content yet.
//!
//! The structures and constants of `linux/userfaultfd.h` are defined here, because libc defines
//! only the number of the system call.

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};

use super::last_errno;

/// For [`UffdioApi`]: the version of the interface, and the feature that reports write faults.
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;

/// For [`UffdioRegister`]: the modes in which ranges are registered, and the bits with which the
/// kernel reports that the range then supports `UFFDIO_COPY` and `UFFDIO_WRITEPROTECT`.
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1 << 0;
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
const UFFDIO_COPY_BIT: u64 = 1 << 3;
const UFFDIO_WRITEPROTECT_BIT: u64 = 1 << 6;

/// For [`UffdioWriteProtect`]: the mode that sets the protection. Without this bit, the call
/// removes the protection.
const UFFDIO_WRITEPROTECT_MODE_WP: u64 = 1 << 0;

/// For [`UffdMessage`]: the event number of a page fault.
const UFFD_EVENT_PAGEFAULT: u8 = 0x12;

/// For `userfaultfd(2)`: the descriptor reports only faults of user code. An access by the kernel
/// that would fault fails with `EFAULT` instead.
const UFFD_USER_MODE_ONLY: libc::c_int = 1;

/// The numbers of the ioctls. `UFFDIO_WAKE` is declared with `_IOR`, which means that user space
/// reads the argument. In fact the kernel reads it, but the number must be the one in the kernel's
/// header.
const USERFAULTFD_IOC_NEW: libc::Ioctl = libc::_IO(0xaa, 0x00);
const UFFDIO_API: libc::Ioctl = libc::_IOWR::<UffdioApi>(0xaa, 0x3f);
const UFFDIO_REGISTER: libc::Ioctl = libc::_IOWR::<UffdioRegister>(0xaa, 0x00);
const UFFDIO_WAKE: libc::Ioctl = libc::_IOR::<UffdioRange>(0xaa, 0x02);
const UFFDIO_COPY: libc::Ioctl = libc::_IOWR::<UffdioCopy>(0xaa, 0x03);
const UFFDIO_WRITEPROTECT: libc::Ioctl = libc::_IOWR::<UffdioWriteProtect>(0xaa, 0x06);

/// `struct uffdio_api`.
#[repr(C)]
struct UffdioApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UffdioRange {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct UffdioRegister {
    range: UffdioRange,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_copy`. The kernel sets `copied` to the number of bytes copied, or to a negated
/// errno.
#[repr(C)]
struct UffdioCopy {
    to: u64,
    from: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct UffdioWriteProtect {
    range: UffdioRange,
    mode: u64,
}

/// `struct uffd_msg`, with the fields that it has for a page fault.
#[repr(C)]
#[derive(Default)]
struct UffdMessage {
    event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    flags: u64,
    address: u64,
    thread: u64,
}

const _: () = assert!(
    size_of::<UffdioApi>() == 24
        && size_of::<UffdioRange>() == 16
        && size_of::<UffdioRegister>() == 32
        && size_of::<UffdioWriteProtect>() == 24
        && size_of::<UffdioCopy>() == 40
        && size_of::<UffdMessage>() == 32
        && std::mem::offset_of!(UffdMessage, address) == 16
);

/// A descriptor through which this process handles its own page faults.
///
/// When the descriptor is closed, the kernel removes all protection, and pages without content read
/// as zeroes. So it must stay open for as long as anything relies on it.
#[derive(Debug)]
pub(crate) struct Userfault {
    fd: OwnedFd,
    is_user_mode_only: bool,
}

impl Userfault {
    /// Opens a descriptor that reports faults both of user code and of the kernel, if this process
    /// is allowed to: either with the system call, or through `/dev/userfaultfd`. Otherwise opens a
    /// descriptor that reports only faults of user code, which needs no privilege.
    ///
    /// # Errors
    ///
    /// - `ENOSYS`: the kernel was built without userfaultfd.
    /// - `EPERM`: a seccomp filter forbids it, or the kernel is older than 5.11 and the sysctl
    ///   `vm.unprivileged_userfaultfd` is 0.
    /// - `EINVAL`: the kernel cannot protect against writes.
    pub(crate) fn open() -> Result<Self> {
        match userfaultfd(0) {
            Ok(fd) => Self::enable(fd, false),
            Err(_) => Self::open_user_mode_only(),
        }
    }

    /// Opens a descriptor that reports only faults of user code.
    ///
    /// # Errors
    ///
    /// See [`open`](Self::open).
    pub(crate) fn open_user_mode_only() -> Result<Self> {
        Self::enable(userfaultfd(UFFD_USER_MODE_ONLY)?, true)
    }

    /// Enables a new descriptor, by agreeing with the kernel on the version and the features.
    fn enable(fd: OwnedFd, is_user_mode_only: bool) -> Result<Self> {
        let mut api = UffdioApi {
            api: UFFD_API,
            features: UFFD_FEATURE_PAGEFAULT_FLAG_WP,
            ioctls: 0,
        };
        ioctl(fd.as_raw_fd(), UFFDIO_API, &mut api)?;
        Ok(Self {
            fd,
            is_user_mode_only,
        })
    }

    /// Whether an access by the kernel that would fault, such as a `read(2)` into a protected page,
    /// fails with `EFAULT` instead of waiting until the fault is handled.
    pub(crate) fn is_user_mode_only(&self) -> bool {
        self.is_user_mode_only
    }

    /// Registers a range, so that it can be protected. The range must consist of whole pages of
    /// anonymous memory of this process.
    pub(crate) fn register(&self, address: usize, len: usize) -> Result<()> {
        self.register_for(
            UFFDIO_REGISTER_MODE_WP,
            UFFDIO_WRITEPROTECT_BIT,
            address,
            len,
        )
    }

    /// Registers a range, so that user code that accesses a page without content waits until the
    /// page has been [filled](Self::fill). The range must consist of whole pages of anonymous
    /// memory of this process, and must not have any content yet.
    pub(crate) fn register_unfilled(&self, address: usize, len: usize) -> Result<()> {
        self.register_for(UFFDIO_REGISTER_MODE_MISSING, UFFDIO_COPY_BIT, address, len)
    }

    fn register_for(&self, mode: u64, ioctl_bit: u64, address: usize, len: usize) -> Result<()> {
        let mut register = UffdioRegister {
            range: range(address, len),
            mode,
            ioctls: 0,
        };
        ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &mut register)?;
        if register.ioctls & ioctl_bit == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    /// Gives content to pages that were [registered](Self::register_unfilled) and have none yet,
    /// starting at `address`, and wakes the threads that wait for these pages. `content` must be
    /// whole pages, and `address` must be the address of a page. Stops at the first page that has
    /// content already, which stays as it is. Returns how many bytes were filled.
    ///
    /// # Errors
    ///
    /// If the first page was not filled:
    ///
    /// - `EEXIST`: it has content already. The threads that wait for it are not woken.
    /// - `ENOENT`: it is not registered.
    /// - `ENOMEM`: there is no memory.
    /// - `EAGAIN`: the memory map of this process is changing. Try again.
    ///
    /// # Safety
    ///
    /// The range must have been registered with `register_unfilled` and must belong to the caller.
    /// References into it may exist: nobody has yet seen a byte of a page without content, because
    /// every access to it waits.
    pub(crate) unsafe fn fill(&self, address: usize, content: &[u8]) -> Result<usize> {
        let mut copy = UffdioCopy {
            to: address as u64,
            from: content.as_ptr().expose_provenance() as u64,
            len: content.len() as u64,
            mode: 0,
            copied: 0,
        };
        // SAFETY: the source is a slice, borrowed for the whole call. The kernel writes only to
        // pages that are registered with a userfaultfd and have no content, which the caller owns.
        let result = unsafe { request(self.fd.as_raw_fd(), UFFDIO_COPY, &mut copy) };
        match usize::try_from(copy.copied) {
            // The kernel fails with `EAGAIN` if it filled some pages but not all.
            Ok(filled) if filled > 0 => Ok(filled),
            _ => result.map(|()| 0),
        }
    }

    /// Protects a registered range. When this returns, no write to the range is in progress, and
    /// every later write waits until its fault has been handled.
    ///
    /// This function is safe, because protecting the wrong range only makes threads wait: it
    /// changes no memory.
    pub(crate) fn protect(&self, address: usize, len: usize) -> Result<()> {
        self.write_protect(address, len, UFFDIO_WRITEPROTECT_MODE_WP)
    }

    /// Removes the protection of a range, and wakes the threads that wait to write to the range.
    ///
    /// # Safety
    ///
    /// No thread may be [replacing](replace_page) a page of the range: the writers would change the
    /// page while that thread copies it. If the kernel may still read a page of the range, the next
    /// write changes what the kernel reads.
    pub(crate) unsafe fn unprotect(&self, address: usize, len: usize) -> Result<()> {
        self.write_protect(address, len, 0)
    }

    fn write_protect(&self, address: usize, len: usize, mode: u64) -> Result<()> {
        let mut protect = UffdioWriteProtect {
            range: range(address, len),
            mode,
        };
        loop {
            match ioctl(self.fd.as_raw_fd(), UFFDIO_WRITEPROTECT, &mut protect) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                result => return result,
            }
        }
    }

    /// Wakes the threads that wait because of a fault in this range, so that they repeat the
    /// access. If the reason for the fault still exists, they wait again.
    pub(crate) fn wake(&self, address: usize, len: usize) -> Result<()> {
        ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, &mut range(address, len))
    }

    /// Waits for the next fault, and returns the address of the access, rounded down to the start
    /// of a page. Waits for at most `timeout`, if there is one.
    ///
    /// Returns `None` if the time is over. May return `None` earlier.
    pub(crate) fn next_fault(&self, timeout: Option<Duration>) -> Result<Option<usize>> {
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let mut ready = [PollFd::new(&self.fd, PollFlags::IN)];
        match poll(&mut ready, timeout.as_ref()) {
            Ok(0) | Err(Errno::INTR) => return Ok(None),
            Ok(_) => {}
            Err(errno) => return Err(errno),
        }
        let mut message = UffdMessage::default();
        let buffer = (&raw mut message).cast::<c_void>();
        // SAFETY: the message has the kernel's layout (asserted above), and all its fields are
        // integers, for which any bytes are valid. The kernel writes no more bytes than the size of
        // the message.
        let read = unsafe { libc::read(self.fd.as_raw_fd(), buffer, size_of::<UffdMessage>()) };
        match usize::try_from(read) {
            Ok(len) if len == size_of::<UffdMessage>() && message.event == UFFD_EVENT_PAGEFAULT => {
                let address = usize::try_from(message.address).map_err(|_| Errno::OVERFLOW)?;
                Ok(Some(address))
            }
            // No other events were requested, so any other message is ignored.
            Ok(_) => Ok(None),
            Err(_) => match last_errno() {
                // No message is left, because the thread has been woken, or killed, since poll(2)
                // returned. The descriptor is non-blocking, so the call did not wait for another
                // message.
                Errno::AGAIN | Errno::INTR => Ok(None),
                errno => Err(errno),
            },
        }
    }
}

/// The flags of a new descriptor. poll(2) works only if the descriptor is non-blocking.
const DESCRIPTOR_FLAGS: libc::c_int = libc::O_CLOEXEC | libc::O_NONBLOCK;

/// Creates a descriptor with the system call or, if that is refused, with `/dev/userfaultfd`, which
/// exists since Linux 6.1: a process that may open this device needs no other privilege. If both
/// are refused, returns the errno of the system call.
fn userfaultfd(flags: libc::c_int) -> Result<OwnedFd> {
    let flags = DESCRIPTOR_FLAGS | flags;
    // SAFETY: the call takes only flags, and creates a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
    into_owned_fd(fd).or_else(|refused| {
        let device = File::open("/dev/userfaultfd").map_err(|_| refused)?;
        // SAFETY: the request takes only flags, and creates a descriptor.
        let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, flags) };
        into_owned_fd(fd.into()).map_err(|_| refused)
    })
}

/// Converts the result of a system call: returns the descriptor that it created, or the errno with
/// which it failed.
fn into_owned_fd(fd: libc::c_long) -> Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just created this descriptor, and nothing else owns it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}

fn range(address: usize, len: usize) -> UffdioRange {
    UffdioRange {
        start: address as u64,
        len: len as u64,
    }
}

/// Makes a request that changes no memory.
fn ioctl<T>(fd: RawFd, number: libc::Ioctl, argument: &mut T) -> Result<()> {
    // SAFETY: every request except `UFFDIO_COPY`, which `fill` makes, only determines which
    // accesses have to wait, and changes the content of no memory.
    unsafe { request(fd, number, argument) }
}

/// Makes an `ioctl(2)` request to a userfaultfd. `T` must be the structure with which the request
/// is defined.
///
/// # Safety
///
/// What the request changes besides `argument` must belong to the caller.
unsafe fn request<T>(fd: RawFd, number: libc::Ioctl, argument: &mut T) -> Result<()> {
    // SAFETY: the argument has the layout that the kernel expects for this request (asserted
    // above), and is borrowed exclusively, so the kernel may write to it. The caller owns what else
    // the request changes.
    let result = unsafe { libc::ioctl(fd, number, argument) };
    if result == 0 {
        return Ok(());
    }
    Err(last_errno())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::io::{FdFlags, fcntl_getfd};

    use super::*;

    #[test]
    fn faults_of_the_kernel_are_reported_if_that_is_allowed() {
        let userfault = Userfault::open().expect("needs no privilege");
        let is_allowed = userfaultfd(0).is_ok();
        assert_eq!(userfault.is_user_mode_only(), !is_allowed);
        let userfault = Userfault::open_user_mode_only().expect("needs no privilege");
        assert!(userfault.is_user_mode_only());
    }

    #[test]
    fn a_call_that_fails_creates_no_descriptor() {
        // SAFETY: there is no descriptor with this number.
        let failed = unsafe { libc::fcntl(-1, libc::F_GETFD) };
        assert_eq!(into_owned_fd(failed.into()).err(), Some(Errno::BADF));
    }

    #[test]
    fn reading_never_waits_and_other_programs_inherit_no_descriptor() {
        let userfault = Userfault::open_user_mode_only().expect("needs no privilege");
        let flags = fcntl_getfl(&userfault.fd).expect("read");
        assert!(flags.contains(OFlags::NONBLOCK));
        let flags = fcntl_getfd(&userfault.fd).expect("read");
        assert!(flags.contains(FdFlags::CLOEXEC));
        assert_eq!(userfault.next_fault(Some(Duration::ZERO)), Ok(None));
    }
}
