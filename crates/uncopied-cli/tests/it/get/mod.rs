//! Tests of `uncopied get`.
//!
//! | module | what it checks |
//! |---|---|
//! | `bodies` | all ways in which a body arrives, from real servers too; redirects, cuts, pipes |
//! | `lies` | servers that break the protocol: a clear error, and no file |
//! | `resume` | `-c`, files that changed, kills at random points |
//! | `many` | several URLs, kept connections, several connections for one file |
//! | `write_errors` | files and outputs that cannot be written to |
//! | `secure` | TLS, proxies, and where credentials go |
//! | `usage` | names, files that exist, checksums, limits, the summary, the progress display |

mod bodies;
mod lies;
mod many;
pub(crate) mod resume;
mod scripted;
mod secure;
mod usage;
mod write_errors;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use crate::server::program;

/// Returns a command that downloads into `directory`, without proxies and without long pauses.
fn get(directory: &Path, arguments: &[&str]) -> Command {
    let mut command = program();
    for variable in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
        command.env_remove(variable);
        command.env_remove(variable.to_uppercase());
    }
    command
        .args(["get", "--retry-wait", "1ms"])
        .args(arguments)
        .current_dir(directory);
    command
}

/// Runs a download in `directory` behind other words of a command, such as those of strace.
fn get_behind(words: &[&str], directory: &Path, arguments: &[&str]) -> Command {
    let inner = get(directory, arguments);
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).arg(inner.get_program());
    command.args(inner.get_args()).current_dir(directory);
    for (name, value) in inner.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    command
}

/// Runs a download that must succeed without a word.
fn get_ok(directory: &Path, arguments: &[&str]) -> Output {
    let output = get(directory, arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {stderr}");
    assert_eq!(stderr, "", "{arguments:?}");
    output
}

/// Runs a download that must fail with one line that contains each of `words`.
fn get_fails(directory: &Path, arguments: &[&str], words: &[&str]) -> String {
    let output = get(directory, arguments).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing in {stderr}");
    }
    stderr
}

/// Returns the names of all files in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
