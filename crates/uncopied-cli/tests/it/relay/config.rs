//! Flags, environment variables and the configuration file, with `--check`.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::server::{program, run};

/// A check of a configuration.
fn check(arguments: &[&str]) -> Command {
    let mut command = program();
    command.args(["relay", "--check"]).args(arguments);
    command
}

/// Runs a check that must succeed, and returns what it prints.
fn accepted(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    assert_eq!(stderr, "");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a check that must fail with a status and one line that contains each of `words`.
fn refused(command: &mut Command, status: i32, words: &[&str]) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(status), "{stderr}");
    assert_eq!(output.stdout, b"");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing in {stderr}");
    }
}

#[test]
fn flags_and_variables_are_a_configuration() {
    let all = accepted(&mut check(&[":0", "db1:5432=3", "unix:/run/db"]));
    assert_eq!(all, "1 listener, 2 targets\n");
    let mut from_variables = check(&[]);
    from_variables
        .env("UNCOPIED_RELAY_LISTEN", "unix:/run/relay")
        .env("UNCOPIED_RELAY_TARGETS", "a:1,b:1=2,[::1]:3")
        .env("UNCOPIED_RELAY_BALANCE", "source-hash");
    assert_eq!(accepted(&mut from_variables), "1 listener, 3 targets\n");
}

#[test]
fn wrong_usage_is_status_2_and_one_line() {
    for (arguments, words) in [
        (&[][..], &["<LISTEN>", "<TARGET>"][..]),
        (&["5432"], &["<TARGET>"]),
        (&["5432", "db"], &["'db'", "expected HOST:PORT"]),
        (&["db:5432", "a:1"], &["'db:5432'", "expected IP:PORT"]),
        (&["5432", "a:1=0"], &["the weight must be from 1 to 256"]),
        (
            &["5432", "a:1", "b:1", "a:1"],
            &["the target a:1 is given twice"],
        ),
        (
            &["5432", "a:1", "--balance=random"],
            &["'random'", "least-connections"],
        ),
        (&["5432", "a:1", "--rise=0"], &["--rise <N>", "1..=1000"]),
        (
            &["5432", "a:1", "--keepalive=1ms"],
            &["--keepalive <TIME|off>", "from 1s to 32767s"],
        ),
        (
            &["5432", "a:1", "--config=x"],
            &["cannot be used with", "--config <FILE>"],
        ),
    ] {
        refused(&mut check(arguments), 2, words);
    }
}

#[test]
fn a_wrong_variable_is_named() {
    let mut wrong = check(&["5432", "a:1"]);
    wrong.env("UNCOPIED_RELAY_FALL", "x");
    refused(&mut wrong, 2, &["'x' for UNCOPIED_RELAY_FALL"]);
    // A flag on the command line is not blamed on the variable.
    let mut wrong = check(&["5432", "a:1", "--fall=y"]);
    wrong.env("UNCOPIED_RELAY_FALL", "2");
    refused(&mut wrong, 2, &["'y' for '--fall <N>'"]);
}

#[test]
fn a_mistake_in_a_file_names_the_file_the_line_and_the_key() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    let path = file.to_str().unwrap();
    let check = || check(&["--config", path]);
    refused(
        &mut check(),
        1,
        &["relay.toml: no such file or directory", "--config"],
    );
    for (text, words) in [
        (
            "\n[[listener]]\nlisten = 5432\n",
            &["relay.toml:2: listener: missing field 'targets'"][..],
        ),
        (
            "\n\nbalance = \"random\"\n",
            &["relay.toml:3: balance: expected one of round-robin"],
        ),
        (
            "# a\ntreads = 2\n",
            &[
                "relay.toml:2: unknown field 'treads', expected one of",
                "'threads'",
            ],
        ),
    ] {
        fs::write(&file, text).unwrap();
        refused(&mut check(), 1, words);
    }
    fs::write(&file, "[[listener]]\nlisten = 5432\ntargets = [\"a:1\"]\n").unwrap();
    assert_eq!(accepted(&mut check()), "1 listener, 1 target\n");
}

/// The file in the documentation is accepted, and has every flag that can be in a file.
#[test]
fn the_documented_file_has_every_key() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/relay.md");
    let page = fs::read_to_string(page).unwrap();
    let (_, rest) = page.split_once("```toml\n").unwrap();
    let (text, _) = rest.split_once("```").unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("relay.toml");
    fs::write(&file, text).unwrap();
    let checked = accepted(&mut check(&["--config", file.to_str().unwrap()]));
    assert_eq!(checked, "2 listeners, 3 targets\n");

    let (status, help, _) = run(&["relay", "--help"]);
    assert_eq!(status, Some(0));
    let flags: Vec<_> = help
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("--"))
        .map(|line| line.split([' ', '[', '=']).next().unwrap())
        .filter(|flag| {
            flag.bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte == b'-')
        })
        .filter(|flag| !["config", "check", "help"].contains(flag))
        .collect();
    assert_eq!(flags.len(), 23, "{flags:?}");
    for flag in flags {
        let is_set = |line: &str| line.starts_with(&format!("{flag} = "));
        assert!(text.lines().any(is_set), "{flag} is missing");
    }
}
