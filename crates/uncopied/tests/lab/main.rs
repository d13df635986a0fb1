//! Tests of the library between two machines: two virtual machines that `lab/test` boots, joined by
//! a network card. There, and not over loopback, zero-copy sends are really not copied, and memory
//! is in flight until the peer has acknowledged it.
//!
//! Both guests run this program. Each test has two sides, and guest 1 runs one of them while guest
//! 2 runs the other. So the tests run one after the other, in the same order in both guests.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)]

/// Helpers that these tests share with those of the host.
#[path = "../it/harness.rs"]
#[allow(dead_code)]
mod harness;

/// Cases for queues that these tests share with those of the host.
#[path = "../it/zcrx_cases.rs"]
mod zcrx_cases;

/// Clients and servers of a relay, which these tests share with those of the host.
#[path = "../it/relay_chaos.rs"]
mod relay_chaos;

/// Runs the two sides of a test.
mod sides;

/// Sends of memory that must not be copied.
mod not_copied;

/// A network card that cannot gather packets, so that the kernel copies every byte.
mod not_gathered;

/// Copies that `uncopied audit` must find.
mod audited;

/// Memory that is overwritten as soon as a completion allows it, or at any time.
mod overwritten;

/// Processes that fork, or replace themselves, while memory is in flight.
mod forked;

/// Peers that reset the connection, or do not read, while memory is in flight.
mod unread;

/// Receiving by mapping pages that a network card has received.
mod mapped;

/// Relaying in one guest between a client and a server in the other.
mod relayed;

/// Receiving into an area of memory with io_uring, without a network card for it.
mod zcrx;
