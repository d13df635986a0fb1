//! Reads CPU times from the kernel: from `/proc/stat` and from the CPU clocks.

use std::fs;
use std::io;

use rustix::time::ClockId;

const STAT: &str = "/proc/stat";

/// Returns the busy seconds of all CPUs together (`proc(5)`). Time in the kernel, in interrupts and
/// in software interrupts counts as busy. Idle time, time spent waiting for I/O and time stolen by
/// a hypervisor do not.
///
/// The kernel reports this time in clock ticks, usually of 10 ms.
///
/// # Errors
///
/// `/proc/stat` cannot be read, or does not have the format of `proc(5)`.
pub fn machine_busy_seconds() -> io::Result<f64> {
    let text = fs::read_to_string(STAT)?;
    parse_machine_ticks(&text)
        .map(tick_seconds)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it has another format"))
}

/// Returns the CPU seconds of the calling thread. The scheduler measures this time in nanoseconds,
/// not in clock ticks.
#[must_use]
pub fn thread_seconds() -> f64 {
    clock_seconds(ClockId::ThreadCPUTime)
}

/// Returns the user and system CPU seconds of all threads of this process, including threads that
/// have ended, and threads of the kernel that work for it (io_uring). The scheduler measures this
/// time in nanoseconds, not in clock ticks.
#[must_use]
pub fn process_seconds() -> f64 {
    clock_seconds(ClockId::ProcessCPUTime)
}

/// Converts clock ticks (`USER_HZ`) to seconds.
#[must_use]
pub fn tick_seconds(ticks: u64) -> f64 {
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

fn clock_seconds(clock: ClockId) -> f64 {
    let time = rustix::time::clock_gettime(clock);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Returns user + nice + system + irq + softirq from the text of `/proc/stat`, in clock ticks.
/// Reads the line `cpu`, which has the sums over all CPUs.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_do_not_count_as_busy() {
        let stat = "cpu  1 2 4 1000 2000 8 16 5000 0 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(parse_machine_ticks(stat), Some(31));
        assert_eq!(parse_machine_ticks("cpu  1 2 4\n"), None);
    }

    #[test]
    fn this_process_has_cpu_time() {
        let before = thread_seconds();
        let mut sum = 0_u64;
        while thread_seconds() < before + 0.05 {
            sum = std::hint::black_box(sum + 1);
        }
        assert!(process_seconds() >= 0.05);
        assert!(machine_busy_seconds().is_ok_and(|seconds| seconds > 0.0));
    }
}
