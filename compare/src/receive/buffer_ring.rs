//! Receives with io_uring's multishot `recv` and a ring of provided buffers. The crate that offers
//! these operations is unsafe to use.

#![allow(unsafe_code)]

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, Fd};
use io_uring::{IoUring, cqueue, opcode};
use rustix::io::Errno;

use super::contender::{PageAligned, READ_BYTES};
use crate::error::{Context, Error};

/// The number of buffers, a power of two. Each is given back as soon as the caller has seen it, and
/// the kernel fills them in turn, so a larger number only needs more of the CPU's caches. In short
/// runs, 64 buffers needed more CPU time than 8.
const BUFFERS: u16 = 8;

/// The number of entries of the submission queue. Only one is used at a time.
const SUBMISSIONS: u32 = 2;

/// The number of entries of the completion queue: more than there can be completions.
const COMPLETIONS: u32 = 4 * BUFFERS as u32;

/// The number of the only group of buffers.
const GROUP: u16 = 0;

/// The memory of the ring, which has to begin at a page.
#[repr(C, align(4096))]
struct RingMemory([u8; BUFFERS as usize * size_of::<BufRingEntry>()]);

/// The buffers that the kernel receives into, and the ring in which they are given to it. Both are
/// never freed, because the kernel may use them until after the io_uring instance is closed. A
/// process needs them once.
struct BufferRing {
    entries: *mut BufRingEntry,
    buffers: *mut u8,
    tail: u16,
}

impl BufferRing {
    /// Registers the ring, with all buffers in it.
    fn register(uring: &IoUring) -> io::Result<Self> {
        let memory = RingMemory([0; BUFFERS as usize * size_of::<BufRingEntry>()]);
        let buffers = PageAligned::new(READ_BYTES * usize::from(BUFFERS));
        let mut ring = Self {
            entries: (&raw mut *Box::leak(Box::new(memory))).cast(),
            buffers: buffers.leak().as_mut_ptr(),
            tail: 0,
        };
        // SAFETY: the memory has `BUFFERS` entries, begins at a page, and is never freed.
        unsafe {
            let submitter = uring.submitter();
            submitter.register_buf_ring_with_flags(ring.entries as u64, BUFFERS, GROUP, 0)?;
        }
        (0..BUFFERS).for_each(|index| ring.give(index));
        Ok(ring)
    }

    /// Returns the address of the buffer with this number, which is less than [`BUFFERS`].
    fn buffer(&self, index: u16) -> *mut u8 {
        self.buffers.wrapping_add(usize::from(index) * READ_BYTES)
    }

    /// Gives a buffer to the kernel.
    fn give(&mut self, index: u16) {
        let address = self.buffer(index) as u64;
        let position = usize::from(self.tail % BUFFERS);
        // SAFETY: the position is within the ring, whose memory is never freed. The kernel does not
        // read the entry before the tail is increased below, and never writes to it. An entry of
        // zeros is valid.
        let entry = unsafe { &mut *self.entries.wrapping_add(position) };
        entry.set_addr(address);
        entry.set_len(READ_BYTES as u32);
        entry.set_bid(index);
        self.tail = self.tail.wrapping_add(1);
        // SAFETY: this is the address of the first entry, which is initialized.
        let tail = unsafe { BufRingEntry::tail(self.entries) };
        // SAFETY: the tail is an aligned number in memory that is never freed. The kernel only
        // reads it, and no reference to the entry that contains it is in use.
        let tail = unsafe { AtomicU16::from_ptr(tail.cast_mut()) };
        tail.store(self.tail, Ordering::Release);
    }

    /// Passes the first `len` bytes of a buffer that the kernel has filled to `receive`, and gives
    /// the buffer back.
    fn take<T>(&mut self, index: u16, len: usize, receive: impl FnOnce(&[u8]) -> T) -> T {
        assert!(index < BUFFERS && len <= READ_BYTES, "{index} {len}");
        // SAFETY: the bytes are within the buffer, which is initialized and never freed. It belongs
        // to this process until it is given back.
        let bytes = unsafe { std::slice::from_raw_parts(self.buffer(index), len) };
        let result = receive(bytes);
        self.give(index);
        result
    }
}

/// Receives until the end of the stream, and passes what was received to `receive`.
pub(super) fn receive(
    stream: &TcpStream,
    mut receive: impl FnMut(&[u8]) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut uring: IoUring = IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_cqsize(COMPLETIONS)
        .build(SUBMISSIONS)
        .context(|| "cannot create an io_uring instance".into())?;
    let ring = BufferRing::register(&uring);
    let mut ring = ring.context(|| "cannot register a ring of buffers".into())?;
    let mut is_armed = false;
    loop {
        if !is_armed {
            arm(&mut uring, stream)?;
            is_armed = true;
        }
        match uring.submit_and_wait(1) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context(|| "cannot wait for io_uring".into()),
        }
        while let Some(completion) = uring.completion().next() {
            let flags = completion.flags();
            is_armed = cqueue::more(flags);
            match (completion.result(), cqueue::buffer_select(flags)) {
                (0, _) => return Ok(()),
                (len @ 1.., Some(index)) => ring.take(index, len as usize, &mut receive)?,
                // The kernel had no buffer left. By the time that the receive is submitted again,
                // all of them will have been given back.
                (error, _) if error == -Errno::NOBUFS.raw_os_error() => {}
                (error, _) => {
                    let error = io::Error::from_raw_os_error(-error);
                    return Err(error).context(|| "cannot receive with io_uring".into());
                }
            }
        }
    }
}

/// Queues a multishot `recv`, which the kernel repeats until it has no buffer left.
fn arm(uring: &mut IoUring, stream: &TcpStream) -> Result<(), Error> {
    let entry = opcode::RecvMulti::new(Fd(stream.as_raw_fd()), GROUP).build();
    // SAFETY: the entry refers to no memory. The descriptor is open while the entry is submitted,
    // which is before this function's caller returns, and the kernel holds its file afterwards.
    let pushed = unsafe { uring.submission().push(&entry) };
    pushed.map_err(|_| Error::Unavailable("the io_uring queue is full".into()))
}
