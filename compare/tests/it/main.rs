//! Whole runs, short.

#![allow(clippy::unwrap_used)]

mod memory;
mod serve;

use std::fs;

/// The first CPU that this process may run on.
fn some_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    let first = line.trim().split([',', '-']).next().unwrap();
    first.to_owned()
}

/// No process has `place` in its command line.
fn assert_nothing_runs_with(place: &str) {
    for process in fs::read_dir("/proc").unwrap() {
        let command = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        assert!(!command.contains(place), "still running: {command}");
    }
}
