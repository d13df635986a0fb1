//! io_uring zero-copy receive: registering an interface queue, receiving with it, and the memory
//! that the kernel hands out.
//!
//! The registration consists of three pieces of memory:
//!
//! ```text
//! area         the bytes that are received; divided into buffers (one page each, unless
//!              the network card uses larger ones)
//! completions  kernel → program: "these bytes of the area are yours"
//! refill ring  program → kernel: "take these bytes back"
//! ```
//!
//! A [`Lease`] is a range of bytes that the kernel has handed out and that was not given back yet.
//! The types of this module make a lease sound:
//!
//! - A lease is created only from a completion, and each completion is read once.
//! - The kernel writes only to buffers that are not handed out. A buffer counts as handed out until
//!   each of its leases has been given back through the refill ring. Each lease is given back at
//!   most once, by its `Drop`.
//! - The kernel takes back *all* buffers when the ring (the io_uring instance) is closed, even
//!   those that are handed out, and some kernels do so while the network card still receives. So
//!   each lease keeps the ring open, and the interface queue registered. The ring is closed when
//!   neither its owner nor any lease exists any more.
//! - No code of this process can write to the area: it becomes read-only once it is registered. The
//!   kernel and the network card write through references to the page frames of their own.
//! - A forked child has a copy of the area, as it was during the fork: the kernel copies pinned
//!   pages during the fork, not at the next write. The copy of the refill ring is also the child's
//!   own, but its lock may be held by a thread that exists only in the parent. So in a child,
//!   dropping a lease does nothing.
//!
//! References: `Documentation/networking/iou-zcrx.rst` and `io_uring/zcrx.c` of the kernel.

mod lease;
mod memory;
mod refill;
mod registration;
mod ring;
mod signal;

pub(crate) use lease::Lease;
pub(crate) use registration::{Device, Layout, RegistrationError, Step, Zcrx};
pub(crate) use ring::Completion;
pub(crate) use signal::Signal;

#[cfg(test)]
mod tests;
