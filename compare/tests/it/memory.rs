//! Short but complete runs of `compare memory`, with every contender that this machine supports.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{RENO, check_finished_run, compare_senders, printed_page, raw_value};

fn compare_memory(directory: &Path, options: &[&str]) -> Command {
    let mut command = compare_senders("memory", directory);
    command
        .args(["--seconds", "0.05", "--warm-up", "0.01"])
        .args(["--sizes", "5000,1m,3m"])
        .args(options);
    command
}

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = compare_memory(files.path(), &RENO)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let (page, raw) = check_finished_run(&output, files.path(), out.path());
    assert!(page.contains("reno, set by TCP_CONGESTION, both sides"));

    let copied = |contender: &str, size| raw_value(&raw, contender, size, "copied_share");
    for size in [5000, 1 << 20, 3 << 20] {
        for contender in ["write", "write-all", "copy", "tokio-bytes"] {
            let rate = raw_value(&raw, contender, size, "gb_per_second");
            assert!(rate.is_some_and(|rate| rate > 0.001), "{contender} {size}");
            assert_eq!(copied(contender, size), Some(1.0), "{contender} {size}");
        }
        let never_copied = ["vmsplice", "region", "tokio-vmsplice"];
        let always_copied = ["msg_zerocopy", "send_zc", "send_zc-bytes"];
        for contender in never_copied.into_iter().chain(always_copied) {
            match copied(contender, size) {
                Some(share) if never_copied.contains(&contender) => {
                    assert_eq!(share, 0.0, "{contender} {size}");
                }
                // On loopback the kernel copies all bytes, and reports that it did.
                Some(share) => assert_eq!(share, 1.0, "{contender} {size}"),
                None => {
                    let start = format!("- **{contender}**");
                    let line = page.lines().find(|line| line.starts_with(&start));
                    assert!(line.unwrap().contains("Left out"), "{page}");
                }
            }
        }
    }
}

#[test]
fn a_fan_out_measures_the_contenders_that_can_send_over_several_connections() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = compare_memory(files.path(), &["--connections", "5"])
        .args(RENO)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let (page, raw) = check_finished_run(&output, files.path(), out.path());
    assert!(page.contains("to 5 new connections at the same time"));
    assert!(!page.contains("**write**"), "{page}");
    let copied = |contender: &str, size| raw_value(&raw, contender, size, "copied_share");
    for size in [5000, 1 << 20, 3 << 20] {
        assert_eq!(copied("write-all", size), Some(1.0), "{size}");
        assert_eq!(copied("tokio-bytes", size), Some(1.0), "{size}");
        let is_left_out = page.contains("Left out");
        let share = (!is_left_out).then_some(0.0);
        assert_eq!(copied("tokio-vmsplice", size), share, "{size}");
    }

    let output = compare_memory(files.path(), &["--connections", "5"])
        .args(["--contenders", "write,write-all"])
        .args(RENO)
        .output()
        .unwrap();
    assert!(printed_page(&output).contains("Left out: it sends over one connection only"));
}

#[test]
fn iperf3_is_measured_or_visibly_left_out() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let out_text = out.path().to_string_lossy();
    let options = ["--contenders", "write,iperf3,iperf3-Z", "--out", &out_text];
    let without = compare_memory(files.path(), &options)
        .args(RENO)
        .env("PATH", files.path())
        .output()
        .unwrap();
    let page_without = printed_page(&without);
    assert!(page_without.contains("Left out: iperf3 is not installed: install iperf3"));
    assert!(page_without.contains("left out: see above"));

    let with = compare_memory(files.path(), &options).args(RENO).output();
    let page_with = printed_page(&with.unwrap());
    let raw = fs::read_to_string(out.path().join("raw.csv")).unwrap();
    let is_installed = Command::new("iperf3").arg("--version").output().is_ok();
    assert_eq!(page_with.contains("Left out: iperf3"), !is_installed);
    for (contender, share) in [("iperf3", 1.0), ("iperf3-Z", 0.0)] {
        let copied = |size| raw_value(&raw, contender, size, "copied_share");
        assert_eq!(copied(1 << 20), is_installed.then_some(share));
        assert_eq!(copied(3 << 20), None);
    }
    assert_eq!(
        page_with.contains("sends at most 1 MiB per call"),
        is_installed
    );
}

#[test]
fn an_unknown_congestion_control_is_named() {
    let files = tempfile::tempdir().unwrap();
    let output = compare_memory(files.path(), &["--contenders", "write"])
        .args(["--congestion", "no-such"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("no-such"), "{errors}");
}
