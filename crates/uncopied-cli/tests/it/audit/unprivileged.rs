//! What an ordinary user gets. As root, these tests run the command as nobody.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};

use super::watched::Report;
use crate::server::{PROGRAM, clean};

/// The user and the group "nobody".
const NOBODY: u32 = 65534;

/// Runs the command as an ordinary user.
fn run_as_user(arguments: &[&str]) -> Output {
    // The directory of the program may be closed to other users.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = directory.path().join("uncopied");
    fs::copy(PROGRAM, &copy).unwrap();
    let mut command = clean(Command::new(copy));
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.current_dir("/").args(arguments).output().unwrap()
}

fn paranoid() -> i32 {
    let text = fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    text.trim().parse().unwrap()
}

#[test]
fn an_ordinary_user_gets_what_the_kernel_allows() {
    // The loop takes time in user mode, enough for some samples, and dd far more in the kernel.
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i + 1)); done; \
                  exec dd if=/dev/urandom of=/dev/null bs=256k count=1200";
    let command = ["sh", "-c", script];
    let output = run_as_user(&[&["audit", "--json", "--"], &command[..]].concat());
    assert_eq!(output.status.code(), Some(0));
    let report = Report::parse(&String::from_utf8(output.stdout).unwrap());
    let basis = report.0["basis"].as_str().unwrap();
    let notes = report.0["notes"].to_string();
    if paranoid() >= 2 {
        assert!(matches!(basis, "user_samples" | "cpu_time"), "{}", report.0);
        assert!(notes.contains("kernel.perf_event_paranoid is"), "{notes}");
        assert!(notes.contains("CAP_PERFMON"), "{notes}");
    } else {
        assert!(
            matches!(basis, "samples" | "unnamed_samples"),
            "{}",
            report.0
        );
    }
    if basis == "samples" {
        return;
    }
    // No share is claimed. That of the kernel is an upper bound, if there is enough time for it.
    assert!(report.0["copy_share"].is_null(), "{}", report.0);
    assert_eq!(report.activity("copy"), 0);
    if basis == "user_samples" {
        assert!(report.activity("user") > 0, "{}", report.0);
        assert_eq!(report.activity("user"), report.samples());
    }
    if let Some(most) = report.0["copy_share_at_most"].as_f64() {
        assert!((0.5..=1.0).contains(&most), "{}", report.0);
    }
}

#[test]
fn the_text_says_what_is_not_known() {
    if paranoid() < 2 {
        crate::skip::skip_optional(
            "the_text_says_what_is_not_known",
            "kernel.perf_event_paranoid lets ordinary users sample the kernel",
        );
        return;
    }
    let output = run_as_user(&["audit", "--", "true"]);
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert!(text.contains("copying payload is not known"), "{text}");
    assert!(text.contains("run as root or with CAP_PERFMON"), "{text}");
}

#[test]
fn a_process_of_another_user_is_not_sampled() {
    if !rustix::process::geteuid().is_root() {
        crate::skip::skip_optional(
            "a_process_of_another_user_is_not_sampled",
            "only root can start a process of another user",
        );
        return;
    }
    let this = std::process::id().to_string();
    let output = run_as_user(&["audit", "--json", "--seconds", "1", "--pid", &this]);
    assert_eq!(output.status.code(), Some(0));
    let report = Report::parse(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(report.0["basis"], "cpu_time", "{}", report.0);
    assert!(
        report.0["notes"]
            .to_string()
            .contains("Nothing could be sampled")
    );
}
