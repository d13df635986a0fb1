//! Short but complete runs of `compare receive`, with every contender that this machine supports.

use std::path::Path;
use std::process::Command;

use crate::{RENO, check_finished_run, compare_senders, printed_page};

const CONTENDERS: [&str; 5] = ["recv", "map_receive", "plan", "copy", "uring_multishot"];

const SCENARIOS: [&str; 2] = ["page-payloads", "ordinary-payloads"];

fn compare_receive(directory: &Path) -> Command {
    let mut command = compare_senders("receive", directory);
    command
        .args(["--seconds", "0.05", "--warm-up", "0.01"])
        .args(RENO);
    command
}

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = compare_receive(files.path())
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let (page, raw) = check_finished_run(&output, files.path(), out.path());
    assert!(page.contains("reno, set by TCP_CONGESTION, both sides"));
    for text in [
        "### page payloads",
        "### ordinary payloads",
        "receiver CPU s/GB with page payloads, map_receive ÷ recv",
        "No receiver looks at the bytes",
    ] {
        assert!(page.contains(text), "{text}: {page}");
    }
    assert!(raw.starts_with("round,contender,scenario,measure,value\n"));

    let is_left_out = page.contains("Left out: this machine does not support it");
    for scenario in SCENARIOS {
        for contender in CONTENDERS {
            let start = format!("1,{contender},{scenario},");
            let value = |key: &str| -> Option<f64> {
                let rows = raw.lines().filter_map(|line| line.strip_prefix(&start));
                let mut values = rows.filter_map(|row| row.strip_prefix(&format!("{key},")));
                Some(values.next()?.parse().unwrap())
            };
            if contender == "uring_multishot" && is_left_out {
                assert_eq!(value("gb_per_second"), None);
                continue;
            }
            for key in ["gb_per_second", "receiver_cpu_seconds", "kib_per_read"] {
                assert!(value(key) > Some(0.0), "{contender} {scenario} {key}");
            }
            // Nothing can be mapped if the page is larger than any payload.
            let maps = ["map_receive", "plan"].contains(&contender)
                && scenario == "page-payloads"
                && uncopied::PagePayload::max_pages() > 0;
            let mapped = value("mapped_share").unwrap();
            assert_eq!(mapped > 0.0, maps, "{contender} {scenario}: {mapped}");
        }
    }
}

#[test]
fn all_bytes_are_read_on_request() {
    let files = tempfile::tempdir().unwrap();
    let output = compare_receive(files.path())
        .args(["--read", "--low-water-mark", "1"])
        .args(["--scenarios", "page-payloads"])
        .args(["--contenders", "recv,map_receive"])
        .output()
        .unwrap();
    let page = printed_page(&output);
    assert!(page.contains("Each receiver reads all bytes once"));
    assert!(page.contains("when 1 B have arrived"), "{page}");
    assert!(page.contains("--low-water-mark 1 --read"), "{page}");
    assert!(!page.contains("### ordinary payloads"), "{page}");
}

#[test]
fn an_unknown_contender_is_refused() {
    let output = Command::new(env!("CARGO_BIN_EXE_compare"))
        .args(["receive", "--contenders", "readv"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(errors.contains("recv, map_receive"), "{errors}");
}
