//! Mistakes on the command line, and programs that cannot be started.

use crate::server::{assert_fails, run};

#[test]
fn a_process_or_a_command_is_needed_and_not_both() {
    for arguments in [
        &["audit"][..],
        &["audit", "--pid", "1", "--", "true"],
        &["audit", "--pid", "0"],
        &["audit", "--pid", "self"],
        &["audit", "--seconds", "0", "--", "true"],
        &["audit", "--json", "--folded", "--", "true"],
        &["audit", "true"],
    ] {
        let (status, out, stderr) = run(arguments);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_command_that_cannot_be_started_fails() {
    assert_fails(
        &["audit", "--", "/nonexistent/program"],
        1,
        &[
            "cannot start /nonexistent/program",
            "no such file",
            "check its name",
        ],
    );
    assert_fails(
        &["audit", "--", "/etc/passwd"],
        1,
        &["cannot start /etc/passwd", "permission denied", "execute"],
    );
}

#[test]
fn a_process_that_does_not_exist_fails() {
    // The largest number of a process is 2^22.
    assert_fails(
        &["audit", "--pid", "999999999"],
        1,
        &["no process 999999999"],
    );
}

#[test]
fn a_report_that_cannot_be_written_fails_before_anything_is_started() {
    assert_fails(
        &[
            "audit",
            "-o",
            "/nonexistent/report",
            "--",
            "echo",
            "started",
        ],
        1,
        &[
            "cannot write the report to /nonexistent/report",
            "choose a file",
        ],
    );
}
