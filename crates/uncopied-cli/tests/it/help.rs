//! Tests of the help, the shell completions and the manual page.

use std::io::Read as _;
use std::process::Stdio;

use crate::server::{program, run};

#[test]
fn the_version_is_that_of_the_package() {
    let (status, out, _) = run(&["--version"]);
    assert_eq!(status, Some(0));
    assert_eq!(out, format!("uncopied {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn help_lists_every_flag_with_its_default_and_its_variable() {
    let (status, out, _) = run(&["serve", "--help"]);
    assert_eq!(status, Some(0));
    for text in [
        "--listen",
        "127.0.0.1:8080",
        "UNCOPIED_LISTEN",
        "--threads",
        "--socket-mode",
        "--mechanism",
        "--index",
        "--list",
        "--hidden",
        "--follow-links",
        "--spa",
        "--error-page",
        "--header",
        "--cache-control",
        "--etag",
        "--mime",
        "[default: mtime]",
        "--no-precompressed",
        "--access-log",
        "--max-connections",
        "--header-timeout",
        "[default: 30s]",
        "--send-timeout",
        "[default: 60s]",
        "--keepalive-timeout",
        "[default: 75s]",
        "--keepalive-time",
        "[default: 1h]",
        "--grace",
        "SIGUSR1",
        "SIGHUP",
        "--access-log-file",
        "LISTEN_FDS",
        "UNCOPIED_TUNING",
        "3 requests, 3146611 bytes sent: sendfile 3145728",
    ] {
        assert!(out.contains(text), "{text} is missing in:\n{out}");
    }
}

#[test]
fn the_help_of_relay_explains_targets_the_file_and_signals() {
    let (status, out, _) = run(&["relay", "--help"]);
    assert_eq!(status, Some(0));
    for text in [
        "Usage: uncopied relay [OPTIONS] <LISTEN> <TARGET>...\n",
        "uncopied relay [OPTIONS] --config <FILE>\n",
        "[IPv6]:PORT",
        "db1:5432=3",
        "UNCOPIED_RELAY_TARGETS",
        "UNCOPIED_TUNING",
        "[[listener]]",
        "--balance <RULE>",
        "least-connections: ",
        "[default: 5s, or off with a",
        "--reuse-port[=<on|off>]",
        "SIGHUP",
    ] {
        assert!(out.contains(text), "{text} is missing in:\n{out}");
    }
}

#[test]
fn only_existing_commands_are_listed() {
    let (_, out, _) = run(&["--help"]);
    for name in [
        "serve",
        "get",
        "relay",
        "probe",
        "audit",
        "bench",
        "completions",
        "man",
    ] {
        assert!(out.contains(name), "{out}");
    }
    assert!(!out.contains("\n  tune "), "{out}");
    let (status, out, stderr) = run(&[]);
    assert_eq!((status, out.as_str()), (Some(2), ""));
    assert!(stderr.contains("Usage:"), "{stderr}");
}

#[test]
fn completions_include_the_flags() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let (status, out, _) = run(&["completions", shell]);
        assert_eq!(status, Some(0), "{shell}");
        assert!(out.contains("keepalive-timeout"), "{shell}: {out}");
    }
}

#[test]
fn the_manual_is_roff_and_covers_serve() {
    let (status, out, _) = run(&["man"]);
    assert_eq!(status, Some(0));
    assert!(out.contains(".TH uncopied 1"), "{out}");
    assert!(out.contains("SERVE OPTIONS"), "{out}");
    assert!(out.contains("keepalive\\-timeout"), "{out}");
    assert!(out.contains("UNCOPIED_GRACE"), "{out}");
    assert!(out.contains("RELAY OPTIONS"), "{out}");
    assert!(out.contains("UNCOPIED_RELAY_GRACE"), "{out}");
    assert!(out.contains("SIGUSR1"), "{out}");
    assert_eq!(out.matches("\n.SH OPTIONS\n").count(), 1, "{out}");
}

#[test]
fn a_closed_pipe_is_a_success() {
    for arguments in [&["man"][..], &["completions", "bash"], &["--help"]] {
        let mut child = program()
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        drop(child.stdout.take());
        let mut stderr = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut stderr)
            .unwrap();
        assert_eq!(
            child.wait().unwrap().code(),
            Some(0),
            "{arguments:?}: {stderr}"
        );
        assert_eq!(stderr, "");
    }
}
