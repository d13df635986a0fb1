//! A whole run of `serve`, short, with the two contenders that this program brings along.

use std::fs;
use std::process::{Command, Output};

use crate::{assert_nothing_runs_with, some_cpu};

fn compare(directory: &std::path::Path, more: &[&str]) -> Output {
    // As it is: a test changes no setting of the machine.
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let cpu = some_cpu();
    Command::new(env!("CARGO_BIN_EXE_compare"))
        .args([
            "serve",
            "--rounds",
            "1",
            "--seconds",
            "0.1",
            "--warm-up",
            "0.01",
        ])
        .args(["--server-cpu", &cpu, "--load-cpu", &cpu])
        .args(["--congestion", congestion.trim()])
        .arg("--dir")
        .arg(directory)
        .args(more)
        .output()
        .unwrap()
}

#[test]
fn a_run_measures_writes_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = compare(
        files.path(),
        &[
            "--contenders",
            "plain,axum",
            "--sizes",
            "1k,4m",
            "--connections",
            "4",
            "--idle-connections",
            "50",
            "--out",
            &out.path().to_string_lossy(),
        ],
    );
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");

    let page = fs::read_to_string(out.path().join("README.md")).unwrap();
    assert_eq!(page.as_bytes(), output.stdout);
    let place = files.path().to_string_lossy();
    assert!(!page.contains(&format!("{place}/compare-")), "{page}");

    let raw = fs::read_to_string(out.path().join("raw.csv")).unwrap();
    for contender in ["plain", "axum"] {
        for size in [1 << 10, 4 << 20] {
            let start = format!("1,{contender},{size},requests_per_second,");
            let value = raw.lines().find_map(|line| line.strip_prefix(&start));
            let rate: f64 = value.unwrap().parse().unwrap();
            assert!(rate > 1.0, "{start}{rate}");
        }
        let idle = format!("1,{contender},1024,idle_connections,50");
        assert!(raw.lines().any(|line| line == idle), "{raw}");
    }

    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 0);
    assert_nothing_runs_with(&place);
}

#[test]
fn a_cpu_that_is_not_there_is_named() {
    let output = Command::new(env!("CARGO_BIN_EXE_compare"))
        .args(["serve", "--contenders", "plain", "--load-cpu", "1000000"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CPU 1000000"));
}
