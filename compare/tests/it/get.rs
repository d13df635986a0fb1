//! Short but complete runs of `compare get`, with contenders that need no build.

use std::fs;
use std::process::Command;

use crate::{check_finished_run, compare_senders, raw_value};

/// The programs that a run needs.
const PROGRAMS: [&str; 2] = ["curl", "nginx"];

/// Whether a program is in one of the directories in which `compare` looks for it.
fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/local/sbin".into()])
        .any(|directory| directory.join(program).is_file())
}

#[test]
fn a_run_measures_every_contender_and_leaves_nothing_behind() {
    if let Some(missing) = PROGRAMS.iter().find(|program| !is_installed(program)) {
        println!("SKIP get: {missing} is not installed");
        // The gate sets this variable after it has installed the programs.
        assert!(std::env::var_os("UNCOPIED_TEST_FORBID_SKIPS").is_none());
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let out = tempfile::tempdir().unwrap();
    // A test must not change the machine's congestion control.
    let congestion = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control").unwrap();
    let output = compare_senders("get", files.path())
        .args(["--sizes", "3m", "--files", "50", "--parallel", "4"])
        .args(["--contenders", "curl,loop"])
        .args(["--congestion", congestion.trim(), "--out"])
        .arg(out.path())
        .output()
        .unwrap();
    let (page, raw) = check_finished_run(&output, files.path(), out.path());

    for (case, contenders) in [
        ("3145728/1/file", &["curl", "loop"][..]),
        ("3145728/1/null", &["curl", "loop"]),
        ("1024/50/directory", &["curl"]),
    ] {
        for contender in contenders {
            let value = |key| raw_value(&raw, contender, case, key).unwrap();
            assert!(value("client_cpu_seconds") > 0.0, "{contender} {case}");
            assert!(value("seconds") > 0.0, "{contender} {case}");
            assert!(value("files_per_second") > 0.0, "{contender} {case}");
        }
    }
    // The loop fetches only one file.
    assert_eq!(
        raw_value(&raw, "loop", "1024/50/directory", "seconds"),
        None
    );
    assert!(page.contains("not measured"), "{page}");
    assert!(page.contains("sendfile on;"), "{page}");
}

#[test]
fn the_help_names_the_default_size_and_an_unknown_contender_is_refused() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_compare"));
        command.arg("get").args(arguments).output().unwrap()
    };
    let help = run(&["--help"]);
    assert!(help.status.success());
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    assert!(help.contains("[default: 1g]"), "{help}");
    assert!(help.contains("[default: 10000]"), "{help}");
    let unknown = run(&["--contenders", "cat"]);
    assert_eq!(unknown.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&unknown.stderr);
    assert!(errors.contains("uncopied, curl"), "{errors}");
}
