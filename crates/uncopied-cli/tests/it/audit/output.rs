//! What the command prints, and how an audit and its program end.

use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::process::Stdio;

use rustix::process::Signal;

use super::watched::{Audit, Report, can_sample_kernel, children, is_alive};
use crate::server::{program, run};

/// A program that spends its time in the kernel, in copies and elsewhere.
const READER: [&str; 4] = ["dd", "if=/dev/urandom", "of=/dev/null", "bs=256k"];

#[test]
fn the_text_has_the_result_and_the_shares() {
    if !can_sample_kernel("the_text_has_the_result_and_the_shares") {
        return;
    }
    let command = [
        &["audit", "--"],
        &READER[..],
        &["count=1200", "status=none"],
    ]
    .concat();
    let (status, out, stderr) = run(&command);
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let lines: Vec<_> = out.lines().collect();
    assert!(lines[0].starts_with("dd (PID "), "{out}");
    assert!(lines[0].ends_with(" s system"), "{out}");
    assert!(
        lines[1].contains(" of the CPU time went into copying payload (± "),
        "{out}"
    );
    assert!(out.contains("\nsamples   share  what\n"), "{out}");
    assert!(out.contains(" %  copying payload\n"), "{out}");
    assert!(out.contains(" %    _copy_to_iter\n"), "{out}");
    assert!(out.contains(" %  other kernel code\n"), "{out}");
    assert!(out.contains("\nsamples copying thread\n"), "{out}");
    assert!(
        out.trim_end().lines().any(|line| line.ends_with(" dd")),
        "{out}"
    );
}

/// A program that did not do its work copies nothing, which says nothing about copies.
#[test]
fn a_program_that_fails_is_named() {
    for (script, words) in [
        ("exit 3", "sh ended with exit status 3: what it was to do"),
        (
            "kill -SEGV $$",
            "sh was ended by signal 11: what it was to do",
        ),
    ] {
        let (status, out, stderr) = run(&["audit", "--", "sh", "-c", script]);
        assert_eq!((status, stderr.as_str()), (Some(0), ""));
        assert!(out.replace('\n', " ").contains(words), "{out}");
    }
    // This command ends the program, which is no failure.
    let (_, out, _) = run(&["audit", "--seconds", "1", "--", "sleep", "60"]);
    assert!(!out.contains("was ended by"), "{out}");
    let (_, out, _) = run(&["audit", "--", "true"]);
    assert!(!out.contains("exit status"), "{out}");
}

#[test]
fn folded_stacks_count_the_same_samples() {
    if !can_sample_kernel("folded_stacks_count_the_same_samples") {
        return;
    }
    let command = [
        &["audit", "--folded", "--"],
        &READER[..],
        &["count=400", "status=none"],
    ];
    let (status, out, stderr) = run(&command.concat());
    assert_eq!((status, stderr.as_str()), (Some(0), ""));
    let mut samples = 0;
    for line in out.lines() {
        let (stack, count) = line.rsplit_once(' ').unwrap();
        assert!(stack.starts_with("dd;"), "{line}");
        assert!(!stack.contains(' '), "{line}");
        samples += count.parse::<u64>().unwrap();
    }
    assert!(samples > 0, "{out}");
    assert!(out.contains("read"), "{out}");
}

#[test]
fn few_samples_give_no_share() {
    let (status, out, _) = run(&["audit", "--json", "--", "true"]);
    assert_eq!(status, Some(0));
    let report = Report::parse(&out);
    assert!(report.0["copy_share"].is_null(), "{out}");
    assert!(report.samples() < 100, "{out}");
    let (_, out, _) = run(&["audit", "--", "true"]);
    assert!(
        out.contains("How much of the CPU time went into copying payload is not known"),
        "{out}"
    );
}

#[test]
fn the_program_has_the_standard_streams_and_any_status() {
    let report = tempfile::NamedTempFile::new().unwrap();
    let path = report.path().to_str().unwrap();
    let script = "echo to standard output; echo to standard error >&2; exit 3";
    let (status, out, stderr) = run(&["audit", "-o", path, "--", "sh", "-c", script]);
    assert_eq!(status, Some(0));
    assert_eq!(out, "to standard output\n");
    assert_eq!(stderr, "to standard error\n");
    let text = fs::read_to_string(path).unwrap();
    assert!(text.starts_with("sh (PID "), "{text}");
}

#[test]
fn a_program_ends_after_the_time_with_sigterm() {
    let script = "trap 'echo ended; exit' TERM; while :; do sleep 0.01; done";
    let (status, out, _) = run(&["audit", "--seconds", "1", "--", "sh", "-c", script]);
    assert_eq!(status, Some(0));
    assert!(out.starts_with("ended\n"), "{out}");
}

#[test]
fn signals_end_the_program_and_give_a_report() {
    for signal in [Signal::TERM, Signal::INT] {
        let audit = Audit::start(&["--", "sleep", "3600"]);
        let program = loop {
            if let Some(program) = children(audit.id()).first() {
                break *program;
            }
        };
        audit.signal(signal);
        let report = audit.report();
        assert_eq!(report.0["pid"], program);
        assert_eq!(report.0["subject"], "sleep");
        assert!(!is_alive(program), "{signal:?}");
    }
}

#[test]
fn a_closed_pipe_is_a_success() {
    let mut child = program()
        .args(["audit", "--", "true"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(
        (output.status.code(), output.status.signal()),
        (Some(0), None)
    );
    assert_eq!(output.stderr, b"");
}
