//! Relays both streams of a connection until they have ended, and keeps account of the bytes.

use std::ops::ControlFlow;
use std::time::Instant;

use uncopied::relay::RelayOptions;
use uncopied::{Error, Mechanism, Progress, RelayTransfer};

use crate::commands::relay::stats::{Direction, RelayedBytes, WorkerStats};

use super::Turn;
use super::end::{End, Peer, RelayFailure};
use super::rate::RateLimiter;
use super::side::Side;
use super::state::{ConnectionState, Phase};

/// Below this rate, every byte is copied: a pipe would be filled at once, which at this rate takes
/// longer than a burst.
const MIN_SPLICE_BYTES_PER_SECOND: u64 = 4 << 20;

/// The number of bytes after which a stream lets other connections have their turn.
const MAX_BYTES_PER_TURN: u64 = 2 << 20;

/// The number of steps after which it does so as well: a sender of tiny messages may be as fast as
/// the relay, so that its socket is never empty.
const MAX_STEPS_PER_TURN: u32 = 128;

/// The two streams of a connection.
pub(super) struct Relaying {
    to_target: Stream,
    to_client: Stream,
    /// The bytes that have been counted so far.
    counted: RelayedBytes,
    /// The first error, while the other stream may still have bytes to deliver.
    error: Option<RelayFailure>,
    /// The bytes in the queues of both sockets at the last look.
    queued: u64,
}

struct Stream {
    transfer: RelayTransfer,
    is_open: bool,
    max_bytes_per_turn: u64,
    limiter: Option<Box<RateLimiter>>,
}

impl Relaying {
    /// Prepares to relay. `prefix` is sent to the target first.
    pub(super) fn new(
        mechanism: Option<Mechanism>,
        bytes_per_second: Option<u64>,
        prefix: Vec<u8>,
        now: Instant,
    ) -> Self {
        let mut options = RelayOptions::new().prefix_to_b(prefix);
        if let Some(mechanism) = mechanism {
            options = options.force_mechanisms(&[mechanism]);
        }
        if bytes_per_second.is_some_and(|rate| rate < MIN_SPLICE_BYTES_PER_SECOND) {
            options = options.force_mechanisms(&[Mechanism::Copy]);
        }
        let max_bytes_per_turn = bytes_per_second
            .map_or(MAX_BYTES_PER_TURN, RateLimiter::burst_bytes)
            .min(MAX_BYTES_PER_TURN);
        let [to_target, to_client] = options.transfers().map(|transfer| Stream {
            transfer,
            is_open: true,
            max_bytes_per_turn,
            limiter: bytes_per_second.map(|rate| Box::new(RateLimiter::new(rate, now))),
        });
        Self {
            to_target,
            to_client,
            counted: RelayedBytes::default(),
            error: None,
            queued: 0,
        }
    }

    /// Returns the bytes that have been relayed.
    pub(super) fn bytes(&self) -> RelayedBytes {
        self.counted
    }

    /// Moves what can be moved. A stream whose receiver has failed ends with the error, but the
    /// other one goes on: a server that refuses a request may close before it has read all of it,
    /// and its response is still to be delivered.
    pub(super) fn advance(
        &mut self,
        client: &mut Side,
        target: &mut Side,
        state: &ConnectionState,
        stats: &WorkerStats,
        now: Instant,
    ) -> ControlFlow<End, Turn> {
        let mut turn = Turn::Wait(None);
        let mut has_moved = false;
        let mut must_fail = false;
        for direction in Direction::ALL {
            let advanced = match direction {
                Direction::ToTarget => self.to_target.advance(client, target, now),
                Direction::ToClient => self.to_client.advance(target, client, now),
            };
            has_moved |= advanced.moved > 0 || advanced.result.is_err();
            match advanced.result {
                Ok(next) => turn = turn.sooner(next),
                Err(error) => {
                    let failure = RelayFailure { direction, error };
                    let receiver = match direction {
                        Direction::ToTarget => Peer::Target,
                        Direction::ToClient => Peer::Client,
                    };
                    must_fail |= failure.peer() != Some(receiver);
                    self.error.get_or_insert(failure);
                }
            }
        }
        self.count(has_moved, state, stats);
        if state.take_look() {
            self.look(client, target, state);
        }
        if !must_fail && (self.to_target.is_open || self.to_client.is_open) {
            return ControlFlow::Continue(turn);
        }
        ControlFlow::Break(match self.error.take() {
            Some(failure) => End::Failed(failure),
            None => End::Finished,
        })
    }

    /// Adds what has moved since the last call to the counters of the worker, and records progress.
    fn count(&mut self, has_moved: bool, state: &ConnectionState, stats: &WorkerStats) {
        let phase = match self.to_target.is_open && self.to_client.is_open {
            true => Phase::Relaying,
            false => Phase::HalfClosed,
        };
        if has_moved {
            let (to_target, to_client) = (&self.to_target.transfer, &self.to_client.transfer);
            let bytes = RelayedBytes::of(to_target.report(), to_client.report());
            stats.count_bytes(&bytes, &self.counted);
            self.counted = bytes;
        }
        if has_moved || phase != state.phase() {
            state.enter(phase);
        }
    }

    /// Records progress if the peers have read bytes since the last look.
    fn look(&mut self, client: &Side, target: &Side, state: &ConnectionState) {
        let queued = [client, target]
            .into_iter()
            .map(|side| uncopied::queued_bytes(&side.socket).unwrap_or(0))
            .sum();
        if queued < self.queued {
            state.enter(state.phase());
        }
        if queued == 0 {
            state.note_quiet();
        }
        self.queued = queued;
    }
}

/// What a stream has done in a turn. An error may have moved bytes that `moved` does not count.
struct Advanced {
    moved: u64,
    result: Result<Turn, Error>,
}

impl Stream {
    /// Moves bytes until there are none, the sink is full, or other connections are to have their
    /// turn. As long as the sink is full, nothing is taken from the source.
    fn advance(&mut self, source: &mut Side, sink: &mut Side, now: Instant) -> Advanced {
        let mut advanced = Advanced {
            moved: 0,
            result: Ok(Turn::Wait(None)),
        };
        if !self.is_open {
            return advanced;
        }
        let pause = |limiter: &Option<Box<RateLimiter>>| {
            let limiter = limiter.as_ref();
            limiter.and_then(|limiter| limiter.paused_until(now))
        };
        if let Some(until) = pause(&self.limiter) {
            advanced.result = Ok(Turn::Wait(Some(until)));
            return advanced;
        }
        let mut steps = 0;
        while sink.is_writable && (source.is_readable || self.transfer.held_bytes() > 0) {
            match self.transfer.step(&source.socket, &sink.socket) {
                Ok(Progress::Moved(bytes)) => {
                    advanced.moved += bytes;
                    if self.transfer.last_read_was_short() {
                        source.has_read_less();
                    }
                }
                Ok(Progress::Blocked(uncopied::Side::Source)) => source.is_readable = false,
                Ok(Progress::Blocked(uncopied::Side::Sink)) => sink.is_writable = false,
                Ok(Progress::Done) => {
                    self.is_open = false;
                    if let Err(error) = self.transfer.pass_on_end(&sink.socket) {
                        advanced.result = Err(error);
                    }
                    break;
                }
                Err(error) => {
                    self.is_open = false;
                    advanced.result = Err(error);
                    break;
                }
            }
            steps += 1;
            if advanced.moved >= self.max_bytes_per_turn || steps >= MAX_STEPS_PER_TURN {
                advanced.result = Ok(Turn::Again);
                break;
            }
        }
        if let Some(limiter) = &mut self.limiter {
            limiter.record(advanced.moved, now);
            if let (Ok(Turn::Again), Some(until)) = (&advanced.result, limiter.paused_until(now)) {
                advanced.result = Ok(Turn::Wait(Some(until)));
            }
        }
        advanced
    }
}
