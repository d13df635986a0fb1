//! The library against real kernels: files, sockets, limits, signals. One binary.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

/// Files, pairs of sockets, peers that check what they read, tests in a process of their own.
mod harness;

/// Every mechanism, socket and driver at the sizes around every boundary; offsets; 4 GiB.
mod sizes;

/// Files that shrink or grow while they are sent.
mod shrink;

/// Peers that read slowly, stop reading, or make the sender wait too long.
mod slow;

/// Transfers that are dropped in the middle and taken up again, and what the driver does when idle.
#[cfg(feature = "tokio")]
mod cancel;

/// Peers that have gone: an error, never SIGPIPE.
mod closed;

/// Sources that cannot sendfile, sinks that are none.
mod endpoints;

/// Descriptors and addresses used up.
mod limits;

/// The switch, the copying mode, and what zero copy does not promise.
mod copied;

/// Mappings in many threads, and under files that are cut short.
mod arena;

/// Files that are not in the page cache.
mod cold;

/// Memory by every mechanism at the sizes around every boundary, and what completions tell.
mod memory_sizes;

/// The kernel's notices: several in one, too many, among others; and what is learned from them.
mod memory_notices;

/// How much may be lent, when the peer does not read.
mod memory_quota;

/// Peers, senders and completions that have gone with memory lent.
mod memory_gone;

/// Child processes that are made while memory is lent.
mod memory_fork;

/// Sends of memory that are dropped in the middle.
#[cfg(feature = "tokio")]
mod memory_cancel;

/// Buffers that are overwritten as soon as their completions allow it.
mod poison;

/// Regions that are overwritten while they are sent.
mod regions;

/// Buffers that come and go.
mod pool;
