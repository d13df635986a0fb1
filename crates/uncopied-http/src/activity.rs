//! What a connection is waiting for, and since when: for deadlines without a timer per request.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The next request, of which no byte has come.
    Idle,
    /// A request has begun to arrive, and nothing has been sent since its first byte.
    Head,
    /// The peer to take bytes: its window is shut since the last progress.
    Sending,
    /// Nothing: bytes are moving, or the service is at work.
    Active,
}

/// What a connection is waiting for, and since when. The [`Stream`](crate::Stream) writes it; whoever
/// sets deadlines reads it, at whatever interval suits.
///
/// Times are those of the kernel's coarse clock: good to some milliseconds.
#[derive(Debug)]
pub struct Activity {
    /// The phase in the lowest two bits, above it milliseconds since the epoch of this process.
    state: AtomicU64,
}

impl Activity {
    pub(crate) fn new() -> Self {
        let activity = Self {
            state: AtomicU64::new(0),
        };
        activity.enter(Phase::Idle);
        activity
    }

    /// What the connection is waiting for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state.load(Ordering::Relaxed) & 3 {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Sending,
            _ => Phase::Active,
        }
    }

    /// For how long. In [`Phase::Sending`] and [`Phase::Active`]: since the last byte that moved.
    #[must_use]
    pub fn waiting(&self) -> Duration {
        coarse_now().saturating_sub(self.entered())
    }

    /// Since when.
    #[must_use]
    pub fn since(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.waiting()).unwrap_or(now)
    }

    /// As [`since`](Self::since), by a clock of this process's own, which takes no look at any other: to be
    /// compared with what another connection says.
    #[must_use]
    pub fn entered(&self) -> Duration {
        Duration::from_millis(self.state.load(Ordering::Relaxed) >> 2)
    }

    /// Bytes have come in.
    pub(crate) fn received(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// Bytes have gone out.
    pub(crate) fn sent(&self) {
        self.enter(Phase::Active);
    }

    /// There is more to send, which waits for the disk.
    pub(crate) fn loading(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Active);
        }
    }

    /// The peer takes no more for now.
    pub(crate) fn blocked(&self) {
        let since = self.state.load(Ordering::Relaxed) & !3;
        if self.phase() == Phase::Active {
            self.state
                .store(since | Phase::Sending as u64, Ordering::Relaxed);
        } else if self.phase() != Phase::Sending {
            self.enter(Phase::Sending);
        }
    }

    /// Everything that was written has gone out.
    pub(crate) fn flushed(&self) {
        // It went out with the last write, a moment ago at most: no look at the clock.
        let since = self.state.load(Ordering::Relaxed) & !3;
        if self.phase() == Phase::Active {
            self.state
                .store(since | Phase::Idle as u64, Ordering::Relaxed);
        }
    }

    fn enter(&self, phase: Phase) {
        let millis = u64::try_from(coarse_now().as_millis()).unwrap_or(u64::MAX >> 2);
        self.state
            .store(millis << 2 | phase as u64, Ordering::Relaxed);
    }
}

/// The time since the first call in this process, by the kernel's coarse clock.
fn coarse_now() -> Duration {
    static EPOCH: OnceLock<Duration> = OnceLock::new();
    let time = clock_gettime(ClockId::MonotonicCoarse);
    let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
    let nanos = u32::try_from(time.tv_nsec).unwrap_or(0);
    let now = Duration::new(seconds, nanos);
    now.saturating_sub(*EPOCH.get_or_init(|| now))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_goes_through_the_phases() {
        let activity = Activity::new();
        assert_eq!(activity.phase(), Phase::Idle);
        activity.flushed();
        assert_eq!(activity.phase(), Phase::Idle);
        activity.received();
        assert_eq!(activity.phase(), Phase::Head);
        activity.flushed();
        assert_eq!(activity.phase(), Phase::Head, "nothing was sent yet");
        activity.sent();
        activity.blocked();
        assert_eq!(activity.phase(), Phase::Sending);
        activity.received();
        assert_eq!(
            activity.phase(),
            Phase::Sending,
            "a pipelined request changes nothing"
        );
        activity.sent();
        activity.flushed();
        assert_eq!(activity.phase(), Phase::Idle);
    }
}
