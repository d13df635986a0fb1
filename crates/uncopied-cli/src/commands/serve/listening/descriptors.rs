//! How many descriptors this process may open, and what they are spent on.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Descriptors for what is neither a connection nor a served file: listeners, event loops, pipes.
const RESERVED: usize = 64;
/// The most files that are kept open between requests.
const MAX_OPEN_FILES: usize = 4096;
/// The most connections unless the user asks for more.
const DEFAULT_MAX_CONNECTIONS: usize = 10_000;

/// Raises the soft limit of descriptors to the hard one and returns what holds now.
///
/// The soft limit is 1024 by default only for the sake of programs that use `select`.
pub(crate) fn raise_limit() -> usize {
    let mut limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        limit = raised;
    }
    limit.current.map_or(usize::MAX, |current| {
        usize::try_from(current).unwrap_or(usize::MAX)
    })
}

/// How the descriptors are shared out.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shares {
    /// Connections at a time.
    pub(crate) connections: usize,
    /// Files kept open between requests.
    pub(crate) open_files: usize,
}

/// Shares `limit` descriptors out: a quarter to files, the rest to connections.
///
/// `wanted` is the number of connections that the user asks for; if it does not fit, the error is
/// the number of descriptors that it takes.
pub(crate) fn share(limit: usize, wanted: Option<usize>) -> Result<Shares, usize> {
    let free = limit.saturating_sub(RESERVED);
    let open_files = match wanted {
        None => free / 4,
        Some(wanted) => free.saturating_sub(wanted).min(free / 4),
    };
    let open_files = open_files.clamp(16, MAX_OPEN_FILES);
    let room = free.saturating_sub(open_files);
    let connections = wanted.unwrap_or(room.clamp(16, DEFAULT_MAX_CONNECTIONS));
    if wanted.is_some() && connections > room {
        return Err(connections.saturating_add(RESERVED + 16));
    }
    Ok(Shares {
        connections,
        open_files,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_shared_between_files_and_connections() {
        let shares = |connections, open_files| {
            Ok(Shares {
                connections,
                open_files,
            })
        };
        assert_eq!(share(1024, None), shares(720, 240));
        assert_eq!(share(1 << 20, None), shares(10_000, 4096));
        assert_eq!(share(usize::MAX, Some(500_000)), shares(500_000, 4096));
        assert_eq!(share(1024, Some(900)), shares(900, 60));
        assert_eq!(share(1024, Some(944)), shares(944, 16));
        assert_eq!(share(1024, Some(945)), Err(1025));
        assert_eq!(share(0, None), shares(16, 16));
    }
}
