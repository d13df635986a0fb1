//! Whether a stream between two sockets carries bulk data or small messages.

/// What the latest reads of a stream say about it.
///
/// For a small message, `recv` and `send` are cheaper than two calls of `splice`, which have a
/// fixed cost of their own: relaying messages of one byte takes 1.3 times as much CPU time with
/// `splice`. For bulk data, `splice` takes 0.4 of the CPU time. So a stream begins with `copy`, and
/// changes to the plan's mechanism once a read fills the whole buffer, because that shows that more
/// bytes were waiting. It changes back after several short reads in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Flow {
    /// Small messages.
    Messages,
    /// Bulk data.
    Bulk {
        /// How many of the latest reads were short.
        short_reads: u8,
    },
    /// What the program says is to be treated as bulk data, whatever the reads say.
    AlwaysBulk,
}

/// A read of fewer bytes than this is cheaper with `copy`.
const BULK_MIN_BYTES: usize = 16 << 10;

/// The number of short reads in a row after which a stream no longer counts as bulk data. More than
/// one, because a read of bulk data is short whenever the relay is faster than the sender.
const MAX_SHORT_READS: u8 = 8;

impl Flow {
    /// Whether the plan's mechanism is to be used. Otherwise, `copy` is cheaper.
    pub(crate) fn is_bulk(self) -> bool {
        self != Self::Messages
    }

    /// Records a read of the plan's mechanism.
    pub(crate) fn record_bulk_read(&mut self, bytes: usize) {
        if let Self::Bulk { short_reads } = self {
            *short_reads = match bytes < BULK_MIN_BYTES {
                true => *short_reads + 1,
                false => 0,
            };
            if *short_reads >= MAX_SHORT_READS {
                *self = Self::Messages;
            }
        }
    }

    /// Records a read with `copy`. `is_full` says whether it has filled the buffer.
    pub(crate) fn record_copied_read(&mut self, is_full: bool) {
        if is_full && *self != Self::AlwaysBulk {
            *self = Self::Bulk { short_reads: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_read_makes_a_flow_bulk_until_many_reads_are_short() {
        let mut flow = Flow::Messages;
        assert!(!flow.is_bulk(), "the first message may be small");
        flow.record_copied_read(false);
        assert!(!flow.is_bulk());
        flow.record_copied_read(true);
        for _ in 1..MAX_SHORT_READS {
            flow.record_bulk_read(1);
            assert!(flow.is_bulk());
        }
        flow.record_bulk_read(BULK_MIN_BYTES);
        for _ in 1..MAX_SHORT_READS {
            flow.record_bulk_read(BULK_MIN_BYTES - 1);
            assert!(flow.is_bulk(), "a long read starts the count again");
        }
        flow.record_bulk_read(1);
        assert!(!flow.is_bulk());
    }

    #[test]
    fn a_flow_that_is_always_bulk_stays_so() {
        let mut flow = Flow::AlwaysBulk;
        flow.record_copied_read(true);
        for _ in 0..=MAX_SHORT_READS {
            flow.record_bulk_read(1);
        }
        assert!(flow.is_bulk());
    }
}
