//! Short but complete runs of `compare serve`, with contenders that are built into the `compare`
//! binary.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{check_finished_run, compare, first_allowed_cpu, raw_value};

/// Returns the command of a short run, with the machine's current congestion control, because a
/// test must not change a setting of the machine.
fn short_run(files: &Path, out: &Path, contenders: &str) -> Command {
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let cpu = first_allowed_cpu();
    let mut command = compare("serve", files);
    command
        .args(["--seconds", "0.1", "--warm-up", "0.01"])
        .args(["--server-cpu", &cpu, "--load-cpu", &cpu])
        .args(["--congestion", congestion.trim()])
        .args(["--connections", "4", "--idle-connections", "50"])
        .args(["--contenders", contenders, "--out"])
        .arg(out);
    command
}

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = short_run(files.path(), out.path(), "plain,axum")
        .args(["--sizes", "1k,4m", "--files", "1"])
        .output()
        .unwrap();
    let (_page, raw) = check_finished_run(&output, files.path(), out.path());

    for contender in ["plain", "axum"] {
        for case in ["1024/1/copy", "4194304/1/copy", "4194304/1/discard"] {
            let rate = raw_value(&raw, contender, case, "requests_per_second");
            assert!(rate.is_some_and(|rate| rate > 1.0), "{contender} {case}");
        }
        let latency = raw_value(&raw, contender, "1024/1/copy", "latency_p50_microseconds");
        assert!(latency.is_some_and(|latency| latency > 1.0), "{contender}");
        let idle = raw_value(&raw, contender, "1024/1/copy", "idle_connections");
        assert_eq!(idle, Some(50.0), "{raw}");
    }
}

#[test]
fn requests_are_spread_over_many_files_some_of_them_cold() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = short_run(files.path(), out.path(), "plain,axum")
        .args(["--sizes", "16k", "--files", "200,10000", "--only", "load"])
        .args(["--identical", "--receivers", "copy"])
        .output()
        .unwrap();
    let (_page, raw) = check_finished_run(&output, files.path(), out.path());

    for case in ["16384/200/copy", "16384/10000/copy"] {
        let rate = raw_value(&raw, "plain", case, "requests_per_second");
        assert!(rate.is_some_and(|rate| rate > 1.0), "{case}");
        // axum takes part only with one file.
        assert_eq!(raw_value(&raw, "axum", case, "requests_per_second"), None);
    }
}

#[test]
fn a_cpu_that_does_not_exist_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_compare"))
        .args(["serve", "--contenders", "plain", "--load-cpu", "1000000"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CPU 1000000"));
}
