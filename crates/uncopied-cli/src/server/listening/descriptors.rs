//! Divides the file descriptors between connections and files.

use std::fmt;

/// The number of descriptors reserved for listeners, event loops and pipes.
const RESERVED_DESCRIPTORS: usize = 64;
/// The maximum number of files kept open between requests.
const MAX_OPEN_FILES: usize = 4096;
/// The maximum number of connections, unless the user sets `--max-connections`.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// The result of dividing the descriptors between connections and files.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct DescriptorBudget {
    /// The maximum number of concurrent connections.
    pub(crate) connections: usize,
    /// The maximum number of files kept open between requests.
    pub(crate) open_files: usize,
}

impl DescriptorBudget {
    /// Divides `limit` descriptors, less [`RESERVED_DESCRIPTORS`]: up to a quarter for files, and
    /// the rest for connections. Files and connections get at least 16 each.
    ///
    /// `requested` is the number of connections that the user asks for. Files get fewer descriptors
    /// than a quarter if these connections need them.
    ///
    /// # Errors
    ///
    /// The requested connections do not fit into `limit`. The error value is the smallest limit
    /// that is enough for them.
    pub(crate) fn divide(limit: usize, requested: Option<usize>) -> Result<Self, usize> {
        let free = limit.saturating_sub(RESERVED_DESCRIPTORS);
        let open_files = match requested {
            None => free / 4,
            Some(requested) => free.saturating_sub(requested).min(free / 4),
        };
        let open_files = open_files.clamp(16, MAX_OPEN_FILES);
        let left = free.saturating_sub(open_files);
        let connections = requested.unwrap_or(left.clamp(16, DEFAULT_MAX_CONNECTIONS));
        if requested.is_some() && connections > left {
            return Err(connections.saturating_add(RESERVED_DESCRIPTORS + 16));
        }
        Ok(Self {
            connections,
            open_files,
        })
    }
}

/// Says that the descriptor limit allows fewer connections than the default, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LoweredLimit {
    /// The number of connections that the limit allows.
    pub(crate) connections: usize,
    /// The number of connections without the limit.
    pub(crate) default_connections: usize,
    /// The descriptor limit.
    pub(crate) limit: usize,
    /// The descriptor limit that allows the default number of connections.
    pub(crate) default_limit: usize,
}

impl LoweredLimit {
    /// Returns `None` if the budget allows the default number of connections.
    pub(crate) fn of(budget: &DescriptorBudget, limit: usize) -> Option<Self> {
        let connections = budget.connections;
        (connections < DEFAULT_MAX_CONNECTIONS).then_some(Self {
            connections,
            default_connections: DEFAULT_MAX_CONNECTIONS,
            limit,
            default_limit: DEFAULT_LIMIT,
        })
    }
}

impl fmt::Display for LoweredLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            connections,
            default_connections,
            limit,
            default_limit,
        } = self;
        write!(
            f,
            "at most {connections} connections at a time instead of {default_connections}, because \
             the descriptor limit is {limit}; raise it (ulimit -n, LimitNOFILE=) to \
             {default_limit}, or set --max-connections"
        )
    }
}

/// The smallest descriptor limit that allows [`DEFAULT_MAX_CONNECTIONS`], with the files that are
/// kept open next to them.
const DEFAULT_LIMIT: usize = RESERVED_DESCRIPTORS + DEFAULT_MAX_CONNECTIONS.div_ceil(3) * 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_lowered_below_the_number_that_the_message_names() {
        for (limit, is_lowered) in [
            (64, true),
            (DEFAULT_LIMIT - 4, true),
            (DEFAULT_LIMIT, false),
        ] {
            let budget = DescriptorBudget::divide(limit, None);
            let lowered = budget
                .ok()
                .and_then(|budget| LoweredLimit::of(&budget, limit));
            assert_eq!(lowered.is_some(), is_lowered, "{limit}");
        }
    }

    #[test]
    fn descriptors_are_divided_between_files_and_connections() {
        let budget = |connections, open_files| {
            Ok(DescriptorBudget {
                connections,
                open_files,
            })
        };
        assert_eq!(DescriptorBudget::divide(1024, None), budget(720, 240));
        assert_eq!(
            DescriptorBudget::divide(1 << 20, None),
            budget(10_000, 4096)
        );
        assert_eq!(
            DescriptorBudget::divide(usize::MAX, Some(500_000)),
            budget(500_000, 4096)
        );
        assert_eq!(DescriptorBudget::divide(1024, Some(900)), budget(900, 60));
        assert_eq!(DescriptorBudget::divide(1024, Some(944)), budget(944, 16));
        assert_eq!(DescriptorBudget::divide(1024, Some(945)), Err(1025));
        assert_eq!(DescriptorBudget::divide(0, None), budget(16, 16));
    }
}
