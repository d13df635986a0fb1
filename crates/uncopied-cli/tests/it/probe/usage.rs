//! The command line, and the form of the output.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{probe, row, status};
use crate::seccomp::filtered;
use crate::server::{assert_fails, program, run};

#[test]
fn what_is_required_must_not_be_missing() {
    let (code, out, stderr) = run(&["probe", "--require", "copy,sendfile", "--require", "splice"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(out.contains("sendfile"), "{out}");

    let arguments = ["probe", "--require", "splice,send_zc,sendfile,vmsplice"];
    let calls = [libc::SYS_io_uring_setup, libc::SYS_sendfile];
    let output = filtered(&calls, libc::EPERM, || {
        program().args(arguments).output().unwrap()
    });
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    let expected = "uncopied: required, but missing here: sendfile (sendfile is forbidden by the \
                    seccomp filter of this process (EPERM)), send_zc (io_uring is forbidden by the \
                    seccomp filter of this process (EPERM))\n";
    assert_eq!(stderr, expected);
    // The report is printed nevertheless.
    assert!(
        String::from_utf8(output.stdout)
            .unwrap()
            .contains("WHAT WORKS")
    );

    // What is missing, but not required, is no failure.
    let output = filtered(&calls, libc::EPERM, || {
        program()
            .args(["probe", "--require", "splice"])
            .output()
            .unwrap()
    });
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn unknown_names_are_wrong_usage() {
    for (arguments, words) in [
        (
            &["probe", "--require", "teleport"][..],
            &["teleport", "sendfile", "kernel_tls"][..],
        ),
        (&["probe", "--require", "sendfile,"], &["--require"]),
        (&["probe", "file"], &["file"]),
        (&["probe", "--interface"], &["--interface"]),
    ] {
        assert_fails(arguments, 2, words);
    }
}

/// Adds the keys of all objects in a value.
fn collect_keys(value: &Value, keys: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (key, value) in object {
                keys.insert(key.clone());
                collect_keys(value, keys);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| collect_keys(value, keys)),
        _ => {}
    }
}

/// Machines rely on the keys: each one is documented, and the rows are complete.
#[test]
fn the_documentation_has_every_key_and_every_row() {
    let documentation = include_str!("../../../../../docs/probe.md");
    let probe = probe(&[]);
    let mut keys = BTreeSet::new();
    collect_keys(&probe, &mut keys);
    assert!(keys.len() > 40, "{keys:?}");
    for key in &keys {
        assert!(
            documentation.contains(&format!("`{key}`")),
            "{key} is not documented"
        );
    }
    assert_eq!(probe["format"], 1);
    for row in probe["rows"].as_array().unwrap() {
        let key = row["key"].as_str().unwrap();
        assert!(
            documentation.contains(&format!("| `{key}` |")),
            "{key} is not documented"
        );
    }
    for setting in probe["settings"].as_array().unwrap() {
        let name = setting["name"].as_str().unwrap();
        assert!(documentation.contains(name), "{name} is not documented");
    }
}

/// The README's table and the probe have the same rows, apart from what only the library does.
#[test]
fn the_readme_has_the_same_rows() {
    let readme = include_str!("../../../../../README.md");
    let (_, table) = readme.split_once("## What works today").unwrap();
    let (table, _) = table.split_once("\n## ").unwrap();
    let rows = table.lines().filter_map(|line| line.strip_prefix("| "));
    let only_of_the_library = [
        "path",
        "sockets to files",
        "sockets to sockets",
        "copying from anything to anything",
    ];
    let in_readme: BTreeSet<_> = rows
        .map(|line| line.split_once(" |").unwrap().0)
        .filter(|title| !only_of_the_library.contains(title))
        .collect();
    let probe = probe(&[]);
    let rows = probe["rows"].as_array().unwrap();
    let titles: BTreeSet<_> = rows
        .iter()
        .map(|row| row["title"].as_str().unwrap())
        .collect();
    assert_eq!(titles, in_readme);
}

#[test]
fn the_report_fits_into_80_columns() {
    let (code, out, stderr) = run(&["probe"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    for line in out.lines() {
        assert!(line.chars().count() <= 80, "{line}");
        assert!(!line.contains('\u{1b}'), "{line:?}");
        assert_eq!(line.trim_end(), line);
    }
    let probe = probe(&[]);
    for row in probe["rows"].as_array().unwrap() {
        let key = row["key"].as_str().unwrap();
        let line = format!("  {key:<14} {:<6} ", row["status"].as_str().unwrap());
        assert!(out.contains(&line), "{line:?} is missing in {out}");
    }
    for heading in ["INTERFACE lo", "PATH .", "SETTINGS", "WHAT ROOT WOULD ADD"] {
        assert!(
            out.contains(&format!("\n{heading}\n")),
            "{heading} is missing in {out}"
        );
    }
}

/// Two runs agree, so that a deployment check does not depend on luck.
#[test]
fn the_result_is_stable() {
    let first = probe(&[]);
    for _ in 0..5 {
        let again = probe(&[]);
        for row_of_first in first["rows"].as_array().unwrap() {
            let key = row_of_first["key"].as_str().unwrap();
            assert_eq!(
                status(&again, key),
                status(&first, key),
                "{:#}",
                row(&again, key)
            );
        }
    }
}
