//! Describes the machine, and chooses the CPU of a thread.

use std::fs;
use std::io;

use rustix::thread::CpuSet;
use serde::Serialize;

/// What a reader has to know about a machine to judge figures that were measured on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// The model of the CPU, or `unknown`.
    pub cpu: String,
    /// The number of CPUs that this process may use.
    pub cpus: usize,
    /// The size of the memory, or 0 if it is unknown.
    pub memory_bytes: u64,
    /// The release of the kernel, or `unknown`.
    pub kernel: String,
    /// The size of a page of memory.
    pub page_bytes: usize,
}

impl Machine {
    /// Describes this machine.
    #[must_use]
    pub fn describe() -> Self {
        let unknown = || "unknown".to_owned();
        let kernel = fs::read_to_string("/proc/sys/kernel/osrelease");
        Self {
            cpu: value_in("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: value_in("/proc/meminfo", "MemTotal")
                .and_then(|text| text.strip_suffix("kB")?.trim().parse::<u64>().ok())
                .map_or(0, |kib| kib * 1024),
            kernel: kernel.map_or_else(|_| unknown(), |release| release.trim().to_owned()),
            page_bytes: rustix::param::page_size(),
        }
    }
}

/// Returns the value of a line `name : value` in a file.
fn value_in(path: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == name)
        .map(|(_, value)| value.trim().to_owned())
}

/// Returns the numbers of the CPUs that this thread may run on.
///
/// # Errors
///
/// Those of `sched_getaffinity(2)`.
pub fn allowed_cpus() -> io::Result<Vec<usize>> {
    let allowed = rustix::thread::sched_getaffinity(None)?;
    Ok((0..CpuSet::MAX_CPU)
        .filter(|&cpu| allowed.is_set(cpu))
        .collect())
}

/// Restricts the calling thread, and every thread and process that it starts later, to one CPU.
///
/// # Errors
///
/// [`InvalidInput`](io::ErrorKind::InvalidInput) if there is no such CPU, and the errors of
/// `sched_setaffinity(2)`.
pub fn pin_to(cpu: usize) -> io::Result<()> {
    if cpu >= CpuSet::MAX_CPU {
        let why = format!("there is no CPU {cpu}");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_known() {
        let machine = Machine::describe();
        assert!(machine.cpus > 0 && machine.page_bytes >= 4096);
        assert!(machine.memory_bytes > 1 << 20, "{machine:?}");
        assert_ne!(machine.kernel, "unknown");
    }

    #[test]
    fn a_thread_is_pinned_to_a_cpu_that_exists() -> io::Result<()> {
        let [first, ..] = allowed_cpus()?[..] else {
            return Err(io::Error::other("no CPU is allowed"));
        };
        std::thread::scope(|scope| {
            let pinned = scope
                .spawn(|| pin_to(first).and_then(|()| allowed_cpus()))
                .join();
            assert!(pinned.is_ok_and(|cpus| cpus.is_ok_and(|cpus| cpus == [first])));
        });
        assert!(pin_to(CpuSet::MAX_CPU).is_err());
        Ok(())
    }
}
