//! Pages that are protected against writes, and faults that user code answers: `userfaultfd(2)`.
//!
//! libc has the call's number only, so the structures of `linux/userfaultfd.h` are here. What is done
//! to huge pages besides, for regions, is here as well.

use std::ffi::c_void;
use std::fs::File;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MprotectFlags, MremapFlags};

/// Of [`Api`].
const API: u64 = 0xaa;
const FEATURE_PAGEFAULT_FLAG_WP: u64 = 1 << 0;

/// Of [`Register`]: what to register for, and the bits of the calls that the range then has.
const REGISTER_MODE_WP: u64 = 1 << 1;
const HAS_WRITEPROTECT: u64 = 1 << 6;

/// Of [`WriteProtect`]: without it the protection is lifted.
const WRITEPROTECT_MODE_WP: u64 = 1 << 0;

/// Of [`Message`]: a fault.
const EVENT_PAGEFAULT: u8 = 0x12;

/// Of `userfaultfd(2)`: faults of the kernel's own accesses are not told of, but refused with `EFAULT`.
const USER_MODE_ONLY: libc::c_int = 1;

/// The ioctls; two of them are declared as "read" in the header though the kernel reads, and keep that.
const IOC_NEW: libc::Ioctl = libc::_IO(0xaa, 0x00);
const IOC_API: libc::Ioctl = libc::_IOWR::<Api>(0xaa, 0x3f);
const IOC_REGISTER: libc::Ioctl = libc::_IOWR::<Register>(0xaa, 0x00);
const IOC_WAKE: libc::Ioctl = libc::_IOR::<Range>(0xaa, 0x02);
const IOC_WRITEPROTECT: libc::Ioctl = libc::_IOWR::<WriteProtect>(0xaa, 0x06);

/// `struct uffdio_api`.
#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

/// `struct uffdio_range`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    len: u64,
}

/// `struct uffdio_register`.
#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

/// `struct uffdio_writeprotect`.
#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

/// `struct uffd_msg`, as it is for a fault.
#[repr(C)]
#[derive(Default)]
struct Message {
    event: u8,
    reserved1: u8,
    reserved2: u16,
    reserved3: u32,
    flags: u64,
    address: u64,
    thread: u64,
}

const _: () = assert!(
    size_of::<Api>() == 24
        && size_of::<Range>() == 16
        && size_of::<Register>() == 32
        && size_of::<WriteProtect>() == 24
        && size_of::<Message>() == 32
        && std::mem::offset_of!(Message, address) == 16
);

/// A descriptor by which this process answers its own write faults.
///
/// When it is closed the kernel lifts all protection: whoever relies on that keeps it open for good.
#[derive(Debug)]
pub(crate) struct Userfault {
    fd: OwnedFd,
    is_user_mode_only: bool,
}

impl Userfault {
    /// One that also hears of the kernel's own writes, if this process may have it: by the call, or by
    /// `/dev/userfaultfd`. Otherwise one for user code's writes only, which needs no privilege.
    ///
    /// # Errors
    ///
    /// `ENOSYS`: the kernel is built without. `EPERM`: a seccomp filter, or a kernel before 5.11 with the
    /// sysctl `vm.unprivileged_userfaultfd` at 0. `EINVAL`: it cannot protect against writes.
    pub(crate) fn open() -> Result<Self> {
        let fd = userfaultfd(0).or_else(|refused| by_device().map_err(|_| refused));
        match fd {
            Ok(fd) => Self::greet(fd, false),
            Err(_) => Self::open_user_mode_only(),
        }
    }

    /// One for user code's writes only.
    pub(crate) fn open_user_mode_only() -> Result<Self> {
        Self::greet(userfaultfd(USER_MODE_ONLY)?, true)
    }

    fn greet(fd: OwnedFd, is_user_mode_only: bool) -> Result<Self> {
        let mut api = Api {
            api: API,
            features: FEATURE_PAGEFAULT_FLAG_WP,
            ioctls: 0,
        };
        ioctl(fd.as_raw_fd(), IOC_API, &mut api)?;
        Ok(Self {
            fd,
            is_user_mode_only,
        })
    }

    /// Whether a write of the kernel's, as by `read(2)`, into a protected page fails with `EFAULT`
    /// instead of waiting for the answer.
    pub(crate) fn is_user_mode_only(&self) -> bool {
        self.is_user_mode_only
    }

    /// From now on the range can be protected. It is anonymous memory of this process, of whole pages.
    pub(crate) fn register(&self, address: usize, len: usize) -> Result<()> {
        let mut register = Register {
            range: range(address, len),
            mode: REGISTER_MODE_WP,
            ioctls: 0,
        };
        ioctl(self.fd.as_raw_fd(), IOC_REGISTER, &mut register)?;
        if register.ioctls & HAS_WRITEPROTECT == 0 {
            return Err(Errno::OPNOTSUPP);
        }
        Ok(())
    }

    /// Protects a registered range. When this returns, no write to it is under way any more, and each
    /// that comes waits until it is answered.
    pub(crate) fn protect(&self, address: usize, len: usize) -> Result<()> {
        self.write_protect(address, len, WRITEPROTECT_MODE_WP)
    }

    /// Lifts the protection, and wakes who waits.
    pub(crate) fn lift(&self, address: usize, len: usize) -> Result<()> {
        self.write_protect(address, len, 0)
    }

    fn write_protect(&self, address: usize, len: usize, mode: u64) -> Result<()> {
        let mut protect = WriteProtect {
            range: range(address, len),
            mode,
        };
        loop {
            match ioctl(self.fd.as_raw_fd(), IOC_WRITEPROTECT, &mut protect) {
                Err(Errno::AGAIN | Errno::INTR) => {}
                answer => return answer,
            }
        }
    }

    /// Lets those who wait for an answer in this range try their write again.
    pub(crate) fn wake(&self, address: usize, len: usize) -> Result<()> {
        ioctl(self.fd.as_raw_fd(), IOC_WAKE, &mut range(address, len))
    }

    /// Waits for the next write to a protected page. Answers the address, rounded down to a page.
    pub(crate) fn next_fault(&self) -> Result<usize> {
        loop {
            let mut message = Message::default();
            let room = (&raw mut message).cast::<c_void>();
            // SAFETY: the message has the kernel's layout (asserted above), any bytes are a valid one,
            // and the kernel writes no more than its size.
            let read = unsafe { libc::read(self.fd.as_raw_fd(), room, size_of::<Message>()) };
            match usize::try_from(read) {
                Ok(len) if len == size_of::<Message>() && message.event == EVENT_PAGEFAULT => {
                    return usize::try_from(message.address).map_err(|_| Errno::OVERFLOW);
                }
                // No other event was asked for.
                Ok(_) => {}
                Err(_) => match last_errno() {
                    Errno::INTR => {}
                    errno => return Err(errno),
                },
            }
        }
    }
}

fn userfaultfd(flags: libc::c_int) -> Result<OwnedFd> {
    // SAFETY: the call takes flags only and makes a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | flags) };
    own(fd)
}

/// Since Linux 6.1 whoever may open the device needs no privilege.
fn by_device() -> Result<OwnedFd> {
    let device = File::open("/dev/userfaultfd")
        .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::NODEV))?;
    // SAFETY: the request takes flags only and makes a descriptor.
    let fd = unsafe { libc::ioctl(device.as_raw_fd(), IOC_NEW, libc::O_CLOEXEC) };
    own(fd.into())
}

fn own(fd: libc::c_long) -> Result<OwnedFd> {
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made this descriptor, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(last_errno()),
    }
}

fn range(address: usize, len: usize) -> Range {
    Range {
        start: address as u64,
        len: len as u64,
    }
}

/// `T` is the structure that the request is defined with.
fn ioctl<T>(fd: RawFd, request: libc::Ioctl, argument: &mut T) -> Result<()> {
    // SAFETY: the argument has the layout that the kernel expects for this request (asserted above),
    // and may be written. The requests move no memory: they say who may write to it, and when.
    let answer = unsafe { libc::ioctl(fd, request, argument) };
    if answer == 0 {
        return Ok(());
    }
    Err(last_errno())
}

/// Puts a fresh huge page in the place of the one at `page`, with the same content. Whoever else refers
/// to the old frame, as a socket's queue does, keeps it as it is.
///
/// `spare` is a huge page's room of the caller's, open, and stays so. `page` is one of the caller's as
/// well and protected against writes, so that the copy is of one moment; it is not registered any more
/// afterwards. At no moment is the page absent: whoever reads it, be it the kernel, sees the old frame or
/// the fresh one.
///
/// # Errors
///
/// `ENOMEM`: no memory, or too many mappings (`vm.max_map_count`). The page is as it was.
pub(crate) fn replace_page(page: usize, spare: usize, len: usize) -> Result<()> {
    let from = ptr::with_exposed_provenance_mut::<c_void>(spare);
    let to = ptr::with_exposed_provenance_mut::<c_void>(page);
    // Nobody's memory: fails where writing to the page would have to kill us.
    populate(spare, len)?;
    // SAFETY: both are `len` bytes of this process's memory, apart from each other, and the caller's.
    // Nobody has a reference into the spare one. User code may have an exclusive one into the other,
    // but cannot write through it: the machine stops each store until this fault is answered, and
    // whatever was stored before the protection was set is visible, as setting it synchronised with
    // every CPU. This is what the kernel does itself when it copies a page on a write.
    unsafe { ptr::copy_nonoverlapping(to.cast::<u8>().cast_const(), from.cast::<u8>(), len) };
    let flags = MremapFlags::MAYMOVE | MremapFlags::DONTUNMAP;
    // SAFETY: nobody has a reference into the spare memory. The content of the page's addresses is the
    // same afterwards, as it was copied and could not be written to since: references into it see
    // no change.
    let moved = unsafe { rustix::mm::mremap_fixed(from, len, len, flags, to) };
    let Err(errno) = moved else { return Ok(()) };
    if !is_mapped(page, len) {
        // Another thread's memory could come to lie there, under references of ours.
        eprintln!("uncopied: the kernel took a page away and gave none ({errno}); aborting");
        std::process::abort();
    }
    Err(errno)
}

fn is_mapped(address: usize, len: usize) -> bool {
    let mut answer = vec![0_u8; len / rustix::param::page_size()];
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the kernel looks the addresses up and writes a byte a page, for which there is room.
    unsafe { libc::mincore(start, len, answer.as_mut_ptr()) == 0 }
}

/// Gives each page of open memory of the caller's its frame, huge where that was asked for and can be.
/// Fresh pages are all zeroes; the others keep their content.
pub(crate) fn populate(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the advice changes no content.
    match unsafe { rustix::mm::madvise(start, len, Advice::LinuxPopulateWrite) } {
        // Before Linux 5.14 each page gets its frame when it is first written to.
        Err(Errno::INVAL) => Ok(()),
        answer => answer,
    }
}

/// A child process gets zeroes there instead of these pages: `madvise(2)`, MADV_WIPEONFORK. The frames
/// are then never shared with it.
pub(crate) fn wipe_on_fork(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the advice changes nothing in this process. The caller's range is anonymous memory of
    // plain bytes, for which zeroes are as good a value as any.
    unsafe { rustix::mm::madvise(start, len, Advice::LinuxWipeOnFork) }
}

/// Makes a range of the caller's inaccessible.
///
/// Nobody has a reference into it.
pub(crate) fn seal(address: usize, len: usize) -> Result<()> {
    let start = ptr::with_exposed_provenance_mut::<c_void>(address);
    // SAFETY: the caller owns the range, and nothing refers into it.
    unsafe { rustix::mm::mprotect(start, len, MprotectFlags::empty()) }
}

/// Runs `call` with all signals blocked in this thread, so that a thread that it starts gets none.
pub(crate) fn without_signals<T>(call: impl FnOnce() -> T) -> T {
    let mut all = MaybeUninit::<libc::sigset_t>::zeroed();
    let mut before = MaybeUninit::<libc::sigset_t>::zeroed();
    // SAFETY: writes to a local of the right type.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: the first set was filled in above, and the second is written to. It cannot fail with
    // these arguments.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let answer = call();
    // SAFETY: `before` was filled in by the call above.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    answer
}

fn last_errno() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
