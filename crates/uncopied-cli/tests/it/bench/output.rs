//! Rows and figures, in all forms of the output.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::{BRIEF, MECHANISMS, assert_complete, brief, cells, results};
use crate::server::{PROGRAM, assert_fails, clean};

/// The user and the group "nobody".
const NOBODY: u32 = 65534;

#[test]
fn an_ordinary_user_measures_every_mechanism_in_every_direction() {
    // The directory of the program may be closed to other users.
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let copy = directory.path().join("uncopied");
    fs::copy(PROGRAM, &copy).unwrap();
    let mut command = clean(Command::new(copy));
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
        .args(BRIEF)
        .args(["--sizes", "1k,16k", "--json", "--dir"])
        .arg(directory.path());
    let results = results(&command.output().unwrap());
    assert_eq!(results["format"], 1);
    assert_eq!(results["setting"]["network"], "loopback");
    assert_eq!(results["setting"]["rounds"], 1);
    assert!(
        !results["setting"]["cannot_show"]
            .as_array()
            .unwrap()
            .is_empty()
    );

    let expected: Vec<_> = MECHANISMS
        .iter()
        .flat_map(|(direction, mechanisms)| {
            let sizes = [1 << 10, 16 << 10];
            sizes
                .into_iter()
                .flat_map(move |size| mechanisms.iter().map(move |it| (*direction, size, *it)))
        })
        .collect();
    let rows = cells(&results).iter().map(|cell| {
        let text = |name: &str| cell[name].as_str().unwrap();
        (
            text("direction"),
            cell["size"].as_u64().unwrap(),
            text("mechanism"),
        )
    });
    assert_eq!(rows.collect::<Vec<_>>(), expected);
    for cell in cells(&results) {
        match &cell["refused"] {
            serde_json::Value::Null => assert_complete(cell),
            // Less than a page; a region may be refused to an ordinary user, and io_uring as well.
            why => {
                let mechanism = cell["mechanism"].as_str().unwrap();
                let may_be =
                    cell["size"] == 1024 || matches!(mechanism, "region-vmsplice" | "send_zc");
                assert!(may_be, "{cell}");
                assert!(!why.as_str().unwrap().is_empty());
                assert!(cell["gb_per_second"].is_null(), "{cell}");
            }
        }
    }
    // The file that was sent, and the one that was received, have no names.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
}

#[test]
fn shares_say_how_the_bytes_were_moved() {
    let output = brief(&["--sizes", "64k", "--json"]).output().unwrap();
    let results = results(&output);
    let share = |direction: &str, mechanism: &str, name: &str| {
        let cell = cells(&results)
            .iter()
            .find(|cell| cell["direction"] == direction && cell["mechanism"] == mechanism);
        cell.unwrap()[name].as_f64()
    };
    assert_eq!(
        share("file_to_tcp", "sendfile", "zero_copy_share"),
        Some(1.0)
    );
    assert_eq!(share("file_to_tcp", "copy", "copied_share"), Some(1.0));
    assert_eq!(
        share("memory_to_tcp", "vmsplice", "zero_copy_share"),
        Some(1.0)
    );
    // Over loopback, the kernel copies these, and says so.
    assert_eq!(
        share("memory_to_tcp", "msg_zerocopy", "kernel_copied_share"),
        Some(1.0)
    );
    assert_eq!(
        share("tcp_to_file", "splice", "kernel_copied_share"),
        Some(1.0)
    );
    assert_eq!(
        share("tcp_to_null", "discard", "zero_copy_share"),
        Some(1.0)
    );
    assert_eq!(share("tcp_to_tcp", "splice", "zero_copy_share"), Some(1.0));
    assert!(share("tcp_to_memory", "map_receive", "mapped_share").unwrap() > 0.5);
    assert_eq!(share("tcp_to_memory", "copy", "mapped_share"), Some(0.0));
    let notified = results["thresholds"].as_array().unwrap().iter();
    let notified = notified
        .clone()
        .find(|it| it["key"] == "notified_min_bytes")
        .unwrap();
    assert_eq!(notified["measured"], false);
    assert_eq!(notified["from_bytes"], notified["default_bytes"]);
}

#[test]
fn csv_has_a_line_for_each_row() {
    let mechanisms = [
        "--mechanisms",
        "sendfile,copy",
        "--directions",
        "file_to_tcp",
    ];
    let output = brief(&["--sizes", "4k,5000", "--csv"])
        .args(mechanisms)
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let mut reader = csv::Reader::from_reader(&output.stdout[..]);
    let column =
        |name: &str, header: &csv::StringRecord| header.iter().position(|it| it == name).unwrap();
    let header = reader.headers().unwrap().clone();
    let (size, mechanism) = (column("size_bytes", &header), column("mechanism", &header));
    let rate = column("gb_per_second", &header);
    let rows: Vec<_> = reader.records().map(|row| row.unwrap()).collect();
    let named: Vec<_> = rows
        .iter()
        .map(|row| (&row[size], &row[mechanism]))
        .collect();
    let expected = [
        ("4096", "sendfile"),
        ("4096", "copy"),
        ("5000", "sendfile"),
        ("5000", "copy"),
    ];
    assert_eq!(named, expected);
    assert!(
        rows.iter()
            .all(|row| row[rate].parse::<f64>().unwrap() > 0.0)
    );
}

#[test]
fn the_text_fits_into_100_columns() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = brief(&["--sizes", "64k", "--output"])
        .arg(file.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!((output.stdout, output.stderr), (vec![], vec![]));
    let text = fs::read_to_string(file.path()).unwrap();
    for line in text.lines().skip(2) {
        assert!(line.chars().count() <= 100, "{line}");
    }
    for (direction, mechanisms) in MECHANISMS {
        assert!(text.contains(direction), "{text}");
        assert!(mechanisms.iter().all(|it| text.contains(it)), "{text}");
    }
    for words in [
        "What this setting cannot show",
        "Thresholds for this machine",
        "What the library chooses by itself",
        "sendfile_min_bytes = ",
        "There was one round",
    ] {
        assert!(text.contains(words), "{words:?} is missing in:\n{text}");
    }
}

#[test]
fn the_report_is_a_page_that_names_the_machine() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = brief(&[
        "--sizes",
        "4k,64k",
        "--directions",
        "file_to_tcp",
        "--json",
        "--report",
    ])
    .arg(file.path())
    .output()
    .unwrap();
    let results = results(&output);
    let page = fs::read_to_string(file.path()).unwrap();
    assert!(page.starts_with("<!DOCTYPE html>"), "{page}");
    for word in [
        results["machine"]["kernel"].as_str().unwrap(),
        "sendfile",
        "<svg",
    ] {
        assert!(page.contains(word), "{word:?} is missing");
    }
}

#[test]
fn the_thresholds_are_saved_as_a_tuning() {
    let directory = tempfile::tempdir().unwrap();
    let saved = directory.path().join("tuning");
    let output = brief(&["--sizes", "4k,64k", "--json", "--save-tuning"])
        .arg(&saved)
        .output()
        .unwrap();
    let results = results(&output);
    let text = fs::read_to_string(&saved).unwrap();
    let tuning = uncopied::Tuning::from_text(&text).unwrap();
    let in_json = results["tuning"].as_object().unwrap();
    assert_eq!(in_json.len(), uncopied::Tuning::KEYS.len());
    for key in uncopied::Tuning::KEYS {
        let saved = tuning.get(key).filter(|&it| it != uncopied::Tuning::NEVER);
        assert_eq!(in_json[key].as_u64(), saved, "{key}");
    }
    let mode = fs::metadata(&saved).unwrap().permissions().mode();
    assert_eq!(mode & 0o600, 0o600);
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    // The commands read what was saved.
    let mut command = brief(&["--sizes", "4k", "--directions", "tcp_to_tcp", "--json"]);
    super::results(&command.env("UNCOPIED_TUNING", &saved).output().unwrap());
}

#[test]
fn files_that_cannot_be_written_fail_before_anything_is_measured() {
    for flag in ["--output", "--save-tuning", "--report"] {
        assert_fails(
            &["bench", flag, "/nonexistent/file"],
            1,
            &["cannot write", "/nonexistent/file", "choose a file"],
        );
    }
}
