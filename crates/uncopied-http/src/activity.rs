//! Records what a connection is waiting for, and since when, so that a server can enforce deadlines
//! without a timer per request.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The state of a connection: what it is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The connection waits for its next request. No byte of that request has arrived.
    Idle,
    /// A request has begun to arrive, but nothing has been sent since. The connection waits for the
    /// rest of the request, or for the service.
    Head,
    /// The connection waits for the peer to accept more bytes: the socket's send buffer is full.
    Sending,
    /// The connection does not wait for the peer: bytes are moving, or the service is at work.
    Active,
}

/// The current [`Phase`] of a connection, and when that phase began. The [`Stream`](crate::Stream)
/// keeps both up to date. A server that enforces deadlines should read them at regular intervals.
///
/// Times come from the kernel's coarse clock, which is accurate to a few milliseconds.
#[derive(Debug)]
pub struct Activity {
    /// The lowest two bits hold the phase. The bits above them hold the time at which the phase
    /// began, in milliseconds on the clock of [`coarse_now`].
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

    /// Returns what the connection is waiting for.
    #[must_use]
    pub fn phase(&self) -> Phase {
        match self.state.load(Ordering::Relaxed) & 3 {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Sending,
            _ => Phase::Active,
        }
    }

    /// Returns how long the connection has been waiting. In [`Phase::Sending`] and
    /// [`Phase::Active`], this is the time since bytes of the response were last sent, or since the
    /// phase began if none have been sent yet.
    #[must_use]
    pub fn waiting(&self) -> Duration {
        coarse_now().saturating_sub(self.entered())
    }

    /// Returns when the connection began to wait.
    #[must_use]
    pub fn since(&self) -> Instant {
        let now = Instant::now();
        now.checked_sub(self.waiting()).unwrap_or(now)
    }

    /// Returns when the connection began to wait, as the time since an arbitrary epoch of this
    /// process. Cheaper than [`since`](Self::since), because it does not read the clock. Only
    /// meaningful when compared with the value of another connection in the same process.
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

    /// Records that the next bytes to send must first be read from disk.
    pub(crate) fn note_loading(&self) {
        if self.phase() == Phase::Idle {
            self.enter(Phase::Active);
        }
    }

    /// Records that the socket accepts no more bytes for now, because the peer is not reading them.
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
        // Let the idle phase begin at the time of the last write, which saves reading the clock.
        // The difference is small, because that write has only just sent the last of the bytes.
        let since = self.state.load(Ordering::Relaxed) & !3;
        if self.phase() == Phase::Active {
            self.state
                .store(since | Phase::Idle as u64, Ordering::Relaxed);
        }
    }

    /// Enters `phase`, and records the current time as its beginning.
    fn enter(&self, phase: Phase) {
        let millis = u64::try_from(coarse_now().as_millis()).unwrap_or(u64::MAX >> 2);
        self.state
            .store(millis << 2 | phase as u64, Ordering::Relaxed);
    }
}

/// Returns the time since this function was first called in the process, as measured by the
/// kernel's coarse clock.
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
