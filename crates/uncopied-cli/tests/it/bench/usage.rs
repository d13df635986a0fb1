//! Mistakes on the command line.

use crate::server::{assert_fails, run};

#[test]
fn flags_that_contradict_each_other_are_refused() {
    for arguments in [
        &["bench", "--listen", "--to", "host"][..],
        &["bench", "--listen", "nowhere"],
        &["bench", "--to", "host", "--netns"],
        &["bench", "--quick", "--rounds", "2"],
        &["bench", "--json", "--csv"],
        &["bench", "--sizes", "0"],
        &["bench", "--sizes", "65m"],
        &["bench", "--sizes", "many"],
        &["bench", "--seconds", "0"],
        &["bench", "--rounds", "0"],
        &["bench", "--directions", "up"],
        &["bench", "--mechanisms", "teleport"],
        &["bench", "--child"],
    ] {
        let (status, out, stderr) = run(arguments);
        assert_eq!((status, out.as_str()), (Some(2), ""), "{arguments:?}");
        assert!(!stderr.is_empty(), "{arguments:?}");
    }
}

#[test]
fn a_direction_without_the_mechanism_is_wrong_usage() {
    assert_fails(
        &[
            "bench",
            "--directions",
            "tcp_to_file",
            "--mechanisms",
            "sendfile",
        ],
        2,
        &["nothing to measure"],
    );
}

#[test]
fn a_congestion_control_that_does_not_exist_fails() {
    assert_fails(
        &["bench", "--congestion", "no-such", "--sizes", "4k"],
        1,
        &[
            "cannot set the congestion control no-such",
            "tcp_allowed_congestion_control",
        ],
    );
}

#[test]
fn the_help_explains_directions_and_two_machines() {
    let (status, out, _) = run(&["bench", "--help"]);
    assert_eq!(status, Some(0));
    for text in [
        "--listen",
        "--to",
        "--netns",
        "--quick",
        "--sizes",
        "--directions",
        "--mechanisms",
        "--rounds",
        "--seconds",
        "--congestion",
        "--dir",
        "--json",
        "--csv",
        "--save-tuning",
        "--report",
        "file_to_tcp",
        "region-vmsplice",
        "uncopied bench --to HOST",
        "docs/bench.md",
    ] {
        assert!(out.contains(text), "{text} is missing in:\n{out}");
    }
    assert!(
        !out.contains("--child") && !out.contains("--own-namespace"),
        "{out}"
    );
}
