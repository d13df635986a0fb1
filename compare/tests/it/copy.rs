//! A short but complete run of `compare copy`, with every contender.

use std::process::Command;

use crate::{RENO, check_finished_run, compare_senders, raw_value};

const CONTENDERS: [&str; 7] = [
    "uncopied-tokio",
    "tokio-copy",
    "tokio-copy-buf",
    "uncopied",
    "sendfile",
    "std-copy",
    "read-write",
];

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    let output = compare_senders("copy", files.path())
        .args(["--sizes", "5000,3m"])
        .args(RENO)
        .arg("--out")
        .arg(out.path())
        .output()
        .unwrap();
    let (page, raw) = check_finished_run(&output, files.path(), out.path());
    assert!(page.contains("reno, set by TCP_CONGESTION, both sides"));
    for size in [5000, 3 << 20] {
        for contender in CONTENDERS {
            let value = |key| raw_value(&raw, contender, size, key).unwrap();
            assert_eq!(value("received_bytes"), size as f64, "{contender}");
            assert!(value("sender_cpu_seconds") > 0.0, "{contender} {size}");
            assert!(value("gb_per_second") > 0.0, "{contender} {size}");
        }
    }
    for other in CONTENDERS.iter().filter(|&&name| name != "tokio-copy") {
        let ratio = format!("{other} ÷ tokio-copy ");
        assert!(page.contains(&ratio), "{ratio}: {page}");
    }
}

#[test]
fn the_help_names_the_default_size_and_an_unknown_contender_is_refused() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
        command.arg("copy").args(arguments).output().unwrap()
    };
    let help = run(&["--help"]);
    assert!(help.status.success());
    assert!(String::from_utf8_lossy(&help.stdout).contains("[default: 256m]"));
    let unknown = run(&["--contenders", "cat"]);
    assert_eq!(unknown.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&unknown.stderr);
    assert!(errors.contains("uncopied-tokio, tokio-copy"), "{errors}");
}
