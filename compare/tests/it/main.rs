//! Short but complete runs of every comparison.

#![allow(clippy::unwrap_used)]

mod copy;
mod get;
mod memory;
mod receive;
mod relay;
mod serve;

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// The options that select `reno`, a congestion control that every user may set.
const RENO: [&str; 2] = ["--congestion", "reno"];

/// Returns the command `compare COMPARISON`, with one round and with temporary files in
/// `directory`.
fn compare(comparison: &str, directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
    command
        .args([comparison, "--rounds", "1", "--dir"])
        .arg(directory);
    command
}

/// Like [`compare`], but runs sender and receiver on the first CPU that this process may use. The
/// default CPUs, 0 and 1, may not both be among those that this process may use.
fn compare_senders(comparison: &str, directory: &Path) -> Command {
    let cpu = first_allowed_cpu();
    let mut command = compare(comparison, directory);
    command.args(["--sender-cpu", &cpu, "--receiver-cpu", &cpu]);
    command
}

/// Returns the number of the first CPU that this process may run on.
fn first_allowed_cpu() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
        .unwrap();
    let first = line.trim().split([',', '-']).next().unwrap();
    first.to_owned()
}

/// Asserts that a run has succeeded, and returns the page that it has printed.
fn printed_page(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Returns a value of round 1 from the raw data, or `None` if the raw data does not have it.
fn raw_value(raw: &str, contender: &str, case: impl Display, key: &str) -> Option<f64> {
    let start = format!("1,{contender},{case},{key},");
    let value = raw.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(value.parse().unwrap())
}

/// Asserts that a run has succeeded and cleaned up. README.md in `out` must equal the printed page,
/// which must not contain temporary paths. `directory` must be empty, and no running process may
/// have it on its command line. Returns the page and the raw data.
fn check_finished_run(output: &Output, directory: &Path, out: &Path) -> (String, String) {
    let page = printed_page(output);
    let written = fs::read_to_string(out.join("README.md")).unwrap();
    assert_eq!(written, page);
    let directory_text = directory.to_string_lossy();
    let scratch = format!("{directory_text}/compare-");
    assert!(!page.contains(&scratch), "{page}");
    assert_eq!(fs::read_dir(directory).unwrap().count(), 0);
    assert_no_process_with(&directory_text);
    (page, fs::read_to_string(out.join("raw.csv")).unwrap())
}

/// Asserts that no process has `text` in its command line.
fn assert_no_process_with(text: &str) {
    for process in fs::read_dir("/proc").unwrap() {
        let command = fs::read(process.unwrap().path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        assert!(!command.contains(text), "still running: {command}");
    }
}
