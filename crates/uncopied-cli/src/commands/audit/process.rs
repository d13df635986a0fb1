//! Processes, their threads, descendants and CPU time, read from `/proc` (see `proc(5)`).

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// CPU time, as the kernel accounts for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct CpuTime {
    pub(super) user: Duration,
    pub(super) system: Duration,
}

impl CpuTime {
    pub(super) fn total(self) -> Duration {
        self.user + self.system
    }

    /// Returns the time since an earlier reading.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            user: self.user.saturating_sub(earlier.user),
            system: self.system.saturating_sub(earlier.system),
        }
    }

    /// Returns the larger of two readings, of which one may miss processes that have ended.
    pub(super) fn max(self, other: Self) -> Self {
        if self.total() > other.total() {
            self
        } else {
            other
        }
    }
}

/// What `/proc/PID/stat` says about a process.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    /// In clock ticks, with those of the children that the process has waited for.
    user_ticks: u64,
    system_ticks: u64,
}

impl Stat {
    fn read(process: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{process}/stat")).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        // The name is in parentheses, and may contain anything, even parentheses.
        let fields: Vec<&str> = text.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // The first of these fields is the third of the file.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        Some(Self {
            parent: fields.get(1)?.parse().ok()?,
            user_ticks: field(14)? + field(16)?,
            system_ticks: field(15)? + field(17)?,
        })
    }
}

/// Returns a process and its descendants that exist now, or nothing if it does not exist.
pub(super) fn tree(root: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    for process in numbers_in(Path::new("/proc")) {
        if let Some(stat) = Stat::read(process) {
            children.entry(stat.parent).or_default().push(process);
        }
    }
    let mut tree = Vec::new();
    if Path::new(&format!("/proc/{root}")).exists() {
        tree.push(root);
    }
    let mut at = 0;
    while let Some(process) = tree.get(at).copied() {
        tree.extend(children.remove(&process).unwrap_or_default());
        at += 1;
    }
    tree
}

/// Returns the threads of a process.
pub(super) fn threads(process: i32) -> Vec<i32> {
    numbers_in(Path::new(&format!("/proc/{process}/task")))
}

/// Whether the process exists, and has not become a zombie.
pub(super) fn is_running(process: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(')')
        .and_then(|(_, rest)| rest.trim().chars().next());
    state.is_some_and(|state| !matches!(state, 'Z' | 'X'))
}

/// Returns the name of a thread or of a process, as in `/proc/PID/comm`.
pub(super) fn name(id: i32) -> Option<String> {
    let name = fs::read_to_string(format!("/proc/{id}/comm")).ok()?;
    Some(name.trim_end_matches('\n').to_owned())
}

/// Returns the CPU time of processes, with that of the children that they have waited for.
pub(super) fn cpu_time(processes: &[i32]) -> CpuTime {
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    let stats: Vec<_> = processes.iter().filter_map(|id| Stat::read(*id)).collect();
    CpuTime {
        user: time(stats.iter().map(|stat| stat.user_ticks).sum()),
        system: time(stats.iter().map(|stat| stat.system_ticks).sum()),
    }
}

/// Returns the entries of a directory whose names are numbers, in order.
fn numbers_in(directory: &Path) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    let mut numbers: Vec<i32> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    numbers.sort_unstable();
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let text = "42 (a) b (c) S 7 42 42 0 -1 4194560 100 0 0 0 11 22 33 44 20 0 1 0 5 6 7";
        assert_eq!(
            Stat::parse(text),
            Some(Stat {
                parent: 7,
                user_ticks: 44,
                system_ticks: 66,
            })
        );
        assert_eq!(Stat::parse("42 (cut) S 7"), None);
        assert_eq!(Stat::parse(""), None);
    }

    #[test]
    fn this_process_is_in_its_own_tree() {
        let this = rustix::process::getpid().as_raw_nonzero().get();
        assert_eq!(tree(this).first(), Some(&this));
        assert!(threads(this).contains(&this));
        assert!(is_running(this));
        assert!(tree(i32::MAX).is_empty());
    }
}
