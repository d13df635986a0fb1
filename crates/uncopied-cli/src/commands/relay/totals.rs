//! The line of totals that is printed at exit and on SIGUSR1.

use std::fmt;

use super::stats::{Direction, Totals};
use crate::server::totals::{plural, write_bytes, write_dropped_lines};

/// The number of connections, and of bytes that were relayed in each direction with each mechanism,
/// since the relay started.
#[derive(Debug)]
pub(super) struct TotalsLine {
    pub(super) totals: Totals,
    pub(super) dropped_log_lines: u64,
}

impl fmt::Display for TotalsLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Totals {
            accepted, bytes, ..
        } = &self.totals;
        write!(f, "{accepted} connection{}", plural(*accepted))?;
        for direction in Direction::ALL {
            let sum = bytes.total(direction);
            let peers = match direction {
                Direction::ToTarget => "targets",
                Direction::ToClient => "clients",
            };
            write!(f, "; {sum} byte{} to {peers}", plural(sum))?;
            write_bytes(f, bytes.by_mechanism(direction))?;
        }
        write_dropped_lines(f, self.dropped_log_lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::relay::stats::{RelayedBytes, WorkerStats};

    #[test]
    fn the_line_has_the_documented_format() {
        let stats = WorkerStats::default();
        let mut line = TotalsLine {
            totals: Totals::of([&stats]),
            dropped_log_lines: 0,
        };
        assert_eq!(
            line.to_string(),
            "0 connections; 0 bytes to targets: splice 0, copy 0; 0 bytes to clients: splice 0, \
             copy 0"
        );
        stats.count_accepted();
        let none = RelayedBytes::default();
        let moved = RelayedBytes::from_counts([[3_145_728, 883], [0, 1]]);
        stats.count_bytes(&moved, &none);
        stats.count_bytes(&moved, &moved);
        line.totals = Totals::of([&stats]);
        line.dropped_log_lines = 7;
        assert_eq!(
            line.to_string(),
            "1 connection; 3146611 bytes to targets: splice 3145728, copy 883; 1 byte to clients: \
             splice 0, copy 1; 7 access log lines dropped"
        );
    }
}
