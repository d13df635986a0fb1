//! Tests of `UNCOPIED_TUNING`: what a command does with the file, and without a usable one.

use std::fs;

use crate::client::{connect, get};
use crate::server::{BIG_FILE_BYTES, Server, program, site};

#[test]
fn serve_copies_what_the_tuning_says_is_cheaper_to_copy() {
    let site = site();
    let tuning = tempfile::NamedTempFile::new().unwrap();
    for (min_bytes, is_copied) in [("never", true), ("1", false)] {
        fs::write(tuning.path(), format!("sendfile_min_bytes = {min_bytes}\n")).unwrap();
        let mut command = program();
        command.args(["serve", "--listen", "127.0.0.1:0"]);
        command
            .arg(site.path())
            .env("UNCOPIED_TUNING", tuning.path());
        let server = Server::spawn(command, 1);
        let response = get(&mut connect(server.address()), "/big");
        assert_eq!(response.body.len(), BIG_FILE_BYTES);
        let totals = server.stop().totals();
        let sent = (totals.sendfile, totals.mmap_write);
        match is_copied {
            true => assert_eq!(sent, (0, BIG_FILE_BYTES as u64), "{totals:?}"),
            false => assert_eq!(sent, (BIG_FILE_BYTES as u64, 0), "{totals:?}"),
        }
    }
}

#[test]
fn commands_refuse_to_start_with_a_wrong_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    fs::write(path("key"), "\nspeed = 1\n").unwrap();
    fs::write(path("number"), "region_min_bytes = 2 MiB\n").unwrap();
    fs::write(path("huge"), vec![b'\n'; 1 << 20]).unwrap();
    let commands: [&[&str]; 5] = [
        &["serve", "/nowhere"],
        &["get", "http://127.0.0.1:1/"],
        &["relay", "127.0.0.1:0", "127.0.0.1:1"],
        &["relay", "--check", "127.0.0.1:0", "127.0.0.1:1"],
        &["bench", "--quick"],
    ];
    for arguments in commands {
        for (name, words) in [
            ("absent", ": no such file or directory;"),
            ("", " is not a regular file;"),
            ("key", ", line 2: \"speed\" is no threshold"),
            ("number", ", line 1: \"2 MiB\" is not a number of bytes"),
            ("huge", " is longer than 65536 bytes;"),
        ] {
            let output = program()
                .args(arguments)
                .env("UNCOPIED_TUNING", path(name))
                .output()
                .unwrap();
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
            assert_eq!(stderr.lines().count(), 1, "{stderr}");
            for words in [
                "UNCOPIED_TUNING: ",
                &path(name),
                words,
                "unset the variable",
            ] {
                assert!(stderr.contains(words), "{words:?} is missing in {stderr}");
            }
        }
    }
}

/// Commands that only look at the machine are to work in any case.
#[test]
fn commands_that_move_no_bytes_ignore_the_file() {
    for arguments in [["completions", "bash"], ["serve", "--help"]] {
        let status = program()
            .args(arguments)
            .env("UNCOPIED_TUNING", "/nowhere")
            .output()
            .unwrap()
            .status;
        assert!(status.success(), "{arguments:?}");
    }
}
