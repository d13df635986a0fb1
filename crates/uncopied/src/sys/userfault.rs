//! Protects pages against writes, and lets user code handle the write faults: `userfaultfd(2)`.
//!
//! The structures and constants of `linux/userfaultfd.h` are defined here, because libc defines
//! only the number of the system call. The other system calls that a region needs for its huge
//! pages are in this file as well.

use std::ffi::c_void;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MprotectFlags, MremapFlags};

use super::last_errno;

/// For [`UffdioApi`]: the version of the interface, and the feature that reports write faults.
const UFFD_API: u64 = 0xaa;
const UFFD_FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;

/// For [`UffdioRegister`]: the mode in which ranges are registered, and the bit with which the
/// kernel reports that the range then supports `UFFDIO_WRITEPROTECT`.
const UFFDIO_REGISTER_MODE_WP: u64 = 1 << 1;
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
        && size_of::<UffdMessage>() == 32
        && std::mem::offset_of!(UffdMessage, address) == 16
);

/// A descriptor through which this process handles its own write faults.
///
/// When the descriptor is closed, the kernel removes all protection. So it must stay open for as
/// long as anything relies on the protection.
#[derive(Debug)]
pub(crate) struct Userfault {
    fd: OwnedFd,
    is_user_mode_only: bool,
}

impl Userfault {
    /// Opens a descriptor that reports writes both by user code and by the kernel, if this process
    /// is allowed to: either with the system call, or through `/dev/userfaultfd`. Otherwise opens a
    /// descriptor that reports only writes by user code, which needs no privilege.
    ///
    /// # Errors
    ///
    /// - `ENOSYS`: the kernel was built without userfaultfd.
    /// - `EPERM`: a seccomp filter forbids it, or the kernel is older than 5.11 and the sysctl
    ///   `vm.unprivileged_userfaultfd` is 0.
    /// - `EINVAL`: the kernel cannot protect against writes.
    pub(crate) fn open() -> Result<Self> {
        let fd = userfaultfd(0).or_else(|refused| open_device().map_err(|_| refused));
        match fd {
            Ok(fd) => Self::enable(fd, false),
            Err(_) => Self::open_user_mode_only(),
        }
    }

    /// Opens a descriptor that reports only writes by user code.
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

    /// Whether a write by the kernel, such as in `read(2)`, to a protected page fails with `EFAULT`
    /// instead of waiting until the fault is handled.
    pub(crate) fn is_user_mode_only(&self) -> bool {
        self.is_user_mode_only
    }

    /// Registers a range, so that it can be protected. The range must consist of whole pages of
    /// anonymous memory of this process.
    pub(crate) fn register(&self, address: usize, len: usize) -> Result<()> {
        let mut register = UffdioRegister {
            range: range(address, len),
            mode: UFFDIO_REGISTER_MODE_WP,
            ioctls: 0,
        };
        ioctl(self.fd.as_raw_fd(), UFFDIO_REGISTER, &mut register)?;
        if register.ioctls & UFFDIO_WRITEPROTECT_BIT == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
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

    /// Wakes the threads that wait because of a fault in this range, so that they repeat their
    /// writes. If the range is still protected, they wait again.
    pub(crate) fn wake(&self, address: usize, len: usize) -> Result<()> {
        ioctl(self.fd.as_raw_fd(), UFFDIO_WAKE, &mut range(address, len))
    }

    /// Waits for the next write to a protected page, and returns the address of the write, rounded
    /// down to the start of a page. Waits for at most `timeout`, if there is one.
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
                // No message is left, because the writer has been woken, or killed, since poll(2)
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

fn userfaultfd(flags: libc::c_int) -> Result<OwnedFd> {
    // SAFETY: the call takes only flags, and creates a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, DESCRIPTOR_FLAGS | flags) };
    into_owned_fd(fd)
}

/// Opens a descriptor through `/dev/userfaultfd`, which exists since Linux 6.1. A process that may
/// open this device needs no other privilege.
fn open_device() -> Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NODEV))?;
    // SAFETY: the request takes only flags, and creates a descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), USERFAULTFD_IOC_NEW, DESCRIPTOR_FLAGS) };
    into_owned_fd(fd.into())
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

/// Makes an `ioctl(2)` request to a userfaultfd. `T` must be the structure with which the request
/// is defined.
fn ioctl<T>(fd: RawFd, request: libc::Ioctl, argument: &mut T) -> Result<()> {
    // SAFETY: the argument has the layout that the kernel expects for this request (asserted
    // above), and is borrowed exclusively, so the kernel may write to it. None of the requests used
    // here changes the content of memory: they only determine which writes have to wait.
    let result = unsafe { libc::ioctl(fd, request, argument) };
    if result == 0 {
        return Ok(());
    }
    Err(last_errno())
}

/// Replaces the frame of the huge page at address `page` with a fresh frame that has the same
/// content. Everything else that refers to the old frame, such as a socket's queue, keeps the old
/// frame unchanged.
///
/// The fresh frame is first filled at `spare`, whose addresses stay accessible. Afterwards, `page`
/// is no longer registered with the userfaultfd. `page` is mapped all the time: any reader, even
/// the kernel, finds either the old frame or the fresh one.
///
/// # Errors
///
/// `ENOMEM`: there is no memory, or the process has too many mappings (`vm.max_map_count`). The
/// page is unchanged.
///
/// # Safety
///
/// - `page` and `spare` must each be the address of `len` bytes of private anonymous memory that
///   can be read and written and that belongs to the caller. The two ranges must not overlap.
/// - No reference into the spare range may exist, and no other thread may use it until this
///   returns.
/// - `page` must be [protected](Userfault::protect), and stay so until this returns. So references
///   into it may exist, but nothing is written through them.
pub(crate) unsafe fn replace_page(page: usize, spare: usize, len: usize) -> Result<()> {
    let from = ptr::with_exposed_provenance_mut::<c_void>(spare);
    let to = ptr::with_exposed_provenance_mut::<c_void>(page);
    // If there is no memory for the fresh frame, this returns an error. Without this call, the copy
    // below would kill the process in that case.
    //
    // SAFETY: the spare range is accessible memory that belongs to the caller.
    unsafe { populate(spare, len)? };
    // SAFETY: both ranges are `len` bytes of accessible memory, and do not overlap. Nothing else
    // uses the spare range. User code may have an exclusive reference into the page, but cannot
    // write through it: the hardware stops each store until its fault has been handled. Everything
    // that was stored before the protection was set is visible here, because setting the protection
    // synchronised with every CPU. The kernel does the same when it copies a page on a write.
    unsafe { ptr::copy_nonoverlapping(to.cast::<u8>().cast_const(), from.cast::<u8>(), len) };
    let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
    // SAFETY: both ranges belong to the caller, and nothing has a reference into the spare range.
    // The content at the addresses of the page stays the same, because it was copied, and nothing
    // could write to the page since. So references into the page see no change.
    let moved = unsafe { rustix::mm::mremap_fixed(from, len, len, flags, to) };
    let Err(errno) = moved else { return Ok(()) };
    if !is_mapped(page, len) {
        // User code may still have references into the page, and another thread's memory could now
        // be mapped at the same addresses, so the process must not continue.
        eprintln!("uncopied: the kernel unmapped a page without replacing it ({errno}); aborting");
        std::process::abort();
    }
    Err(errno)
}

/// Whether the whole range is mapped.
fn is_mapped(address: usize, len: usize) -> bool {
    let mut residency = vec![0_u8; len / rustix::param::page_size()];
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the kernel only looks up the addresses, and writes one byte per page to the vector,
    // which has room for these bytes.
    unsafe { libc::mincore(start, len, residency.as_mut_ptr()) == 0 }
}

/// Allocates a page frame for each page of a range that has none yet. The frames are zeroed, and
/// huge if that was requested and is possible. Other pages keep their content.
///
/// # Safety
///
/// The range must be accessible memory that belongs to the caller.
pub(crate) unsafe fn populate(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the memory belongs to the caller, and the advice changes no content: a page that has
    // no frame yet reads as zeroes before the call and after it.
    match unsafe { rustix::mm::madvise(start, len, Advice::LinuxPopulateWrite) } {
        // Linux has this advice since 5.14. On older kernels, each page gets its frame at the first
        // write.
        Err(Errno::INVAL) => Ok(()),
        result => result,
    }
}

/// Makes a range read as zeroes in every forked child, so that no child shares its page frames
/// (`MADV_WIPEONFORK` of `madvise(2)`).
///
/// # Safety
///
/// The range must be private anonymous memory that belongs to the caller, and may only ever hold
/// plain bytes, for which zeroes are a valid value.
pub(crate) unsafe fn wipe_on_fork(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the advice changes nothing in this process. In a child, references into the range
    // then refer to zeroes. That is a valid value, and the child, which has a single thread, cannot
    // observe the change: it happens before `fork(2)` returns there.
    unsafe { rustix::mm::madvise(start, len, Advice::LinuxWipeOnFork) }
}

/// Makes a range inaccessible.
///
/// # Safety
///
/// The range must belong to the caller. No reference into it may exist, or be made as long as the
/// range is inaccessible.
pub(crate) unsafe fn make_inaccessible(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the caller owns the range, and no reference into it exists.
    unsafe { rustix::mm::mprotect(start, len, MprotectFlags::empty()) }
}

/// Runs `call` with all signals blocked in this thread. A thread that `call` starts inherits the
/// signal mask, so it receives no signals.
pub(crate) fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: the call writes to a local of the right type.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the first set was filled in above, and the second set is a local that the call writes
    // to. With these arguments the call cannot fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let result = call();
    // SAFETY: `before` was filled in by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    result
}
