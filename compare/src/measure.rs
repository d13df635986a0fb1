//! Reads CPU times and memory use from the kernel: from `/proc/PID/stat`, `/proc/PID/smaps_rollup`,
//! `/proc/stat` and the CPU clocks.

use std::fs;
use std::time::Instant;

use uncopied_measure::cpu;
pub(crate) use uncopied_measure::cpu::{
    process_seconds as own_process_cpu_seconds, thread_seconds as thread_cpu_seconds,
};

use crate::error::{Context, Error};

/// The CPU times of a contender's process, of the whole machine and of the calling thread, and the
/// number of bytes received, all read at one moment. The calling thread is the other side of the
/// contender's connections: the receiver or the load generator.
pub(crate) struct Snapshot {
    /// The time at which the values were read.
    pub(crate) at: Instant,
    received_bytes: u64,
    process_cpu: f64,
    machine_busy: f64,
    own_cpu: f64,
}

/// The difference between two [`Snapshot`]s: the time, CPU time and bytes from one to the other.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    /// The time between the two snapshots.
    pub(crate) seconds: f64,
    /// Bytes that this program received.
    pub(crate) received_bytes: u64,
    /// CPU time of the contender's process.
    pub(crate) process_cpu_seconds: f64,
    /// Busy time of all CPUs together, for all processes and the kernel.
    pub(crate) machine_busy_seconds: f64,
    /// CPU time of the calling thread.
    pub(crate) own_cpu_seconds: f64,
}

impl Snapshot {
    /// Reads the CPU times. `pid` is the contender's process, and `received_bytes` is the number of
    /// bytes that the caller has received so far.
    pub(crate) fn take(pid: u32, received_bytes: u64) -> Result<Self, Error> {
        Ok(Self {
            process_cpu: process_cpu_seconds(pid)?,
            machine_busy: machine_busy_seconds()?,
            own_cpu: thread_cpu_seconds(),
            at: Instant::now(),
            received_bytes,
        })
    }

    /// Returns what was used between the snapshot `before` and this one.
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

impl Usage {
    /// GB (10⁹ bytes) received per second.
    pub(crate) fn gb_per_second(&self) -> f64 {
        self.gigabytes() / self.seconds
    }

    /// CPU seconds of the contender's process per GB received.
    pub(crate) fn process_cpu_per_gb(&self) -> f64 {
        self.process_cpu_seconds / self.gigabytes()
    }

    /// Busy seconds of all CPUs of the machine, including this program's CPU time, per GB received.
    pub(crate) fn machine_busy_per_gb(&self) -> f64 {
        self.machine_busy_seconds / self.gigabytes()
    }

    /// CPU time of the contender's process, as a fraction of one CPU.
    pub(crate) fn process_share(&self) -> f64 {
        self.process_cpu_seconds / self.seconds
    }

    /// CPU time of the thread that took the snapshots, as a fraction of one CPU.
    pub(crate) fn own_share(&self) -> f64 {
        self.own_cpu_seconds / self.seconds
    }

    /// CPU time of everything else (other programs and kernel threads), as a fraction of one CPU.
    pub(crate) fn other_share(&self) -> f64 {
        self.other_cpu_seconds() / self.seconds
    }

    /// CPU seconds of everything else: other programs and kernel threads.
    pub(crate) fn other_cpu_seconds(&self) -> f64 {
        self.machine_busy_seconds - self.process_cpu_seconds - self.own_cpu_seconds
    }

    fn gigabytes(&self) -> f64 {
        self.received_bytes as f64 / 1e9
    }
}

/// Returns the CPU seconds of all threads of a process, including threads that have ended.
///
/// The kernel reports this time in clock ticks, usually of 10 ms.
fn process_cpu_seconds(pid: u32) -> Result<f64, Error> {
    let path = format!("/proc/{pid}/stat");
    let text = read(&path)?;
    let ticks = parse_process_ticks(&text).ok_or_else(|| unexpected_format(&path))?;
    Ok(cpu::tick_seconds(ticks))
}

/// Returns the busy seconds of all CPUs together.
pub(crate) fn machine_busy_seconds() -> Result<f64, Error> {
    cpu::machine_busy_seconds().context(|| "cannot read /proc/stat".into())
}

/// Returns the resident memory of a process in bytes. Reads `smaps_rollup`, for which the kernel
/// counts the pages on each read. The figures in `/proc/PID/status` are cheaper to read, but may be
/// out of date.
pub(crate) fn resident_bytes(pid: u32) -> Result<u64, Error> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = read(&path)?;
    parse_resident(&text).ok_or_else(|| unexpected_format(&path))
}

fn read(path: &str) -> Result<String, Error> {
    fs::read_to_string(path).context(|| format!("cannot read {path}"))
}

fn unexpected_format(path: &str) -> Error {
    Error::Unavailable(format!("{path} does not have the format of proc(5)"))
}

/// Returns utime + stime from the text of `/proc/PID/stat`, in clock ticks. Field 2, the command's
/// name in parentheses, may itself contain spaces and parentheses, so the fields are counted from
/// the last closing parenthesis.
fn parse_process_ticks(stat: &str) -> Option<u64> {
    let (_, after_name) = stat.rsplit_once(')')?;
    // The first field after the name is field 3 (the state). utime is field 14, stime is field 15.
    let mut fields = after_name.split_ascii_whitespace().skip(14 - 3);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
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
    fn a_process_name_may_contain_parentheses() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 10 0 0 0 250 31 99 99 20 0 1 0 5 0 0";
        assert_eq!(parse_process_ticks(stat), Some(281));
        assert_eq!(parse_process_ticks("7 (a) S 1"), None);
    }

    #[test]
    fn resident_memory_is_converted_from_kib() {
        let rollup = "55-7f ---p 00 00:00 0 [rollup]\nRss:                1804 kB\nPss: 9 kB\n";
        assert_eq!(parse_resident(rollup), Some(1804 * 1024));
    }

    #[test]
    fn this_process_has_memory_and_cpu_time() {
        let pid = std::process::id();
        assert!(resident_bytes(pid).unwrap() > 100_000);
        let before = thread_cpu_seconds();
        let mut sum = 0_u64;
        while thread_cpu_seconds() < before + 0.05 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(own_process_cpu_seconds() >= 0.05);
        assert!(process_cpu_seconds(pid).unwrap() >= 0.04);
        assert!(machine_busy_seconds().unwrap() > 0.0);
    }
}
