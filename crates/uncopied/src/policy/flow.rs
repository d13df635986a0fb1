//! Whether a stream between two sockets carries bulk data or small messages.

use super::{Tuning, reaches};

/// What the latest reads of a stream say about it.
///
/// For a small message, `recv` and `send` are cheaper than two calls of `splice`, which have a
/// fixed cost of their own: relaying messages of one byte takes 1.3 times as much CPU time with
/// `splice`. For bulk data, `splice` takes 0.4 of the CPU time. So a stream begins with `copy`, and
/// changes to the plan's mechanism once its reads show that enough bytes were waiting. It changes
/// back after several short reads in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flow {
    state: State,
    /// From how many bytes on a read counts as bulk data: [`Tuning::relay_splice_min_bytes`].
    bulk_min_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Small messages.
    Messages {
        /// The bytes of the latest reads in a row that have filled the buffer. After such a read,
        /// more bytes may have been waiting, so it counts together with the next one.
        full_reads_bytes: u64,
    },
    /// Bulk data.
    Bulk {
        /// How many of the latest reads were short.
        short_reads: u8,
    },
    /// What the program says is to be treated as bulk data, whatever the reads say.
    AlwaysBulk,
}

/// The number of short reads in a row after which a stream no longer counts as bulk data. More than
/// one, because a read of bulk data is short whenever the relay is faster than the sender.
const MAX_SHORT_READS: u8 = 8;

/// A read of this many bytes is never short. A pipe holds a limited number of packets, so a read
/// into it may end there although more bytes are waiting.
const LONG_READ_BYTES: u64 = 64 << 10;

impl Flow {
    /// Returns what is known of a stream that has not been read from, which is nothing.
    pub(crate) fn new(tuning: &Tuning) -> Self {
        Self {
            state: State::Messages {
                full_reads_bytes: 0,
            },
            bulk_min_bytes: tuning.relay_splice_min_bytes,
        }
    }

    /// Makes the stream count as bulk data from now on, whatever its reads say.
    pub(crate) fn set_always_bulk(&mut self) {
        self.state = State::AlwaysBulk;
    }

    /// Whether the plan's mechanism is to be used. Otherwise, `copy` is cheaper.
    pub(crate) fn is_bulk(self) -> bool {
        !matches!(self.state, State::Messages { .. })
    }

    /// Records a read of the plan's mechanism.
    pub(crate) fn record_bulk_read(&mut self, bytes: usize) {
        let long_read_bytes = self.bulk_min_bytes.min(LONG_READ_BYTES);
        if let State::Bulk { short_reads } = &mut self.state {
            *short_reads = match (bytes as u64) < long_read_bytes {
                true => *short_reads + 1,
                false => 0,
            };
            if *short_reads >= MAX_SHORT_READS {
                *self = Self {
                    state: State::Messages {
                        full_reads_bytes: 0,
                    },
                    ..*self
                };
            }
        }
    }

    /// Records a read with `copy`. `is_full` says whether it has filled the buffer.
    pub(crate) fn record_copied_read(&mut self, bytes: usize, is_full: bool) {
        let earlier_bytes = match self.state {
            State::Messages { full_reads_bytes } => full_reads_bytes,
            State::Bulk { .. } => 0,
            State::AlwaysBulk => return,
        };
        let bytes = earlier_bytes.saturating_add(bytes as u64);
        if reaches(bytes, self.bulk_min_bytes) {
            self.state = State::Bulk { short_reads: 0 };
        } else if let State::Messages { full_reads_bytes } = &mut self.state {
            *full_reads_bytes = if is_full { bytes } else { 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: usize = 1 << 10;

    fn flow(relay_splice_min_bytes: u64) -> Flow {
        Flow::new(&Tuning {
            relay_splice_min_bytes,
            ..Tuning::default()
        })
    }

    #[test]
    fn a_long_read_makes_a_flow_bulk_until_many_reads_are_short() {
        let mut flow = flow(16 << 10);
        assert!(!flow.is_bulk(), "the first message may be small");
        flow.record_copied_read(16 * KIB - 1, false);
        assert!(!flow.is_bulk());
        flow.record_copied_read(16 * KIB, true);
        for _ in 1..MAX_SHORT_READS {
            flow.record_bulk_read(1);
            assert!(flow.is_bulk());
        }
        flow.record_bulk_read(16 * KIB);
        for _ in 1..MAX_SHORT_READS {
            flow.record_bulk_read(16 * KIB - 1);
            assert!(flow.is_bulk(), "a long read starts the count again");
        }
        flow.record_bulk_read(1);
        assert!(!flow.is_bulk());
        flow.record_copied_read(1, false);
        assert!(!flow.is_bulk());
    }

    #[test]
    fn a_threshold_above_the_buffer_needs_several_full_reads_in_a_row() {
        let mut flow = flow(1 << 20);
        for _ in 0..63 {
            flow.record_copied_read(16 * KIB, true);
            assert!(!flow.is_bulk());
        }
        flow.record_copied_read(5, false);
        for _ in 0..63 {
            flow.record_copied_read(16 * KIB, true);
            assert!(!flow.is_bulk(), "a short read starts the count again");
        }
        flow.record_copied_read(16 * KIB, true);
        assert!(flow.is_bulk());
        for _ in 0..=MAX_SHORT_READS {
            flow.record_bulk_read(64 * KIB);
            assert!(flow.is_bulk(), "a pipe may hold no more");
        }
    }

    #[test]
    fn a_threshold_below_the_buffer_needs_no_full_read() {
        let mut flow = flow(1000);
        flow.record_copied_read(999, false);
        assert!(!flow.is_bulk());
        flow.record_copied_read(1000, false);
        assert!(flow.is_bulk());
    }

    #[test]
    fn a_flow_that_splice_never_pays_for_is_never_bulk() {
        let mut flow = flow(Tuning::NEVER);
        for _ in 0..1000 {
            flow.record_copied_read(16 * KIB, true);
            assert!(!flow.is_bulk());
        }
    }

    #[test]
    fn a_flow_that_is_always_bulk_stays_so() {
        let mut flow = flow(Tuning::NEVER);
        flow.set_always_bulk();
        flow.record_copied_read(1, false);
        for _ in 0..=MAX_SHORT_READS {
            flow.record_bulk_read(1);
        }
        assert!(flow.is_bulk());
    }
}
