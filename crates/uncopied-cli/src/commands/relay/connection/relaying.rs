//! Relays both streams of a connection until they have ended, and keeps account of the bytes.

use std::task::{Context, Poll};

use uncopied::Mechanism;
use uncopied::relay::{RelayEnd, RelayError, RelayOptions};
use uncopied::tokio::Relay;

use crate::commands::relay::stats::{Direction, RelayedBytes, WorkerStats};

use super::end::End;
use super::rate::RateLimiter;
use super::socket::{Socket, poll_relay};
use super::state::{ConnectionState, Phase};

/// Below this rate, every byte is copied: a pipe would be filled at once, which at this rate takes
/// longer than a burst.
const MIN_SPLICE_BYTES_PER_SECOND: u64 = 4 << 20;

/// The two streams of a connection.
pub(super) struct Relaying {
    relay: Relay,
    to_target: StreamState,
    to_client: StreamState,
    /// The bytes that have been counted so far.
    counted: RelayedBytes,
    /// The first error, while the other stream may still have bytes to deliver.
    error: Option<RelayError>,
    /// The bytes in the queues of both sockets at the last look.
    queued: u64,
}

struct StreamState {
    is_open: bool,
    limiter: Option<Box<RateLimiter>>,
}

impl Relaying {
    /// Prepares to relay. `prefix` is sent to the target first.
    pub(super) fn new(
        mechanism: Option<Mechanism>,
        bytes_per_second: Option<u64>,
        prefix: Vec<u8>,
    ) -> Self {
        let mut options = RelayOptions::new().prefix_to_b(prefix);
        if let Some(mechanism) = mechanism {
            options = options.force_mechanisms(&[mechanism]);
        }
        if let Some(rate) = bytes_per_second {
            options = options.max_bytes_per_poll(RateLimiter::burst_bytes(rate));
            if rate < MIN_SPLICE_BYTES_PER_SECOND {
                options = options.force_mechanisms(&[Mechanism::Copy]);
            }
        }
        let [to_target, to_client] = [(); 2].map(|()| StreamState {
            is_open: true,
            limiter: bytes_per_second.map(|rate| Box::new(RateLimiter::new(rate))),
        });
        Self {
            relay: Relay::new(&options),
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

    /// Moves bytes until both streams have ended. A stream whose receiver has failed ends with the
    /// error, but the other one goes on: a server that refuses a request may close before it has
    /// read all of it, and its response is still to be delivered.
    pub(super) fn poll(
        &mut self,
        context: &mut Context<'_>,
        client: &Socket,
        target: &Socket,
        state: &ConnectionState,
        stats: &WorkerStats,
    ) -> Poll<End> {
        let mut failed = false;
        for direction in Direction::ALL {
            failed |= self.poll_stream(context, direction, client, target);
        }
        self.count(state, stats);
        if state.take_look() {
            self.look(client, target, state);
        }
        if !failed && (self.to_target.is_open || self.to_client.is_open) {
            return Poll::Pending;
        }
        Poll::Ready(match self.error.take() {
            Some(error) => End::Failed(error),
            None => End::Finished,
        })
    }

    /// Moves bytes of one stream. Returns whether the connection has failed.
    fn poll_stream(
        &mut self,
        context: &mut Context<'_>,
        direction: Direction,
        client: &Socket,
        target: &Socket,
    ) -> bool {
        let (state, receiver) = match direction {
            Direction::ToTarget => (&mut self.to_target, RelayEnd::B),
            Direction::ToClient => (&mut self.to_client, RelayEnd::A),
        };
        if !state.is_open {
            return false;
        }
        if let Some(limiter) = &mut state.limiter
            && limiter.poll_ready(context).is_pending()
        {
            return false;
        }
        let polled = poll_relay(&mut self.relay, context, direction, client, target);
        if let Some(limiter) = &mut state.limiter {
            limiter.record(match direction {
                Direction::ToTarget => self.relay.a_to_b().report().bytes(),
                Direction::ToClient => self.relay.b_to_a().report().bytes(),
            });
        }
        match polled {
            Poll::Pending => false,
            Poll::Ready(Ok(())) => {
                state.is_open = false;
                false
            }
            Poll::Ready(Err(error)) => {
                state.is_open = false;
                let has_sender_failed = error.failed_end() != Some(receiver);
                self.error.get_or_insert(error);
                has_sender_failed
            }
        }
    }

    /// Adds what has moved since the last call to the counters of the worker, and records progress.
    fn count(&mut self, state: &ConnectionState, stats: &WorkerStats) {
        let (to_target, to_client) = (self.relay.a_to_b(), self.relay.b_to_a());
        let bytes = RelayedBytes::of(to_target.report(), to_client.report());
        let phase = match self.to_target.is_open && self.to_client.is_open {
            true => Phase::Relaying,
            false => Phase::HalfClosed,
        };
        if bytes != self.counted {
            stats.count_bytes(&bytes, &self.counted);
            self.counted = bytes;
            state.enter(phase);
        } else if phase != state.phase() {
            state.enter(phase);
        }
    }

    /// Records progress if the peers have read bytes since the last look.
    fn look(&mut self, client: &Socket, target: &Socket, state: &ConnectionState) {
        let queued = [client, target]
            .into_iter()
            .map(|socket| uncopied::queued_bytes(socket).unwrap_or(0))
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
