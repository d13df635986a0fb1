//! A mechanism that is refused is a row, and no failure.

use super::{assert_complete, brief, cells, results};
use crate::seccomp::filtered;

#[test]
fn a_refused_system_call_is_a_row_that_says_so() {
    let start = || {
        brief(&[
            "--sizes",
            "64k",
            "--directions",
            "file_to_tcp,memory_to_tcp",
            "--json",
        ])
        .output()
        .unwrap()
    };
    let calls = [libc::SYS_vmsplice, libc::SYS_sendfile];
    let results = results(&filtered(&calls, libc::EPERM, start));
    let mut refused = Vec::new();
    for cell in cells(&results) {
        match cell["refused"].as_str() {
            None => assert_complete(cell),
            Some(why) => {
                assert!(why.contains("not permitted"), "{why}");
                refused.push(cell["mechanism"].as_str().unwrap());
            }
        }
    }
    assert_eq!(refused, ["sendfile", "vmsplice", "region-vmsplice"]);
    // What the library chooses is something else, and its threshold is not claimed to be known.
    let auto = |direction: &str| {
        let mut cells = cells(&results).iter();
        let cell = cells.find(|it| it["direction"] == direction && it["mechanism"] == "auto");
        cell.unwrap()["chosen"].clone()
    };
    assert_eq!(auto("file_to_tcp"), serde_json::json!(["splice"]));
    assert_eq!(auto("memory_to_tcp"), serde_json::json!(["copy"]));
    let thresholds = results["thresholds"].as_array().unwrap();
    for key in ["sendfile_min_bytes", "vmsplice_min_bytes"] {
        let threshold = thresholds.iter().find(|it| it["key"] == key).unwrap();
        assert_eq!(threshold["measured"], false);
        assert!(
            threshold["why"].as_str().unwrap().contains("refused"),
            "{threshold}"
        );
    }
}

#[test]
fn a_call_that_the_receiver_is_refused_is_a_row_as_well() {
    let start = || {
        brief(&[
            "--sizes",
            "64k",
            "--directions",
            "tcp_to_file,tcp_to_tcp",
            "--json",
        ])
        .output()
        .unwrap()
    };
    let results = results(&filtered(&[libc::SYS_splice], libc::EPERM, start));
    for cell in cells(&results) {
        match cell["mechanism"].as_str().unwrap() {
            "splice" => assert!(cell["refused"].is_string(), "{cell}"),
            _ => {
                assert_complete(cell);
                assert_eq!(cell["chosen"], serde_json::json!(["copy"]), "{cell}");
            }
        }
    }
}
