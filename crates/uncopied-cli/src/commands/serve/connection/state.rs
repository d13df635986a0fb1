//! The state of one connection that its task shares with the control thread.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::server::coarse_now;
use crate::server::connections::{CommandSlot, Commanded, ConnectionCommand};

/// What a connection is waiting for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Phase {
    /// The next request. No byte of it has arrived.
    Idle = 0,
    /// The rest of a request head.
    Head = 1,
    /// The server itself: a response is being prepared, or its bytes are moving.
    Responding = 2,
    /// The peer: the socket accepts no more bytes of the response.
    Sending = 3,
    /// The peer: everything has been sent, and the connection closes once the peer has closed it.
    Closing = 4,
}

const PHASE_BITS: u32 = 3;

/// The state of one connection.
pub(crate) struct ConnectionState {
    pub(crate) accepted: Instant,
    /// The lowest bits hold the phase. The bits above them hold the time at which it began, or at
    /// which the peer last accepted bytes, in milliseconds on the clock of [`coarse_now`].
    phase: AtomicU64,
    has_received_request: AtomicBool,
    /// Whether the task is to look how far the peer has read; see
    /// [`ConnectionState::request_look`].
    must_look: AtomicBool,
    commands: CommandSlot,
}

impl ConnectionState {
    pub(crate) fn new() -> Self {
        Self {
            accepted: Instant::now(),
            phase: AtomicU64::new(with_time(Phase::Idle)),
            has_received_request: AtomicBool::new(false),
            must_look: AtomicBool::new(false),
            commands: CommandSlot::new(),
        }
    }

    /// Records that a whole request head has arrived.
    pub(super) fn note_request(&self) {
        self.has_received_request.store(true, Ordering::Relaxed);
        self.enter(Phase::Responding);
    }

    pub(crate) fn has_received_request(&self) -> bool {
        self.has_received_request.load(Ordering::Relaxed)
    }

    /// Enters a phase, which begins now.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.store(with_time(phase), Ordering::Relaxed);
    }

    /// Enters a phase unless the connection is in it already.
    pub(super) fn enter_once(&self, phase: Phase) {
        if self.phase() != phase {
            self.enter(phase);
        }
    }

    /// Returns what the connection is waiting for.
    pub(crate) fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) & ((1 << PHASE_BITS) - 1) {
            0 => Phase::Idle,
            1 => Phase::Head,
            2 => Phase::Responding,
            3 => Phase::Sending,
            _ => Phase::Closing,
        }
    }

    /// Returns for how long the connection has been in its phase, or, in [`Phase::Sending`], for
    /// how long the peer has accepted no bytes.
    pub(crate) fn time_in_phase(&self) -> Duration {
        let since = self.phase.load(Ordering::Relaxed) >> PHASE_BITS;
        Duration::from_millis(coarse_now().saturating_sub(since))
    }

    /// Returns for how long the connection has been idle between two requests. `None` if it is not,
    /// or if its first request has not arrived.
    fn idle_time(&self) -> Option<Duration> {
        let is_idle = self.has_received_request() && self.phase() == Phase::Idle;
        is_idle.then(|| self.time_in_phase())
    }

    /// Like [`ConnectionState::idle_time`], but `None` if the connection has been told to close.
    pub(crate) fn idle_time_if_open(&self) -> Option<Duration> {
        let is_open = self.command() < ConnectionCommand::Drain;
        self.idle_time().filter(|_| is_open)
    }

    /// Asks the task to look whether the peer is still reading. Only the task can do that, because
    /// it owns the socket. Looking is necessary because a socket becomes writable again only once a
    /// third of its buffer is free, which may take a slow but healthy peer minutes.
    pub(crate) fn request_look(&self) {
        self.must_look.store(true, Ordering::Release);
        self.commands.wake();
    }

    /// Whether the task is to look. Resets the request.
    pub(super) fn take_look(&self) -> bool {
        // Check first, because a load costs less than a swap, and a look is rarely requested.
        self.must_look.load(Ordering::Relaxed) && self.must_look.swap(false, Ordering::Acquire)
    }

    /// Returns the greatest command received so far.
    pub(crate) fn command(&self) -> ConnectionCommand {
        self.commands.command()
    }

    /// Sends a command; see [`CommandSlot::send`].
    pub(crate) fn send(&self, command: ConnectionCommand) {
        self.commands.send(command);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_phase_and_its_time_are_kept_together() {
        let state = ConnectionState::new();
        assert_eq!(state.phase(), Phase::Idle);
        for phase in [
            Phase::Head,
            Phase::Responding,
            Phase::Sending,
            Phase::Closing,
            Phase::Idle,
        ] {
            state.enter(phase);
            assert_eq!(state.phase(), phase);
            assert!(state.time_in_phase() < Duration::from_secs(5));
        }
    }
}
