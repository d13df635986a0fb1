//! What a connection is waiting for, and since when, so that deadlines need no timer per request.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The next request, of which no byte has arrived.
    Idle,
    /// A request has begun to arrive, and nothing has been sent since its first byte.
    Head,
    /// The peer, to accept bytes: its window has been closed since the last progress.
    Sending,
    /// Nothing: bytes are moving, or the service is at work.
    Active,
}

/// What a connection is waiting for, and since when. The [`Stream`](crate::Stream) writes it; code
/// that enforces deadlines reads it at an interval of its choice.
///
/// Times come from the kernel's coarse clock, which is accurate to a few milliseconds.
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

    /// How long the connection has been waiting. In [`Phase::Sending`] and [`Phase::Active`], the
    /// time since the last byte moved.
    #[must_use]
    pub fn waiting(&self) -> Duration {
        coarse_now().saturating_sub(self.entered())
    }

    /// When the connection began to wait.
    #[must_use]
    pub fn since(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.waiting()).unwrap_or(now)
    }

    /// Like [`since`](Self::since), as a time on a clock of this process. Reading it does not read
    /// the system clock. Compare it with the value of another connection.
    #[must_use]
    pub fn entered(&self) -> Duration {
        Duration::from_millis(self.state.load(Ordering::Relaxed) >> 2)
    }

    /// Records that bytes have arrived.
    pub(crate) fn note_received(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Head);
        }
    }

    /// Records that bytes have been sent.
    pub(crate) fn note_sent(&self) {
        self.enter(Phase::Active);
    }

    /// Records that there is more to send, which waits for the disk.
    pub(crate) fn note_loading(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Active);
        }
    }

    /// Records that the peer accepts no more for now.
    pub(crate) fn note_blocked(&self) {
        let since = self.state.load(Ordering::Relaxed) & !3;
        if self.phase() == Phase::Active {
            self.state
                .store(since | Phase::Sending as u64, Ordering::Relaxed);
        } else if self.phase() != Phase::Sending {
            self.enter(Phase::Sending);
        }
    }

    /// Records that everything written has been sent.
    pub(crate) fn note_flushed(&self) {
        // The last write sent it, a moment ago at most. So the time of that write is kept, and the
        // clock is not read.
        let since = self.state.load(Ordering::Relaxed) & !3;
        if self.phase() == Phase::Active {
            self.state
                .store(since | Phase::Idle as u64, Ordering::Relaxed);
        }
    }

    /// Sets the phase, and the time at which it began.
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
    fn a_request_passes_through_the_phases() {
        let activity = Activity::new();
        assert_eq!(activity.phase(), Phase::Idle);
        activity.note_flushed();
        assert_eq!(activity.phase(), Phase::Idle);
        activity.note_received();
        assert_eq!(activity.phase(), Phase::Head);
        activity.note_flushed();
        assert_eq!(activity.phase(), Phase::Head, "nothing has been sent yet");
        activity.note_sent();
        activity.note_blocked();
        assert_eq!(activity.phase(), Phase::Sending);
        activity.note_received();
        assert_eq!(
            activity.phase(),
            Phase::Sending,
            "a pipelined request changes nothing"
        );
        activity.note_sent();
        activity.note_flushed();
        assert_eq!(activity.phase(), Phase::Idle);
    }
}
