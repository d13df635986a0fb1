//! Short but complete runs of `compare relay`, with contenders that are built into the `compare`
//! binary.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::{check_finished_run, compare_senders, raw_value};

/// The programs that create a network namespace in a test, and set it up in a run.
const PROGRAMS: [&str; 2] = ["unshare", "ip"];

/// Returns the command of a short run, with temporary files in `directory`, or `None` if this
/// machine does not allow network namespaces. An ordinary user needs a user namespace too.
fn short_run(directory: &Path) -> Option<Command> {
    let mut run = compare_senders("relay", directory);
    // A test must not change the machine's congestion control.
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    run.args(["--seconds", "0.1", "--warm-up", "0.01", "--verified", "1m"])
        .args(["--congestion", congestion.trim()])
        .args(["--bulk-connections", "2", "--message-connections", "3"])
        .args([
            "--message-sizes",
            "1,1k",
            "--contenders",
            "uncopied-bare,tokio,loop",
        ]);
    let can_unshare = |options: &[&str]| {
        let mut unshare = Command::new("unshare");
        let output = unshare.args(options).args(["--net", "ip", "link"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if can_unshare(&[]) {
        return Some(run);
    }
    if can_unshare(&["--map-root-user"]) {
        let mut unshare = Command::new("unshare");
        unshare.arg("--map-root-user").arg(run.get_program());
        unshare.args(run.get_args());
        return Some(unshare);
    }
    println!(
        "SKIP relay: {} cannot create a network namespace",
        PROGRAMS.join(" and ")
    );
    // The gate sets this variable after it has tried the same.
    assert!(std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none());
    None
}

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let Some(mut run) = short_run(files.path()) else {
        return;
    };
    let output = run.arg("--out").arg(out.path()).output().unwrap();
    let (page, raw) = check_finished_run(&output, files.path(), out.path());

    for contender in ["uncopied-bare", "tokio", "loop"] {
        for (case, key) in [
            ("bulk_to_server/2", "gb_per_second"),
            ("bulk_to_client/2", "gb_per_second"),
            ("round_trips_1/3", "round_trips_per_second"),
            ("round_trips_1024/3", "round_trips_per_second"),
            ("latency_1/3", "latency_p999_microseconds"),
            ("latency_1024/3", "latency_p50_microseconds"),
            ("connections/32", "connections_per_second"),
        ] {
            let value = raw_value(&raw, contender, case, key);
            assert!(value.is_some_and(|value| value > 0.0), "{contender} {case}");
        }
    }
    assert!(page.contains("uncopied-bare ÷ tokio"), "{page}");
    assert!(page.contains("not measured"), "{page}");
}

#[test]
fn the_figures_can_be_printed_as_json() {
    let files = tempfile::tempdir().unwrap();
    let Some(mut run) = short_run(files.path()) else {
        return;
    };
    let output = run
        .args(["--only", "connections", "--json"])
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let document: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let figures = document["figures"].as_array().unwrap();
    let rate = figures.iter().find(|figure| {
        figure["contender"] == "loop" && figure["measure"] == "connections_per_second"
    });
    assert!(rate.is_some_and(|rate| rate["median"].as_f64().unwrap() > 0.0));
    assert!(
        figures
            .iter()
            .all(|figure| figure["case"] == "connections/32")
    );
    let targets = document["targets"].as_array().unwrap();
    assert!(
        targets
            .iter()
            .all(|target| target["verdict"] == "not measured")
    );
}

#[test]
fn a_message_that_does_not_fit_into_a_socket_is_refused() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
    let output = command
        .args(["relay", "--message-sizes", "33k"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("32 KiB"));
}
