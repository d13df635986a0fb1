//! A short but complete run of `compare serve`, with two contenders that are built into the
//! `compare` binary.

use std::fs;
use std::process::Command;

use crate::{check_finished_run, compare, first_allowed_cpu, raw_value};

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    // Use the machine's current congestion control, because a test must not change a setting of the
    // machine.
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let cpu = first_allowed_cpu();
    let output = compare("serve", files.path())
        .args(["--seconds", "0.1", "--warm-up", "0.01"])
        .args(["--server-cpu", &cpu, "--load-cpu", &cpu])
        .args(["--congestion", congestion.trim()])
        .args(["--contenders", "plain,axum", "--sizes", "1k,4m"])
        .args(["--connections", "4", "--idle-connections", "50"])
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let (_page, raw) = check_finished_run(&output, files.path(), out.path());

    for contender in ["plain", "axum"] {
        for size in [1 << 10, 4 << 20] {
            let rate = raw_value(&raw, contender, size, "requests_per_second");
            assert!(rate.is_some_and(|rate| rate > 1.0), "{contender} {size}");
        }
        let idle = raw_value(&raw, contender, 1024, "idle_connections");
        assert_eq!(idle, Some(50.0), "{raw}");
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
