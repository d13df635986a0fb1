//! The resources that a process holds, read from /proc.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// The resources that a process holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ProcessResources {
    pub(crate) descriptors: usize,
    pub(crate) pipes: usize,
    pub(crate) sockets: usize,
    /// The number of mappings of files below the path given to [`ProcessResources::of`].
    pub(crate) mappings: usize,
    pub(crate) threads: usize,
}

impl ProcessResources {
    pub(crate) fn of(process: u32, site: &Path) -> Self {
        let links: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            // Ignore errors, because the process may close a descriptor after the directory has
            // been read.
            .filter_map(|entry| fs::read_link(entry.unwrap().path()).ok())
            .map(|link| link.display().to_string())
            .collect();
        let count = |kind: &str| links.iter().filter(|link| link.starts_with(kind)).count();
        let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
        let site = site.display().to_string();
        Self {
            descriptors: links.len(),
            pipes: count("pipe:"),
            sockets: count("socket:"),
            mappings: maps.lines().filter(|line| line.contains(&site)).count(),
            threads: fs::read_dir(format!("/proc/{process}/task"))
                .unwrap()
                .count(),
        }
    }

    /// Whether no count exceeds that of `other`.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.descriptors <= other.descriptors
            && self.pipes <= other.pipes
            && self.sockets <= other.sockets
            && self.mappings <= other.mappings
            && self.threads <= other.threads
    }

    /// Waits until a process holds no more than `limit`, or until the timeout. Returns the
    /// resources that the process holds at the end.
    pub(crate) fn wait_until_within(
        process: u32,
        site: &Path,
        limit: &Self,
        timeout: Duration,
    ) -> Self {
        let began = Instant::now();
        loop {
            let now = Self::of(process, site);
            if now.is_within(limit) || began.elapsed() > timeout {
                return now;
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// Returns the size of a process's resident memory that is not backed by a file, in bytes.
pub(crate) fn anonymous_memory(process: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon:"));
    let kib: u64 = line
        .and_then(|line| line.split_whitespace().nth(1))
        .unwrap()
        .parse()
        .unwrap();
    kib << 10
}

/// Raises the limit on the descriptors of this process, and of the programs that it starts, as far
/// as possible, and returns it.
pub(crate) fn raise_descriptor_limit() -> usize {
    const WANTED: u64 = 1 << 16;
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.map(|maximum| maximum.max(WANTED));
    // Only root may raise the hard limit. If several tests do this at once, all want the same.
    let raised = Rlimit {
        current: maximum,
        maximum,
    };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        return maximum.map_or(usize::MAX, |maximum| maximum as usize);
    }
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, ..limit }).unwrap();
    current.map_or(usize::MAX, |current| current as usize)
}
