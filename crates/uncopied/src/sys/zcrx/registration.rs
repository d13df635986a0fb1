//! Registering an interface queue with a ring.

use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::Arc;

use io_uring::{IoUring, cqueue, squeue};
use rustix::io::{Errno, Result};

use super::lease::Shared;
use super::memory::PageMemory;
use super::refill::{Offsets, Refill};
use super::signal::Signal;
use crate::sys::last_errno;

/// `ZCRX_NOTIF_DESC_FLAG_STATS`: the kernel counts what it copies.
const COUNT_COPIES: u32 = 1;

/// The operations of `io_uring_register(2)` that this module uses.
const REGISTER_ZCRX_IFQ: libc::c_uint = 32;
const REGISTER_ZCRX_CTRL: libc::c_uint = 36;

/// `IORING_MEM_REGION_TYPE_USER`: this process provides the memory of the refill ring.
const REGION_OF_USER: u32 = 1;

/// `ZCRX_REG_NODEV`: there is no network card, and the kernel copies.
const WITHOUT_DEVICE: u32 = 2;

/// `ZCRX_CTRL_FLUSH_RQ`: take everything from the refill ring.
const FLUSH_REFILL_RING: u32 = 0;

/// The maximum number of entries of the submission queue, and therefore of requests per system
/// call.
const MAX_SUBMISSION_ENTRIES: u32 = 64;

/// `struct io_uring_region_desc`.
#[repr(C)]
#[derive(Default)]
struct RegionArgument {
    user_addr: u64,
    size: u64,
    flags: u32,
    id: u32,
    mmap_offset: u64,
    reserved: [u64; 4],
}

/// `struct io_uring_zcrx_area_reg`.
#[repr(C)]
#[derive(Default)]
struct AreaArgument {
    addr: u64,
    len: u64,
    rq_area_token: u64,
    flags: u32,
    dmabuf_fd: u32,
    reserved: [u64; 2],
}

/// `struct io_uring_zcrx_offsets`.
#[repr(C)]
#[derive(Default)]
struct OffsetsArgument {
    head: u32,
    tail: u32,
    rqes: u32,
    reserved: u32,
    reserved_too: [u64; 2],
}

/// `struct io_uring_zcrx_ifq_reg`.
#[repr(C)]
#[derive(Default)]
struct QueueArgument {
    if_idx: u32,
    if_rxq: u32,
    rq_entries: u32,
    flags: u32,
    area_ptr: u64,
    region_ptr: u64,
    offsets: OffsetsArgument,
    zcrx_id: u32,
    rx_buf_len: u32,
    notif_desc: u64,
    reserved: [u64; 2],
}

/// `struct zcrx_notification_desc`.
#[repr(C)]
#[derive(Default)]
struct NotificationArgument {
    user_data: u64,
    type_mask: u32,
    flags: u32,
    stats_offset: u64,
    reserved: [u64; 9],
}

/// `struct zcrx_ctrl`.
#[repr(C)]
#[derive(Default)]
struct ControlArgument {
    zcrx_id: u32,
    op: u32,
    reserved: [u64; 2],
    of_operation: [u64; 6],
}

const _: () = assert!(size_of::<RegionArgument>() == 64);
const _: () = assert!(size_of::<AreaArgument>() == 48);
const _: () = assert!(size_of::<OffsetsArgument>() == 32);
const _: () = assert!(size_of::<QueueArgument>() == 96);
const _: () = assert!(std::mem::offset_of!(QueueArgument, offsets) == 32);
const _: () = assert!(std::mem::offset_of!(QueueArgument, zcrx_id) == 64);
const _: () = assert!(std::mem::offset_of!(QueueArgument, notif_desc) == 72);
const _: () = assert!(size_of::<NotificationArgument>() == 96);
const _: () = assert!(size_of::<ControlArgument>() == 72);

/// Where the bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Device {
    /// A receive queue of a network card.
    Interface { index: u32, queue: u32 },
    /// None: the kernel copies the bytes into the area.
    None,
}

/// The sizes of the pieces of memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub(crate) area_bytes: usize,
    pub(crate) refill_entries: u32,
    pub(crate) completion_entries: u32,
}

/// What was to be done when a registration failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Creating the ring.
    Setup,
    /// Mapping the memory of the area and of the refill ring.
    Map,
    /// Registering the interface queue.
    Register,
}

/// Why there is no registered interface queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RegistrationError {
    pub(crate) step: Step,
    pub(crate) errno: Errno,
    /// Whether the kernel knows the operation that registers interface queues.
    pub(crate) is_known: bool,
}

/// A ring that receives with a registered interface queue. Only the thread that created it may use
/// it.
pub(crate) struct Zcrx {
    pub(super) uring: IoUring<squeue::Entry, cqueue::Entry32>,
    pub(super) shared: Arc<Shared>,
    pub(super) id: u32,
    pub(super) early_completions: Vec<super::Completion>,
    pub(super) is_broken: bool,
    buffer_bytes: usize,
}

impl Zcrx {
    /// Creates a ring, and registers an interface queue with it. The kernel signals `signal` at
    /// each completion.
    ///
    /// # Errors
    ///
    /// See [`Step`]. The errnos of the last step:
    ///
    /// - `EINVAL`: the kernel is too old, or it does not know queues without a device, or headers
    ///   are not split from data.
    /// - `EOPNOTSUPP`: the driver of the interface, or the kernel, was built without support.
    /// - `EPERM`: without `CAP_NET_ADMIN`.
    /// - `ENODEV`, `ERANGE`: there is no such interface, or no such queue.
    /// - `EEXIST`, `EBUSY`: the queue is in use.
    /// - `ENOMEM`: the limit on locked memory is exceeded, or there is no memory.
    pub(crate) fn register(
        device: Device,
        layout: Layout,
        signal: Arc<Signal>,
    ) -> std::result::Result<Self, RegistrationError> {
        let failed = |step| {
            move |errno| RegistrationError {
                step,
                errno,
                is_known: true,
            }
        };
        let uring = new_ring(layout.completion_entries).map_err(failed(Step::Setup))?;
        let duplicate = {
            // SAFETY: `uring` keeps the descriptor open, and lives until this function returns.
            let descriptor = unsafe { BorrowedFd::borrow_raw(uring.as_raw_fd()) };
            rustix::io::fcntl_dupfd_cloexec(descriptor, 3).map_err(failed(Step::Setup))?
        };
        let signalled = uring
            .submitter()
            .register_eventfd(rustix::fd::AsFd::as_fd(&*signal).as_raw_fd());
        signalled.map_err(|error| failed(Step::Setup)(errno_of(&error)))?;

        let area = PageMemory::new(layout.area_bytes).map_err(failed(Step::Map))?;
        let refill = PageMemory::new(Refill::memory_bytes(layout.refill_entries))
            .map_err(failed(Step::Map))?;
        let entries = layout.refill_entries;
        let registered = match register_queue(&uring, device, &area, &refill, entries, true) {
            // The kernel may be older than 7.2, and not count what it copies.
            Err(Errno::INVAL) => register_queue(&uring, device, &area, &refill, entries, false),
            result => result,
        };
        let registered = registered.map_err(|errno| RegistrationError {
            step: Step::Register,
            errno,
            is_known: knows_interface_queues(&uring),
        })?;
        area.make_read_only().map_err(failed(Step::Map))?;
        let refill = Refill::new(refill, registered.offsets, registered.refill_entries)
            .ok_or(Errno::IO)
            .map_err(failed(Step::Register))?;
        let shared = Shared::new(duplicate, area, registered.area_token, refill, signal);
        Ok(Self {
            uring,
            shared: Arc::new(shared),
            id: registered.id,
            early_completions: Vec::new(),
            is_broken: false,
            buffer_bytes: registered.buffer_bytes,
        })
    }

    /// Creates a ring without an interface queue.
    #[cfg(test)]
    pub(super) fn unregistered(completion_entries: u32) -> Result<Self> {
        let uring = new_ring(completion_entries)?;
        let any_descriptor = rustix::event::eventfd(0, rustix::event::EventfdFlags::CLOEXEC)?;
        let area = PageMemory::new(1)?;
        let signal = Arc::new(Signal::new()?);
        let shared = Shared::new(any_descriptor, area, 0, Refill::fake(8), signal);
        Ok(Self {
            uring,
            shared: Arc::new(shared),
            id: 0,
            early_completions: Vec::new(),
            is_broken: false,
            buffer_bytes: rustix::param::page_size(),
        })
    }

    /// Returns the size of a buffer of the area, in bytes.
    pub(crate) fn buffer_bytes(&self) -> usize {
        self.buffer_bytes
    }

    /// Returns the size of the area, in bytes.
    pub(crate) fn area_bytes(&self) -> usize {
        self.shared.area_bytes()
    }

    /// Makes the kernel take back all memory that is in the refill ring.
    ///
    /// # Errors
    ///
    /// `EINVAL`: the kernel is older than 6.19.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let mut argument = ControlArgument {
            zcrx_id: self.id,
            op: FLUSH_REFILL_RING,
            ..ControlArgument::default()
        };
        // SAFETY: for this operation, the kernel reads a `zcrx_ctrl`, which is a local.
        unsafe {
            register(
                self.uring.as_raw_fd(),
                REGISTER_ZCRX_CTRL,
                (&raw mut argument).cast(),
                0,
            )
        }
    }
}

/// Creates a ring of the kind that receives without copying.
fn new_ring(completion_entries: u32) -> Result<IoUring<squeue::Entry, cqueue::Entry32>> {
    let ring = IoUring::<squeue::Entry, cqueue::Entry32>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(completion_entries)
        // The kernel refuses more entries than the completion queue has.
        .build(MAX_SUBMISSION_ENTRIES.min(completion_entries))
        .map_err(|error| errno_of(&error))?;
    // Otherwise the end of a request is lost if the completion queue is full.
    if !ring.params().is_feature_nodrop() {
        return Err(Errno::INVAL);
    }
    Ok(ring)
}

/// What the kernel says about a registered interface queue.
struct Registered {
    id: u32,
    area_token: u64,
    buffer_bytes: usize,
    refill_entries: u32,
    offsets: Offsets,
}

fn register_queue(
    uring: &IoUring<squeue::Entry, cqueue::Entry32>,
    device: Device,
    area: &PageMemory,
    refill: &PageMemory,
    refill_entries: u32,
    counts_copies: bool,
) -> Result<Registered> {
    let mut notification = NotificationArgument {
        flags: COUNT_COPIES,
        stats_offset: Refill::stats_offset(refill_entries) as u64,
        ..NotificationArgument::default()
    };
    let mut area_argument = AreaArgument {
        addr: area.start().as_ptr().expose_provenance() as u64,
        len: area.len() as u64,
        ..AreaArgument::default()
    };
    let mut region = RegionArgument {
        user_addr: refill.start().as_ptr().expose_provenance() as u64,
        size: refill.len() as u64,
        flags: REGION_OF_USER,
        ..RegionArgument::default()
    };
    let (index, queue, flags) = match device {
        Device::Interface { index, queue } => (index, queue, 0),
        Device::None => (0, 0, WITHOUT_DEVICE),
    };
    let mut argument = QueueArgument {
        if_idx: index,
        if_rxq: queue,
        rq_entries: refill_entries,
        flags,
        area_ptr: (&raw mut area_argument).expose_provenance() as u64,
        region_ptr: (&raw mut region).expose_provenance() as u64,
        notif_desc: match counts_copies {
            true => (&raw mut notification).expose_provenance() as u64,
            false => 0,
        },
        ..QueueArgument::default()
    };
    // SAFETY: for this operation, the kernel reads and writes an `io_uring_zcrx_ifq_reg`, and the
    // `io_uring_zcrx_area_reg`, the `io_uring_region_desc` and the `zcrx_notification_desc` to
    // which it points. All of them are locals. From then on, the kernel writes to the memory of the
    // area and of the refill ring, through references of its own to their page frames. This process
    // makes references to bytes of the area only while the kernel does not write to them (see
    // `Lease`), and none to the refill ring, other than to its atomic counters. If either memory is
    // unmapped, the kernel keeps the frames.
    unsafe {
        register(
            uring.as_raw_fd(),
            REGISTER_ZCRX_IFQ,
            (&raw mut argument).cast(),
            1,
        )?;
    }
    let offsets = &argument.offsets;
    Ok(Registered {
        id: argument.zcrx_id,
        area_token: area_argument.rq_area_token,
        buffer_bytes: match argument.rx_buf_len {
            // The kernel is older than 7.0, and always uses pages.
            0 => rustix::param::page_size(),
            bytes => bytes as usize,
        },
        refill_entries: argument.rq_entries,
        offsets: Offsets {
            head: offsets.head as usize,
            tail: offsets.tail as usize,
            entries: offsets.rqes as usize,
            stats: counts_copies.then(|| Refill::stats_offset(refill_entries)),
        },
    })
}

/// Whether the kernel knows the operation that registers interface queues. If it does, it tries to
/// read the argument, which is at an address that belongs to the kernel, and fails with `EFAULT`.
fn knows_interface_queues(uring: &IoUring<squeue::Entry, cqueue::Entry32>) -> bool {
    let argument = ptr::without_provenance_mut(usize::MAX - 4095);
    // SAFETY: no process can map the address, so the kernel reads and writes nothing.
    let result = unsafe { register(uring.as_raw_fd(), REGISTER_ZCRX_IFQ, argument, 1) };
    result == Err(Errno::FAULT)
}

/// Makes the system call `io_uring_register(2)`.
///
/// # Safety
///
/// `argument` must be valid for what the operation reads and writes.
unsafe fn register(
    ring: i32,
    operation: libc::c_uint,
    argument: *mut c_void,
    count: libc::c_uint,
) -> Result<()> {
    // SAFETY: the caller guarantees that the argument is valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            ring,
            operation,
            argument,
            count,
        )
    };
    if result < 0 {
        Err(last_errno())
    } else {
        Ok(())
    }
}

pub(super) fn errno_of(error: &std::io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
