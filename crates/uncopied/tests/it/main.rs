//! The library on a real kernel: files, memory, sockets, limits and signals. One binary.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

/// The shared fixture: files, socket pairs, receivers that check every byte, child processes.
mod harness;

// --- Files ---------------------------------------------------------------------------------------

/// Sizes around every boundary, offsets, and ranges past 4 GiB, by every mechanism.
mod file_sizes;

/// Files that shrink or grow while they are sent.
mod file_size_changes;

/// File mappings: look-ups from several threads, and files that are truncated.
mod file_mappings;

/// Files that are not in the page cache.
mod residency;

/// Sources that do not support `sendfile`, and sinks that are not stream sockets.
mod endpoints;

/// Processes without free file descriptors or address space.
mod resource_exhaustion;

/// The switch for zero copy, `force_copy`, and files that change after they were sent.
mod force_copy;

/// Peers that read slowly or stop reading, and send time-outs.
mod slow_peers;

/// Peers that close the connection, and SIGPIPE.
mod closed_peers;

/// Transfers on tokio that are dropped and resumed, and what idle ones cost.
#[cfg(feature = "tokio")]
mod transfer_cancellation;

// --- Memory --------------------------------------------------------------------------------------

/// Sizes around every boundary, by every mechanism, and the outcome of each send.
mod memory_sizes;

/// Notifications: several in one, too many, between other messages, and what the sender learns.
mod notifications;

/// Wakers that panic, that call the library, and that are no longer needed.
mod wakers;

/// Sends that the peer acknowledges byte by byte.
mod acknowledgements;

/// Limits on the bytes in flight, of a sender and of the process.
mod in_flight_limits;

/// Sends in flight when the sender is dropped, the peer closes, or the thread panics.
mod sender_dropped;

/// Sends in flight when the process forks.
mod fork;

/// Sends on tokio that are dropped before they are done.
#[cfg(feature = "tokio")]
mod send_cancellation;

/// Buffers that are overwritten as soon as their completions allow it.
mod buffer_reuse;

/// Regions that are overwritten while they are sent.
mod regions;

/// The pool that buffers come from and return to.
mod buffer_pool;
