//! Tests of the library on a real kernel: files, memory, sockets, limits and signals. All tests are
//! modules of one binary, so that the library is linked only once.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

/// Helpers that the tests share: test files, socket pairs, receivers that check every byte, and
/// child processes.
mod harness;

// --- Files ---------------------------------------------------------------------------------------

/// File sizes around each boundary (a page, 64 KiB, 2 MiB), odd offsets, and ranges past 4 GiB,
/// with every mechanism.
mod file_sizes;

/// Files that are sent with a header and a trailer.
mod file_header;

/// Files that shrink or grow while they are sent.
mod file_size_changes;

/// File mappings: look-ups from several threads, and files that are written to or truncated while
/// code reads them.
mod file_mappings;

/// Files that are not in the page cache.
mod residency;

/// The types of sockets that can be sent to, and the calls that must not wait.
mod sockets;

/// Sources that do not support `sendfile`, and sinks that are not stream sockets.
mod endpoints;

/// The text, source and errno of an error, and which of them survive the conversion to an
/// `io::Error`.
mod errors;

/// Processes without free file descriptors or address space.
mod resource_exhaustion;

/// The thresholds from which mechanisms are used, and files that hold them.
mod tuning;

/// Measuring these thresholds on this machine.
mod measure;

/// Switching zero-copy sends off, and overwriting a file after it was sent.
mod force_copy;

/// Peers that read slowly or stop reading, and send timeouts (`SO_SNDTIMEO`).
mod slow_peers;

/// Peers that close the connection, and SIGPIPE.
mod closed_peers;

/// Transfers on tokio that are dropped and resumed, and the CPU time that idle transfers use.
#[cfg(feature = "tokio")]
mod transfer_cancellation;

// --- Memory --------------------------------------------------------------------------------------

/// Memory sizes around each boundary (a page, 64 KiB, 2 MiB), with every mechanism, and the outcome
/// of each send.
mod memory_sizes;

/// Sends of bytes that the program already has: `Bytes`, `Vec<u8>`, `Arc<[u8]>` and others.
mod memory_owners;

/// Notifications of `MSG_ZEROCOPY` sends: those that the kernel merges, those that it has no memory
/// for, those between other messages on the error queue, and those that report a copy.
mod notifications;

/// Wakers that panic, that call the library, and that are no longer needed.
mod wakers;

/// Memory sent with `vmsplice` that the peer acknowledges little by little.
mod acknowledgements;

/// Limits on the bytes in flight, per sender and per process.
mod in_flight_limits;

/// The same limits for memory sent with `vmsplice`, whose bytes count until they have left the
/// queue of their socket, and memory that is sent to many peers.
mod socket_queues;

/// Sends in flight when the sender is dropped, the peer closes, or the thread panics.
mod sender_dropped;

/// Sends in flight when the process forks.
mod fork;

/// Sends in flight when the process is replaced by another program, starts one, or ends.
mod exec;

/// Sends that must be copied: with `MSG_ZEROCOPY`, they would shift the numbers by which the kernel
/// identifies the sends of another sender.
mod socket_numbers;

/// Sends on tokio whose future is dropped before it completes.
#[cfg(feature = "tokio")]
mod send_cancellation;

/// Buffers that are overwritten as soon as their completions allow it.
mod buffer_reuse;

/// Regions that are overwritten while they are sent.
mod regions;

/// The pool that buffers come from and return to.
mod buffer_pool;

// --- Receiving -----------------------------------------------------------------------------------

/// Receiving into memory: what is mapped and what is copied, the end of the stream, errors,
/// timeouts, and the switch.
mod receiving;

/// Chunks that are held and dropped in any order, sent on, and written to files.
mod received_chunks;

/// Receiving into files, pipes and devices: sizes around each boundary, the end of the stream, what
/// stays in the socket, and sinks that are special.
mod received_files;

/// Receiving into files that fails: full disks, limits on the size of files, pipes that nobody
/// reads, files that others truncate, and peers that stop or reset the connection.
mod receiving_failures;

// --- Relaying ------------------------------------------------------------------------------------

/// Bytes between two sockets, in both directions: sizes, half-closed streams, small segments,
/// stalled readers, resets, prefixes, urgent data, dropped futures, and missing pipes.
mod relays;

/// Clients and servers that do what is hard for a relay, which the tests of the lab share.
mod relay_chaos;

// --- Copying -------------------------------------------------------------------------------------

/// Copies from anything to anything: every pair of ends, the positions of files, special files, and
/// what has no descriptor.
mod copies;

/// Copies that fail or are dropped: what was counted, and where the files then stand.
mod copying_failures;

// --- Interfaces ----------------------------------------------------------------------------------

/// What network interfaces can do for zero-copy receiving: the loopback interface, virtual ones,
/// and those that do not exist.
mod interfaces;

/// TCP connections whose payloads are whole pages, with and without TCP timestamps, and with an MTU
/// that is just large enough or just too small.
mod page_payloads;

/// Cases for queues, which the tests of the lab share.
mod zcrx_cases;

/// Queues that receive from several sockets: why they are refused here, and how they copy instead.
mod zcrx;
