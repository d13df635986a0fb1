//! The line of totals.

use std::fmt;

use uncopied::Mechanism;

use crate::commands::serve::access_log::AccessLog;
use crate::commands::serve::worker::ServingThread;

/// Requests, and bytes by mechanism, since the start. Bytes include the heads of the answers.
#[derive(Debug)]
pub(crate) struct Report {
    requests: u64,
    bytes: [(Mechanism, u64); Mechanism::FILE_TO_SOCKET.len()],
    dropped_lines: u64,
}

impl Report {
    /// Adds up what the threads have counted.
    pub(crate) fn of(threads: &[ServingThread], log: Option<&AccessLog>) -> Self {
        let total = |mechanism| {
            threads
                .iter()
                .map(|thread| thread.shared.totals.bytes(mechanism))
                .sum()
        };
        Self {
            requests: threads.iter().map(|thread| thread.shared.requests()).sum(),
            bytes: Mechanism::FILE_TO_SOCKET.map(|mechanism| (mechanism, total(mechanism))),
            dropped_lines: log.map_or(0, AccessLog::dropped),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sum: u64 = self.bytes.iter().map(|(_, bytes)| bytes).sum();
        write!(f, "{} requests, {sum} bytes sent:", self.requests)?;
        for (index, (mechanism, bytes)) in self.bytes.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma} {mechanism} {bytes}")?;
        }
        match self.dropped_lines {
            0 => Ok(()),
            lines => write!(f, "; {lines} access log lines dropped"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_as_documented() {
        let amounts = [3_145_728, 0, 0, 883];
        let mut amounts = amounts.into_iter();
        let bytes = Mechanism::FILE_TO_SOCKET.map(|m| (m, amounts.next().unwrap_or_default()));
        let mut report = Report {
            requests: 3,
            bytes,
            dropped_lines: 0,
        };
        let line =
            "3 requests, 3146611 bytes sent: sendfile 3145728, splice 0, mmap_write 0, copy 883";
        assert_eq!(report.to_string(), line);
        report.dropped_lines = 7;
        assert_eq!(
            report.to_string(),
            format!("{line}; 7 access log lines dropped")
        );
    }
}
