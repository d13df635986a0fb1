//! A whole run of `memory`, short, with every contender that this machine lets run.

use std::fs;
use std::process::{Command, Output};

use crate::{assert_nothing_runs_with, some_cpu};

/// The congestion control that everybody may use.
const RENO: [&str; 2] = ["--congestion", "reno"];

fn compare(directory: &std::path::Path, more: &[&str]) -> Command {
    let cpu = some_cpu();
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
    command
        .args(["memory", "--rounds", "1", "--seconds", "0.05"])
        .args(["--warm-up", "0.01", "--sizes", "5000,1m,3m"])
        .args(["--sender-cpu", &cpu, "--receiver-cpu", &cpu])
        .arg("--dir")
        .arg(directory)
        .args(more);
    command
}

fn page(output: &Output) -> String {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The value of the raw data, if there is one.
fn value(raw: &str, contender: &str, size: u64, key: &str) -> Option<f64> {
    let start = format!("1,{contender},{size},{key},");
    let value = raw.lines().find_map(|line| line.strip_prefix(&start))?;
    Some(value.parse().unwrap())
}

#[test]
fn a_run_measures_writes_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let place = files.path().to_string_lossy();
    let out_text = out.path().to_string_lossy();
    let output = compare(files.path(), &["--out", &out_text])
        .args(RENO)
        .output()
        .unwrap();
    let page = page(&output);
    assert_eq!(
        fs::read_to_string(out.path().join("README.md")).unwrap(),
        page
    );
    assert!(page.contains("reno, set by TCP_CONGESTION, both sides"));
    assert!(!page.contains(&format!("{place}/compare-")), "{page}");

    let raw = fs::read_to_string(out.path().join("raw.csv")).unwrap();
    let copied = |contender: &str, size| value(&raw, contender, size, "copied_share");
    for size in [5000, 1 << 20, 3 << 20] {
        for contender in ["write", "write-all", "copy"] {
            let rate = value(&raw, contender, size, "gb_per_second");
            assert!(rate.is_some_and(|rate| rate > 0.001), "{contender} {size}");
            assert_eq!(copied(contender, size), Some(1.0), "{contender} {size}");
        }
        for lending in ["vmsplice", "region", "msg_zerocopy", "send_zc"] {
            let left_out = format!("- **{lending}**");
            let line = page.lines().find(|line| line.starts_with(&left_out));
            match copied(lending, size) {
                Some(share) if ["vmsplice", "region"].contains(&lending) => {
                    assert_eq!(share, 0.0, "{lending} {size}");
                }
                // The kernel copies on loopback, and says so.
                Some(share) => assert_eq!(share, 1.0, "{lending} {size}"),
                None => assert!(line.unwrap().contains("Left out"), "{page}"),
            }
        }
    }
    assert_eq!(fs::read_dir(files.path()).unwrap().count(), 0);
    assert_nothing_runs_with(&place);
}

#[test]
fn iperf3_is_measured_or_visibly_left_out() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let out_text = out.path().to_string_lossy();
    let more = ["--contenders", "write,iperf3,iperf3-Z", "--out", &out_text];
    let without = compare(files.path(), &more)
        .args(RENO)
        .env("PATH", files.path())
        .output()
        .unwrap();
    let page_without = page(&without);
    assert!(page_without.contains("Left out: iperf3 is not installed: install iperf3"));
    assert!(page_without.contains("left out: see above"));

    let page_with = page(&compare(files.path(), &more).args(RENO).output().unwrap());
    let raw = fs::read_to_string(out.path().join("raw.csv")).unwrap();
    let is_installed = Command::new("iperf3").arg("--version").output().is_ok();
    assert_eq!(page_with.contains("Left out: iperf3"), !is_installed);
    for (contender, share) in [("iperf3", 1.0), ("iperf3-Z", 0.0)] {
        let expected = is_installed.then_some(share);
        assert_eq!(value(&raw, contender, 1 << 20, "copied_share"), expected);
        assert_eq!(value(&raw, contender, 3 << 20, "copied_share"), None);
    }
    assert_eq!(
        page_with.contains("takes at most 1 MiB a call"),
        is_installed
    );
}

#[test]
fn a_congestion_control_that_is_not_there_is_named() {
    let files = tempfile::tempdir().unwrap();
    let output = compare(files.path(), &["--contenders", "write"])
        .args(["--congestion", "no-such"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no-such"), "{errors}");
}
