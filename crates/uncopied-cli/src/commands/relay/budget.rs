//! Divides the file descriptors between connections and pipes.

use crate::server::listening::LoweredLimit;

/// The number of descriptors reserved for listeners, event loops, logs, checks of targets, and the
/// idle pipes of workers.
const RESERVED_DESCRIPTORS: usize = 128;
/// The maximum number of pipes in use, which is the default of the library.
const MAX_PIPES: usize = 192;
/// The maximum number of connections, unless the user sets `--max-connections`.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;
/// A pipe takes two descriptors, and so does a connection: one for each side.
const DESCRIPTORS_EACH: usize = 2;
/// The smallest descriptor limit that allows [`DEFAULT_MAX_CONNECTIONS`].
const DEFAULT_LIMIT: usize =
    RESERVED_DESCRIPTORS + DESCRIPTORS_EACH * (DEFAULT_MAX_CONNECTIONS + MAX_PIPES);

/// How many connections and pipes there may be at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct RelayBudget {
    pub(super) connections: usize,
    pub(super) pipes: usize,
    /// Set if the descriptor limit allows fewer connections than the default.
    pub(super) lowered: Option<LoweredLimit>,
}

impl RelayBudget {
    /// Divides `limit` descriptors: up to an eighth for pipes, and the rest for connections.
    ///
    /// `requested` is the number of connections that the user asks for. Pipes get fewer descriptors
    /// than an eighth if these connections need them: without a pipe, bytes are copied.
    ///
    /// # Errors
    ///
    /// The requested connections do not fit into `limit`. The error value is the smallest limit
    /// that is enough for them.
    pub(super) fn divide(limit: usize, requested: Option<usize>) -> Result<Self, usize> {
        let free = limit.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_EACH;
        let share = (free / 8).min(MAX_PIPES);
        match requested {
            Some(connections) if connections > free => Err(connections
                .saturating_mul(DESCRIPTORS_EACH)
                .saturating_add(RESERVED_DESCRIPTORS)),
            Some(connections) => Ok(Self {
                connections,
                pipes: (free - connections).min(share),
                lowered: None,
            }),
            None => {
                let connections = (free - share).clamp(16, DEFAULT_MAX_CONNECTIONS);
                let is_lowered = connections < DEFAULT_MAX_CONNECTIONS;
                Ok(Self {
                    connections,
                    pipes: share,
                    lowered: is_lowered.then_some(LoweredLimit {
                        connections,
                        default_connections: DEFAULT_MAX_CONNECTIONS,
                        limit,
                        default_limit: DEFAULT_LIMIT,
                    }),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_divided_between_connections_and_pipes() {
        let divided = |limit, requested| {
            let budget = RelayBudget::divide(limit, requested);
            budget.map(|budget| (budget.connections, budget.pipes, budget.lowered.is_some()))
        };
        assert_eq!(divided(1024, None), Ok((392, 56, true)));
        assert_eq!(divided(DEFAULT_LIMIT, None), Ok((10_000, 192, false)));
        assert_eq!(divided(DEFAULT_LIMIT - 2, None), Ok((9_999, 192, true)));
        assert_eq!(divided(1024, Some(448)), Ok((448, 0, false)));
        assert_eq!(divided(1024, Some(449)), Err(1026));
        assert_eq!(
            divided(usize::MAX, Some(500_000)),
            Ok((500_000, 192, false))
        );
        assert_eq!(divided(0, None), Ok((16, 0, true)));
    }
}
