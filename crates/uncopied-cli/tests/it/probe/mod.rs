//! Tests of `uncopied probe`.
//!
//! | module | what it checks |
//! |---|---|
//! | `agreement` | each row says what the library itself finds out here |
//! | `refusals` | filters, limits and switches: the rows that they affect name them |
//! | `places` | interfaces without scatter-gather, and file systems |
//! | `usage` | `--require`, mistakes, the keys of `--json`, the width, the README's table |

mod agreement;
mod places;
mod refusals;
mod usage;

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::{fs, thread};

use rustix::process::Uid;
use serde_json::Value;
use tempfile::TempDir;

use crate::server::{PROGRAM, clean, program};

/// Runs the probe, which must succeed without a word on standard error, and returns its result.
fn probe(arguments: &[&str]) -> Value {
    let mut command = program();
    command.args(["probe", "--json"]).args(arguments);
    result(command.output().unwrap())
}

/// Returns the result of a probe that ran with `--json`.
fn result(output: Output) -> Value {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr, "");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Returns the row with this key.
fn row<'a>(probe: &'a Value, key: &str) -> &'a Value {
    let rows = probe["rows"].as_array().unwrap();
    rows.iter().find(|row| row["key"] == key).unwrap()
}

/// Returns the status of the row with this key.
fn status<'a>(probe: &'a Value, key: &str) -> &'a str {
    row(probe, key)["status"].as_str().unwrap()
}

/// Asserts that a row is "no", that its reason contains each of `words`, and that what would change
/// it contains `change`.
fn assert_refused(probe: &Value, key: &str, words: &[&str], change: &str) {
    let row = row(probe, key);
    assert_eq!(row["status"], "no", "{row:#}");
    assert_says(row, words, change);
}

/// Asserts that the reason of a finding contains each of `words`, and that what would change it
/// contains `change`.
fn assert_says(finding: &Value, words: &[&str], change: &str) {
    let why = finding["why"].as_str().unwrap();
    for word in words {
        assert!(why.contains(word), "{word:?} is missing in {finding:#}");
    }
    assert!(
        finding["change"].to_string().contains(change),
        "{finding:#}"
    );
}

/// A copy of the program that every user may run, wherever the original is.
struct PublicProgram {
    directory: TempDir,
}

impl PublicProgram {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), everybody).unwrap();
        fs::copy(PROGRAM, directory.path().join("uncopied")).unwrap();
        Self { directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("uncopied")
    }

    /// Returns a command that runs the probe with `--json`, in the directory of the copy.
    fn probe(&self) -> Command {
        self.behind::<&str>(&[])
    }

    /// The same, with the words of another command before it.
    fn behind<S: AsRef<OsStr>>(&self, words: &[S]) -> Command {
        let path = self.path();
        let mut words = words.iter().map(AsRef::as_ref).chain([path.as_os_str()]);
        let mut command = clean(Command::new(words.next().unwrap()));
        command.args(words).args(["probe", "--json"]);
        command.current_dir(self.directory.path());
        command
    }
}

/// Runs `body` on a thread that belongs to this user and has no capabilities, as do the processes
/// that it starts. If the tests do not run as root, they belong to an ordinary user anyway.
fn as_user<T: Send>(user: u32, body: impl FnOnce() -> T + Send) -> T {
    let body = || {
        if is_root() {
            rustix::thread::set_thread_uid(Uid::from_raw(user)).unwrap();
        }
        body()
    };
    thread::scope(|scope| scope.spawn(body).join().unwrap())
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
