//! A worker's data that the control thread reads: connections and counters.

use std::sync::atomic::{AtomicU64, Ordering};

use uncopied::{Mechanism, Report};

use crate::server::connections::ConnectionTable;

use super::connection::{ConnectError, ConnectionState, EndKind};

/// The mechanisms that move bytes from socket to socket.
pub(super) const MECHANISMS: [Mechanism; Mechanism::SOCKET_TO_SOCKET.len()] =
    Mechanism::SOCKET_TO_SOCKET;

/// A direction in which bytes move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the client to the target.
    ToTarget,
    /// From the target to the client.
    ToClient,
}

impl Direction {
    pub(super) const ALL: [Self; 2] = [Self::ToTarget, Self::ToClient];

    /// Returns the name in logs and metrics.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::ToTarget => "to_target",
            Self::ToClient => "to_client",
        }
    }
}

/// The number of bytes that sockets have accepted, by direction and mechanism.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RelayedBytes([[u64; MECHANISMS.len()]; Direction::ALL.len()]);

impl RelayedBytes {
    /// Returns the bytes of two reports.
    pub(super) fn of(to_target: &Report, to_client: &Report) -> Self {
        Self([to_target, to_client].map(|report| MECHANISMS.map(|by| report.by(by))))
    }

    #[cfg(test)]
    pub(super) fn from_counts(counts: [[u64; MECHANISMS.len()]; Direction::ALL.len()]) -> Self {
        Self(counts)
    }

    /// Returns the bytes that moved in a direction, with each mechanism.
    pub(super) fn by_mechanism(
        &self,
        direction: Direction,
    ) -> impl Iterator<Item = (Mechanism, u64)> + use<> {
        MECHANISMS.into_iter().zip(self.0[direction as usize])
    }

    /// Returns the bytes that moved in a direction.
    pub(super) fn total(&self, direction: Direction) -> u64 {
        self.0[direction as usize].iter().sum()
    }

    /// Calls `add` for every count, with what it has grown by since `before`.
    fn for_each_growth(&self, before: &Self, mut add: impl FnMut(usize, usize, u64)) {
        for (direction, (now, before)) in self.0.iter().zip(&before.0).enumerate() {
            for (mechanism, (now, before)) in now.iter().zip(before).enumerate() {
                if now > before {
                    add(direction, mechanism, now - before);
                }
            }
        }
    }
}

/// The connections and counters of one worker thread. Only the worker updates the counters, so a
/// load and a store are enough, and no atomic read-modify-write is needed. The control thread reads
/// them.
#[derive(Default)]
pub(super) struct WorkerStats {
    pub(super) connections: ConnectionTable<ConnectionState>,
    accepted: AtomicU64,
    ended: [AtomicU64; EndKind::ALL.len()],
    connect_errors: [AtomicU64; ConnectError::ALL.len()],
    bytes: [[AtomicU64; MECHANISMS.len()]; Direction::ALL.len()],
}

impl WorkerStats {
    pub(super) fn count_accepted(&self) {
        add(&self.accepted, 1);
    }

    pub(super) fn count_ended(&self, kind: EndKind) {
        add(&self.ended[kind as usize], 1);
    }

    pub(super) fn count_connect_error(&self, kind: ConnectError) {
        add(&self.connect_errors[kind as usize], 1);
    }

    /// Counts the bytes that a connection has moved since it had moved those of `before`.
    pub(super) fn count_bytes(&self, now: &RelayedBytes, before: &RelayedBytes) {
        now.for_each_growth(before, |direction, mechanism, bytes| {
            add(&self.bytes[direction][mechanism], bytes);
        });
    }
}

fn add(counter: &AtomicU64, count: u64) {
    let before = counter.load(Ordering::Relaxed);
    counter.store(before + count, Ordering::Relaxed);
}

/// The sums of the counters of all workers at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// The number of connections accepted, including those that were refused.
    pub(super) accepted: u64,
    /// The number of connections that have ended, by the way in which they did.
    pub(super) ended: [u64; EndKind::ALL.len()],
    /// The number of attempts to connect to an address of a target that failed.
    pub(super) connect_errors: [u64; ConnectError::ALL.len()],
    pub(super) bytes: RelayedBytes,
}

impl Totals {
    pub(super) fn of<'a>(workers: impl IntoIterator<Item = &'a WorkerStats>) -> Self {
        let mut totals = Self::default();
        for stats in workers {
            add_up(&mut totals.ended, &stats.ended);
            add_up(&mut totals.connect_errors, &stats.connect_errors);
            totals.accepted += stats.accepted.load(Ordering::Relaxed);
            for (sums, counters) in totals.bytes.0.iter_mut().zip(&stats.bytes) {
                add_up(sums, counters);
            }
        }
        totals
    }
}

fn add_up(sums: &mut [u64], counters: &[AtomicU64]) {
    for (sum, counter) in sums.iter_mut().zip(counters) {
        *sum += counter.load(Ordering::Relaxed);
    }
}
