//! What the kernel says about CPU time and memory: `/proc/PID/stat`, `/proc/stat`,
//! `/proc/PID/smaps_rollup`.

use std::fs;
use std::time::Instant;

use rustix::time::ClockId;

use crate::error::{Context, Error};

/// The counters at one moment: those of a contender's process, of the machine, and of this thread, which
/// is the other side.
pub(crate) struct Snapshot {
    /// When they were read.
    pub(crate) at: Instant,
    received_bytes: u64,
    process_cpu: f64,
    machine_busy: f64,
    own_cpu: f64,
}

/// What went by between two [`Snapshot`]s.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// Time.
    pub(crate) seconds: f64,
    /// What this program received.
    pub(crate) received_bytes: u64,
    /// CPU time of the contender's process.
    pub(crate) process_cpu_seconds: f64,
    /// Time in which any CPU was busy, with whatever.
    pub(crate) machine_busy_seconds: f64,
    /// CPU time of this thread.
    pub(crate) own_cpu_seconds: f64,
}

impl Snapshot {
    /// Reads the counters; `pid` is the contender.
    pub(crate) fn take(pid: u32, received_bytes: u64) -> Result<Self, Error> {
        Ok(Self {
            process_cpu: process_cpu_seconds(pid)?,
            machine_busy: machine_busy_seconds()?,
            own_cpu: thread_cpu_seconds(),
            at: Instant::now(),
            received_bytes,
        })
    }

    /// What went by since an earlier one.
    pub(crate) fn since(&self, before: &Self) -> Usage {
        Usage {
            seconds: (self.at - before.at).as_secs_f64(),
            received_bytes: self.received_bytes - before.received_bytes,
            process_cpu_seconds: self.process_cpu - before.process_cpu,
            machine_busy_seconds: self.machine_busy - before.machine_busy,
            own_cpu_seconds: self.own_cpu - before.own_cpu,
        }
    }
}

/// CPU seconds of a process, all its threads included, living and ended.
///
/// The kernel counts in clock ticks, usually 10 ms.
fn process_cpu_seconds(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/stat");
    let text = read(&path)?;
    let ticks = parse_process_ticks(&text).ok_or_else(|| not_understood(&path))?;
    Ok(seconds(ticks))
}

/// CPU seconds of all CPUs together in which something ran: the kernel, interrupts and software
/// interrupts included, idle, waiting for I/O and stolen time not.
fn machine_busy_seconds() -> Result<f64, Error> {
    let path = "/proc/stat";
    let text = read(path)?;
    let ticks = parse_machine_ticks(&text).ok_or_else(|| not_understood(path))?;
    Ok(seconds(ticks))
}

/// CPU seconds of the calling thread.
fn thread_cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Resident bytes of a process, counted page by page (the figures in `status` may lag).
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = read(&path)?;
    parse_resident(&text).ok_or_else(|| not_understood(&path))
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).context(|| format!("cannot read {path}"))
}

fn not_understood(path: &str) -> Error {
    Error::Unavailable(format!("{path} is not as proc(5) describes it"))
}

fn seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// utime + stime. The command's name may hold spaces and parentheses: count from the last one.
fn parse_process_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // Field 3 (the state) comes first here; utime is field 14, stime field 15.
    let mut fields = after_name.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// user, nice, system, irq and softirq of the line that sums all CPUs.
fn parse_machine_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map_while(|field| field.parse().ok())
        .collect();
    let [user, nice, system, _idle, _iowait, irq, softirq, ..] = fields[..] else {
        return None;
    };
    Some(user + nice + system + irq + softirq)
}

fn parse_resident(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_may_hold_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 10 0 0 0 250 31 99 99 20 0 1 0 5 0 0";
        assert_eq!(parse_process_ticks(stat), Some(281));
        assert_eq!(parse_process_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn idle_waiting_and_stolen_time_are_not_busy() {
        let stat = "cpu  1 2 4 1000 2000 8 16 5000 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(parse_machine_ticks(stat), Some(31));
    }

    #[test]
    fn resident_memory_is_in_kib() {
        let rollup = "55-7f ---p 00 00:00 0 [rollup]\nRss:                1804 kB\nPss: 9 kB\n";
        assert_eq!(parse_resident(rollup), Some(1804 * 1024));
    }

    #[test]
    fn this_process_is_seen() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 100_000);
        let before = thread_cpu_seconds();
        let mut sum = 0_u64;
        while thread_cpu_seconds() < before + 0.05 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_cpu_seconds(pid).unwrap() >= 0.04);
        assert!(machine_busy_seconds().unwrap() > 0.0);
    }
}
