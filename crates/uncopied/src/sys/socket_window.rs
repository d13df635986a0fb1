//! Receives by mapping: windows, in which the kernel maps pages that a TCP socket has received
//! (`TCP_ZEROCOPY_RECEIVE` of `linux/tcp.h`).

use std::mem;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use rustix::io::{Errno, Result};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use super::last_errno;
use super::mapped::Mapped;

/// `TCP_ZEROCOPY_RECEIVE` of `linux/tcp.h`.
const TCP_ZEROCOPY_RECEIVE: libc::c_int = 35;

/// `TCP_RECEIVE_ZEROCOPY_FLAG_TLB_CLEAN_HINT` of `linux/tcp.h`: nothing is mapped at the addresses,
/// so the kernel need not unmap anything first. If something is mapped there after all, the kernel
/// detects and unmaps it.
const TLB_CLEAN_HINT: u32 = 1;

/// `struct tcp_zerocopy_receive` of `linux/tcp.h`.
#[repr(C)]
#[derive(Default)]
struct TcpZerocopyReceive {
    address: u64,
    length: u32,
    recv_skip_hint: u32,
    inq: u32,
    err: i32,
    copybuf_address: u64,
    copybuf_len: i32,
    flags: u32,
    msg_control: u64,
    msg_controllen: u64,
    msg_flags: u32,
    reserved: u32,
}

/// What one call has received.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapReceived {
    /// The number of bytes that were added to the mapped bytes of the window: whole pages.
    pub(crate) mapped: usize,
    /// How many of the next bytes in the socket's queue cannot be mapped, as far as the kernel has
    /// looked. It looks no further than the end of a packet.
    pub(crate) unmappable: usize,
    /// The number of bytes that are left in the socket's queue. At the end of the stream, it may be
    /// 1 although no byte is left.
    pub(crate) queued: usize,
    /// The error that was pending on the socket. The call has removed it from the socket.
    pub(crate) error: Option<Errno>,
}

/// A range of addresses in which the kernel maps pages that a TCP socket has received, read-only.
///
/// The bytes of the mapped pages can change: a process of the same machine that has sent them with
/// `vmsplice(2)` may still write to the pages. So no safe function returns a reference to them.
///
/// As long as the window exists, the kernel keeps the socket open.
#[derive(Debug)]
pub(crate) struct SocketWindow {
    address: usize,
    len: usize,
    /// How many bytes are mapped, from the start of the window. An access beyond them is SIGBUS.
    mapped: usize,
}

impl SocketWindow {
    /// Creates a window of `len` bytes, rounded up to whole pages, in which nothing is mapped.
    pub(crate) fn new(socket: BorrowedFd<'_>, len: usize) -> Result<Self> {
        let len = len.max(1).next_multiple_of(rustix::param::page_size());
        let flags = MapFlags::SHARED;
        // SAFETY: without MAP_FIXED the kernel chooses addresses that nothing else uses.
        let start =
            unsafe { rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, flags, socket, 0)? };
        Ok(Self {
            address: start.expose_provenance(),
            len,
            mapped: 0,
        })
    }

    /// Returns how many more bytes can be mapped.
    pub(crate) fn room(&self) -> usize {
        self.len - self.mapped
    }

    /// Returns how many bytes are mapped.
    pub(crate) fn mapped(&self) -> usize {
        self.mapped
    }

    /// Returns the address range of mapped bytes, to be passed to system calls that read from it.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Mapped<'_> {
        let (address, len) = self.check(range);
        // SAFETY: `check` has made sure that pages are mapped in the whole range. Only methods that
        // take `&mut self`, and `drop`, unmap them, and `self` is borrowed for as long as the
        // result is used.
        unsafe { Mapped::new(address, len) }
    }

    /// Copies mapped bytes, starting at byte `start` of the window. Bytes that change meanwhile are
    /// copied as they are before or after the change.
    pub(crate) fn copy_to(&self, start: usize, target: &mut [u8]) {
        let (address, len) = self.check(start..start + target.len());
        let word = mem::size_of::<usize>();
        let mut at = 0;
        while at < len {
            let from = address + at;
            if from.is_multiple_of(word)
                && let Some(target) = target.get_mut(at..at + word)
            {
                let from = ptr::with_exposed_provenance_mut(from);
                // SAFETY: `check` has made sure that pages are mapped in the whole range, `from` is
                // aligned, and the `word` bytes that start there lie within the range, because
                // `target` is as long as the range. The bytes may change meanwhile, so they are
                // read atomically. The memory is read-only: a relaxed load of at most the size of a
                // pointer never writes.
                let from = unsafe { AtomicUsize::from_ptr(from) };
                target.copy_from_slice(&from.load(Ordering::Relaxed).to_ne_bytes());
                at += word;
            } else {
                // SAFETY: as above. A byte has no alignment.
                let from = unsafe { AtomicU8::from_ptr(ptr::with_exposed_provenance_mut(from)) };
                target[at] = from.load(Ordering::Relaxed);
                at += 1;
            }
        }
    }

    /// Returns mapped bytes as a slice.
    ///
    /// # Safety
    ///
    /// For as long as the result is used, nobody may write to the mapped pages. A sender on this
    /// machine can, if it has sent its own pages with `vmsplice(2)`.
    pub(crate) unsafe fn as_slice(&self, range: Range<usize>) -> &[u8] {
        let (address, len) = self.check(range);
        // SAFETY: `check` has made sure that pages are mapped in the whole range, and they stay
        // mapped while `self` is borrowed. The caller vouches that they do not change.
        unsafe { std::slice::from_raw_parts(ptr::with_exposed_provenance(address), len) }
    }

    /// Returns the address and the length of a range of mapped bytes.
    ///
    /// # Panics
    ///
    /// If some of the bytes are not mapped.
    fn check(&self, range: Range<usize>) -> (usize, usize) {
        assert!(
            range.start <= range.end && range.end <= self.mapped,
            "{range:?} does not lie within {} mapped bytes",
            self.mapped
        );
        (self.address + range.start, range.len())
    }

    /// Gives all pages back to the kernel.
    pub(crate) fn discard(&mut self) {
        if self.mapped == 0 {
            return;
        }
        let start = ptr::with_exposed_provenance_mut(self.address);
        let dont_need = Advice::LinuxDontNeed;
        // SAFETY: the range lies within this mapping. `&mut self` guarantees that no `Mapped` and
        // no slice of it exists. The mapping is shared, so the pages are unmapped, but their
        // content does not change.
        // If the call fails, the kernel unmaps the pages when others are mapped there.
        let _ = unsafe { rustix::mm::madvise(start, self.mapped, dont_need) };
        self.mapped = 0;
    }
}

impl Drop for SocketWindow {
    fn drop(&mut self) {
        let start = ptr::with_exposed_provenance_mut(self.address);
        // SAFETY: the range is exactly that of this mapping, and no `Mapped` and no slice of it
        // exists any longer, because these borrow `self`. If the call fails, the range stays mapped
        // and is leaked.
        let _ = unsafe { rustix::mm::munmap(start, self.len) };
    }
}

/// See [`Kernel::map_receive`](super::Kernel::map_receive).
pub(super) fn map_receive(
    socket: BorrowedFd<'_>,
    window: &mut SocketWindow,
) -> Result<MapReceived> {
    let mut request = TcpZerocopyReceive {
        address: (window.address + window.mapped) as u64,
        length: u32::try_from(window.room()).unwrap_or(u32::MAX),
        flags: TLB_CLEAN_HINT,
        ..TcpZerocopyReceive::default()
    };
    let asked = request.length as usize;
    let mut len = mem::size_of_val(&request) as libc::socklen_t;
    // SAFETY: the kernel reads and writes `len` bytes of a local structure whose fields may have
    // any value. At the address in it, the kernel maps and unmaps at most `length` bytes: the part
    // of the window beyond its mapped bytes. Nothing refers to it, because `bytes`, `copy_to` and
    // `as_slice` refuse it, and the window is borrowed exclusively. If the socket is another one
    // than that of the window, the same holds. `copybuf_len` is 0, so nothing is copied.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            TCP_ZEROCOPY_RECEIVE,
            (&raw mut request).cast(),
            &raw mut len,
        )
    };
    if result != 0 {
        return Err(last_errno());
    }
    // The window must never claim to have pages that are not there.
    let mapped = (request.length as usize).min(asked);
    window.mapped += mapped;
    Ok(MapReceived {
        mapped,
        unmappable: request.recv_skip_hint as usize,
        queued: request.inq as usize,
        error: (request.err != 0).then(|| Errno::from_raw_os_error(request.err.abs())),
    })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::panic::catch_unwind;

    use super::*;

    /// An access to an address at which nothing is mapped would be SIGBUS.
    #[test]
    fn bytes_that_are_not_mapped_cannot_be_accessed() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bound");
        let address = listener.local_addr().expect("an address");
        let socket = TcpStream::connect(address).expect("connected");
        let window = SocketWindow::new(socket.as_fd(), 5000).expect("mapped");
        assert_eq!((window.room(), window.mapped()), (8192, 0));
        assert_eq!(window.bytes(0..0).len(), 0);
        catch_unwind(|| window.bytes(0..1).len()).expect_err("nothing is mapped");
        catch_unwind(|| window.copy_to(0, &mut [0])).expect_err("nothing is mapped");
    }
}
