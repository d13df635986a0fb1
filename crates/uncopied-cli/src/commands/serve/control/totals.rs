//! The line of totals that is printed at exit and on SIGUSR1.

use std::fmt;

use uncopied::Mechanism;

use crate::commands::serve::worker::Worker;
use crate::server::access_log::AccessLog;
use crate::server::totals::{plural, write_bytes, write_dropped_lines};

/// The number of requests, and of bytes sent with each mechanism, since the server started. The
/// bytes include response heads.
#[derive(Debug)]
pub(crate) struct TotalsLine {
    requests: u64,
    bytes_by_mechanism: [(Mechanism, u64); Mechanism::FILE_TO_SOCKET.len()],
    dropped_log_lines: u64,
}

impl TotalsLine {
    /// Adds up the counters of the workers.
    pub(crate) fn of(workers: &[Worker], log: Option<&AccessLog>) -> Self {
        let total = |mechanism| {
            workers
                .iter()
                .map(|worker| worker.stats.totals.bytes(mechanism))
                .sum()
        };
        Self {
            requests: workers.iter().map(|worker| worker.stats.requests()).sum(),
            bytes_by_mechanism: Mechanism::FILE_TO_SOCKET
                .map(|mechanism| (mechanism, total(mechanism))),
            dropped_log_lines: log.map_or(0, AccessLog::dropped_lines),
        }
    }
}

impl fmt::Display for TotalsLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum: u64 = self.bytes_by_mechanism.iter().map(|(_, bytes)| bytes).sum();
        let requests = self.requests;
        write!(
            f,
            "{requests} request{}, {sum} byte{} sent",
            plural(requests),
            plural(sum)
        )?;
        write_bytes(f, self.bytes_by_mechanism)?;
        write_dropped_lines(f, self.dropped_log_lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_has_the_documented_format() {
        let mut bytes = [3_145_728, 0, 0, 883].into_iter();
        let bytes_by_mechanism = Mechanism::FILE_TO_SOCKET
            .map(|mechanism| (mechanism, bytes.next().unwrap_or_default()));
        let mut totals = TotalsLine {
            requests: 3,
            bytes_by_mechanism,
            dropped_log_lines: 0,
        };
        let line =
            "3 requests, 3146611 bytes sent: sendfile 3145728, splice 0, mmap_write 0, copy 883";
        assert_eq!(totals.to_string(), line);
        totals.requests = 1;
        assert_eq!(
            totals.to_string(),
            line.replacen("3 requests", "1 request", 1)
        );
        totals.requests = 3;
        totals.dropped_log_lines = 7;
        assert_eq!(
            totals.to_string(),
            format!("{line}; 7 access log lines dropped")
        );
    }
}
