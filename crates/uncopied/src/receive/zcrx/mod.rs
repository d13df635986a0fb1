//! Receives with io_uring's zero-copy receive: the network card writes the payloads of a connection
//! directly into memory of this process.
//!
//! ```text
//! network card ──┬─ headers ──▶ kernel memory ──▶ TCP
//!                └─ payload ──▶ area ──▶ Chunk ──▶ your code
//!                                ▲                   │
//!                                └─── refill ring ◀──┘ dropped
//! ```
//!
//! A [`Queue`] registers one receive queue of a network card, and an **area** of memory, which is
//! divided into buffers. It then receives from any number of sockets. Each [`Chunk`] is a range of
//! bytes in the area, at most as long as a [buffer](Queue::buffer_bytes): one page, unless the
//! driver uses larger ones. The chunk is a plain `&[u8]`, of any alignment and length. Dropping it
//! gives the memory back.
//!
//! Unlike a [`Receiver`](crate::Receiver), a queue needs no payloads of whole pages, maps nothing,
//! and lets safe code read the bytes in place. But the network card must support it, and the
//! process needs a permission.
//!
//! # What it needs
//!
//! | | |
//! |---|---|
//! | a driver | `bnxt_en`, `gve`, `mlx5_core` and `fbnic` have support, in some version |
//! | Linux 6.15 | a queue of a network card |
//! | Linux 6.19 | if memory runs out, the kernel takes back dropped chunks at once |
//! | Linux 7.1 | a queue [without a device](Builder::without_device), for tests |
//! | Linux 7.2 | the kernel [counts](Queue::copied_by_kernel) what it copies |
//! | `CAP_NET_ADMIN` | for registering any queue |
//! | `CAP_IPC_LOCK` | or a limit on locked memory (`RLIMIT_MEMLOCK`) of more than the area |
//!
//! What is missing is a [`Refusal`], which says in words what mends it. The kernel's refusal is not
//! the last word: [`Builder::register_or_copy`] returns a queue that receives with ordinary calls
//! instead. So a program is written once, and works on every machine.
//!
//! # Preparing the network card
//!
//! The kernel does not configure the card. As root, for queue 1 of `eth0`:
//!
//! ```sh
//! ethtool -L eth0 combined 2                         # at least two receive queues
//! ethtool -G eth0 tcp-data-split on hds-thresh 0     # split headers from data
//! ethtool -X eth0 equal 1                            # keep other connections off queue 1
//! ethtool -N eth0 flow-type tcp4 dst-port 9000 action 1   # steer port 9000 to queue 1
//! ```
//!
//! [`interface::Interface`](crate::interface::Interface) tells which of these an interface lacks.
//! Nothing tells whether the connections are steered to the right queue, except that
//! [`Queue::copied_by_kernel`] grows if they are not.
//!
//! # When the kernel copies
//!
//! The kernel copies into the area what the card did not put there: bytes that arrived by another
//! receive queue or by the loopback interface, and those of packets that were not split. Reports
//! count such bytes as copied as far as the kernel says so: those of a queue without a device
//! always, others since Linux 7.2. They are counted in [`Queue::report`].
//!
//! If [`register_or_copy`](Builder::register_or_copy) was refused, or while zero-copy receiving is
//! [switched off](crate::set_zero_copy_receive), or if a socket is not plain TCP, the queue
//! receives with `recv(2)`. Reports count these bytes as those of [`copy`](crate::Mechanism::Copy).
//!
//! # Where it was tested
//!
//! Nothing has run on a network card with support yet. On Linux 7.3, in a virtual machine and
//! without a device, all tests run with the kernel copying into the area: long streams, many
//! sockets, memory that runs out, chunks in flight to another machine, resets, forks, leaks. On
//! Linux 6.12 and 6.18, the tests check why a queue is refused, and that it copies. What only a
//! card with support can show has not been seen: its refusals, and how fast it recovers once chunks
//! have held all of its buffers.
//!
//! # Example
//!
//! ```no_run
//! use std::net::TcpListener;
//! use uncopied::zcrx::{Builder, Event};
//!
//! let mut queue = Builder::for_interface("eth0", 1).area_bytes(64 << 20).register()?;
//! let listener = TcpListener::bind("0.0.0.0:9000")?;
//! for _ in 0..8 {
//!     queue.add(listener.accept()?.0)?;
//! }
//! while let Some((id, event)) = queue.receive(None)? {
//!     match event {
//!         Event::Chunk(chunk) => println!("{id:?}: {} bytes", chunk.len()),
//!         Event::End => drop(queue.remove(id)?),
//!         Event::Failed(error) => eprintln!("{id:?}: {error}"),
//!     }
//! }
//! println!("{}", queue.report());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # References
//!
//! The kernel's [`iou-zcrx.rst`] and `io_uring/zcrx.c`.
//!
//! [`iou-zcrx.rst`]: https://docs.kernel.org/networking/iou-zcrx.html

mod builder;
mod chunk;
mod copying;
mod queue;
mod refusal;

pub use builder::{Builder, DEFAULT_AREA_BYTES};
pub use chunk::Chunk;
pub use queue::{Event, Id, Queue};
pub use refusal::{Cause, Refusal};
