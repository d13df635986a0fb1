//! The state of one connection that its worker shares with the control thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::server::coarse_now;
use crate::server::connections::{CommandSlot, Commanded, ConnectionCommand};

/// What a connection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(in crate::commands::relay) enum Phase {
    /// It waits for a header of the PROXY protocol, or connects to a target. Its worker enforces
    /// the time limits of this phase.
    Connecting = 0,
    /// It relays both streams.
    Relaying = 1,
    /// One of the two streams has ended.
    HalfClosed = 2,
}

const PHASE_BITS: u32 = 2;

/// How long a connection may exist without progress. `None` means that there is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::commands::relay) struct IdleLimits {
    /// While both streams are open.
    pub(in crate::commands::relay) relaying: Option<Duration>,
    /// Once one stream has ended.
    pub(in crate::commands::relay) half_closed: Option<Duration>,
}

/// The state of one connection.
pub(in crate::commands::relay) struct ConnectionState {
    limits: IdleLimits,
    /// The lowest bits hold the phase. The bits above them hold the time of the last progress, in
    /// milliseconds on the clock of [`coarse_now`].
    phase: AtomicU64,
    /// Whether the worker is to look how far the peers have read; see
    /// [`ConnectionState::sweep`].
    must_look: AtomicBool,
    /// Whether the last look has found that the peers have nothing to read.
    is_quiet: AtomicBool,
    is_expired: AtomicBool,
    commands: CommandSlot,
}

impl ConnectionState {
    pub(super) fn new(limits: IdleLimits) -> Self {
        Self {
            limits,
            phase: AtomicU64::new(with_time(Phase::Connecting)),
            must_look: AtomicBool::new(false),
            is_quiet: AtomicBool::new(false),
            is_expired: AtomicBool::new(false),
            commands: CommandSlot::new(),
        }
    }

    /// Records progress, and the phase in which the connection now is.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(with_time(phase), Ordering::Relaxed);
        if self.is_quiet.load(Ordering::Relaxed) {
            self.is_quiet.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) & ((1 << PHASE_BITS) - 1) {
            0 => Phase::Connecting,
            1 => Phase::Relaying,
            _ => Phase::HalfClosed,
        }
    }

    /// Returns the time since the last progress.
    pub(super) fn idle_time(&self) -> Duration {
        let since = self.phase.load(Ordering::Relaxed) >> PHASE_BITS;
        Duration::from_millis(coarse_now().saturating_sub(since))
    }

    /// Whether the connection was told to abort because no byte has moved for too long.
    pub(super) fn is_expired(&self) -> bool {
        self.is_expired.load(Ordering::Acquire)
    }

    fn limit(&self) -> Option<Duration> {
        match self.phase() {
            Phase::Connecting => None,
            Phase::Relaying => self.limits.relaying,
            Phase::HalfClosed => self.limits.half_closed,
        }
    }

    /// Enforces the limits. Called by the control thread at each sweep.
    ///
    /// A socket that was full becomes writable again only once a third of its buffer is free, which
    /// may take a slow but healthy peer minutes. So in the second half of its time, a connection is
    /// asked to look how far its peers have read.
    pub(in crate::commands::relay) fn sweep(&self) {
        let Some(limit) = self.limit() else {
            return;
        };
        let idle = self.idle_time();
        if idle >= limit {
            self.is_expired.store(true, Ordering::Release);
            self.commands.send(ConnectionCommand::Abort);
        } else if idle >= limit / 2 && !self.is_quiet.load(Ordering::Relaxed) {
            self.must_look.store(true, Ordering::Release);
            self.commands.wake();
        }
    }

    /// Whether the worker is to look. Resets the request.
    pub(super) fn take_look(&self) -> bool {
        // Check first, because a load costs less than a swap, and a look is rarely requested.
        self.must_look.load(Ordering::Relaxed) && self.must_look.swap(false, Ordering::Acquire)
    }

    /// Records that the peers have read everything, so that there is no need to look again before
    /// the next progress.
    pub(super) fn note_quiet(&self) {
        self.is_quiet.store(true, Ordering::Relaxed);
    }
}

impl Commanded for ConnectionState {
    fn commands(&self) -> &CommandSlot {
        &self.commands
    }
}

fn with_time(phase: Phase) -> u64 {
    coarse_now() << PHASE_BITS | phase as u64
}

/// Returns the time between two sweeps, for the shortest of some limits: a quarter of it, but at
/// least 50 ms and at most 1 s. A limit is thus enforced at most one interval late.
pub(in crate::commands::relay) fn sweep_interval(
    limits: impl IntoIterator<Item = IdleLimits>,
) -> Duration {
    let shortest = limits
        .into_iter()
        .flat_map(|limits| [limits.relaying, limits.half_closed])
        .flatten()
        .min()
        .unwrap_or(Duration::MAX);
    (shortest / 4).clamp(Duration::from_millis(50), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(relaying: Option<u64>, half_closed: Option<u64>) -> ConnectionState {
        ConnectionState::new(IdleLimits {
            relaying: relaying.map(Duration::from_millis),
            half_closed: half_closed.map(Duration::from_millis),
        })
    }

    #[test]
    fn each_phase_has_its_limit() {
        let connection = state(Some(0), None);
        for (phase, command) in [
            (Phase::Connecting, ConnectionCommand::None),
            (Phase::HalfClosed, ConnectionCommand::None),
            (Phase::Relaying, ConnectionCommand::Abort),
        ] {
            connection.enter(phase);
            assert_eq!(connection.phase(), phase);
            connection.sweep();
            assert_eq!(connection.commands().command(), command, "{phase:?}");
        }
        let connection = state(None, Some(0));
        connection.enter(Phase::HalfClosed);
        connection.sweep();
        assert_eq!(connection.commands().command(), ConnectionCommand::Abort);
    }

    #[test]
    fn a_look_is_requested_in_the_second_half_unless_the_peers_have_read_everything() {
        const LIMIT_MS: u64 = 40_000;
        let connection = state(Some(LIMIT_MS), None);
        let idle_for = |millis: u64| {
            let since = coarse_now() - millis;
            let phase = since << PHASE_BITS | Phase::Relaying as u64;
            connection.phase.store(phase, Ordering::Relaxed);
        };
        idle_for(LIMIT_MS / 4);
        connection.sweep();
        assert!(!connection.take_look());
        idle_for(LIMIT_MS * 3 / 4);
        connection.sweep();
        assert!(connection.take_look());
        assert!(!connection.take_look(), "once for each sweep");
        connection.note_quiet();
        connection.sweep();
        assert!(!connection.take_look());
        connection.enter(Phase::Relaying);
        idle_for(LIMIT_MS * 3 / 4);
        connection.sweep();
        assert!(connection.take_look());
        assert_eq!(connection.commands().command(), ConnectionCommand::None);
    }

    #[test]
    fn sweeps_are_as_frequent_as_the_shortest_limit_needs() {
        let interval =
            |relaying, half_closed| sweep_interval([state(relaying, half_closed).limits]);
        assert_eq!(interval(None, None), Duration::from_secs(1));
        assert_eq!(
            interval(Some(3_600_000), Some(2000)),
            Duration::from_millis(500)
        );
        assert_eq!(interval(Some(1), None), Duration::from_millis(50));
    }
}
