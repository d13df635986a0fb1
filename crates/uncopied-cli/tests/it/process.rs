//! What a process holds, by /proc.

use std::fs;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// What a process holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) descriptors: usize,
    pub(crate) pipes: usize,
    pub(crate) sockets: usize,
    /// Mappings of files beneath the path that was asked about.
    pub(crate) mappings: usize,
    pub(crate) threads: usize,
}

impl Held {
    pub(crate) fn by(process: u32, site: &Path) -> Self {
        let links: Vec<_> = fs::read_dir(format!("/proc/{process}/fd"))
            .unwrap()
            // A descriptor may be closed between the two calls.
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

    /// Whether nothing has become more.
    pub(crate) fn is_within(&self, other: &Self) -> bool {
        self.descriptors <= other.descriptors
            && self.pipes <= other.pipes
            && self.sockets <= other.sockets
            && self.mappings <= other.mappings
            && self.threads <= other.threads
    }

    /// Waits until a process holds no more than `limit`, and returns what it holds then, or at last.
    pub(crate) fn settle(process: u32, site: &Path, limit: &Self, patience: Duration) -> Self {
        let began = Instant::now();
        loop {
            let now = Self::by(process, site);
            if now.is_within(limit) || began.elapsed() > patience {
                return now;
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// The memory of a process that no file stands behind, in bytes.
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
