//! Describes the machine and the tools for the report. For `serve`, also sets the machine's default
//! congestion control, because the servers are separate programs and their sockets cannot be
//! changed from here. No run changes any other setting of the machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use uncopied_measure::machine::Machine;

use crate::error::{Context, Error};
use crate::process;

/// The content of Cargo.lock, which has the versions of the dependencies that this program is built
/// with.
const LOCK: &str = include_str!("../../Cargo.lock");

const CONGESTION_PATH: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// The file system type (`f_type`) that `statfs` reports for a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// The machine's default congestion control for new TCP sockets, as set for a run. If the run
/// changed the default, dropping this value restores the previous algorithm.
pub(crate) struct CongestionSetting {
    current: String,
    previous: Option<String>,
}

impl CongestionSetting {
    /// Makes `wanted` the default algorithm. If that fails, for example for lack of permission,
    /// prints a warning and keeps the current default. The comparison is fair either way, because
    /// all contenders use the same algorithm.
    pub(crate) fn set(wanted: &str) -> Result<Self, Error> {
        let previous = read_congestion()?;
        if previous == wanted {
            return Ok(Self {
                current: previous,
                previous: None,
            });
        }
        if let Err(error) = fs::write(CONGESTION_PATH, wanted) {
            eprintln!(
                "compare: congestion control stays {previous}: cannot set {wanted} ({error}); run \
                 this as root, or run sysctl net.ipv4.tcp_congestion_control={wanted} first"
            );
        }
        let current = read_congestion()?;
        let changed = current != previous;
        Ok(Self {
            current,
            previous: changed.then_some(previous),
        })
    }

    /// Returns an error if another program has changed the default since the run began, because
    /// figures measured with different algorithms cannot be compared.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let now = read_congestion()?;
        if now == self.current {
            return Ok(());
        }
        Err(Error::Unavailable(format!(
            "another program changed the congestion control from {} to {now} during the run: \
             repeat the run without that program",
            self.current
        )))
    }

    /// The name of the algorithm in use.
    pub(crate) fn name(&self) -> &str {
        &self.current
    }
}

impl Drop for CongestionSetting {
    fn drop(&mut self) {
        if let Some(previous) = &self.previous
            && let Err(error) = fs::write(CONGESTION_PATH, previous)
        {
            eprintln!("compare: cannot restore the congestion control {previous}: {error}");
        }
    }
}

fn read_congestion() -> Result<String, Error> {
    fs::read_to_string(CONGESTION_PATH)
        .map(|name| name.trim().to_owned())
        .context(|| format!("cannot read {CONGESTION_PATH}"))
}

/// Returns the directory in which a run creates its files: `directory` if it is given, otherwise
/// the directory of this program's executable.
///
/// Prints a warning if the directory is on a tmpfs: for a file on a tmpfs, `sendfile` takes another
/// path through the kernel than for a file on a disk, so the figures would not be typical.
pub(crate) fn scratch_parent(directory: Option<&Path>) -> Result<PathBuf, Error> {
    let parent = match directory {
        Some(directory) => directory.to_owned(),
        None => {
            let own = process::own_program()?;
            own.parent().unwrap_or(Path::new(".")).to_owned()
        }
    };
    let status =
        rustix::fs::statfs(&parent).context(|| format!("cannot inspect {}", parent.display()))?;
    if status.f_type as u64 == TMPFS_MAGIC {
        eprintln!(
            "compare: {} is on a tmpfs, where sendfile uses other kernel code than on a disk's \
             file system: choose another directory with --dir",
            parent.display()
        );
    }
    Ok(parent)
}

/// Returns the current date in UTC, as in `2026-01-31`.
pub(crate) fn today() -> Result<String, Error> {
    first_line_of("date", &["-u", "+%F"])
        .ok_or_else(|| Error::Unavailable("cannot run date(1): give --out".into()))
}

/// The machine's host name, or `machine` if it has none.
pub(crate) fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .map(|name| name.trim().to_owned())
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "machine".to_owned())
}

/// Returns the facts for the report's table, each with its name: the machine, the file system that
/// holds `files`, the compiler, and the commit if this is a git checkout.
pub(crate) fn facts(files: &Path) -> Vec<(&'static str, String)> {
    let unknown = || "unknown".to_owned();
    let machine = Machine::describe();
    let file_system = first_line_of("stat", &["-f", "-c", "%T", &files.to_string_lossy()]);
    let mut facts = vec![
        ("CPU", machine.cpu),
        ("CPUs", machine.cpus.to_string()),
        ("Memory", format!("{} kB", machine.memory_bytes / 1024)),
        ("Kernel", machine.kernel),
        ("File system", file_system.unwrap_or_else(unknown)),
        (
            "Compiler",
            first_line_of("rustc", &["--version"]).unwrap_or_else(unknown),
        ),
    ];
    if let Some(commit) = first_line_of("git", &["describe", "--always", "--dirty"]) {
        facts.push(("Commit", commit));
    }
    facts
}

/// Returns the kernel's settings for the sizes of TCP socket buffers, for the report. Each value
/// has the minimum, the default and the maximum size in bytes.
pub(crate) fn tcp_facts() -> Vec<(&'static str, String)> {
    ["tcp_wmem", "tcp_rmem"]
        .into_iter()
        .filter_map(|name| {
            let text = fs::read_to_string(format!("/proc/sys/net/ipv4/{name}")).ok()?;
            let words: Vec<&str> = text.split_whitespace().collect();
            Some((name, words.join(" ")))
        })
        .collect()
}

/// Returns the name and the version of a dependency that this program is built with, or only the
/// name if Cargo.lock does not have the dependency.
pub(crate) fn dependency_version(name: &str) -> String {
    let entry = format!("name = \"{name}\"\nversion = \"");
    match LOCK.split_once(&entry) {
        Some((_, rest)) => {
            let version = rest.split('"').next().unwrap_or_default();
            format!("{name} {version}")
        }
        None => name.to_owned(),
    }
}

/// Returns the name and the version of this program, for contenders that are part of it and use no
/// library whose version matters.
pub(crate) fn own_version() -> String {
    format!("compare {}", env!("CARGO_PKG_VERSION"))
}

/// Finds a program. Searches `PATH`, and then the directories where servers are usually installed,
/// which are not in every user's `PATH`.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin", "/usr/local/nginx/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// Runs a program, and returns the first line of its standard output, or of its standard error if
/// its standard output is empty. Returns `None` if the program cannot be run or exits with a
/// failure.
pub(crate) fn first_line_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    if !output.status.success() {
        return None;
    }
    let printed = if output.stdout.is_empty() {
        output.stderr
    } else {
        output.stdout
    };
    let text = String::from_utf8_lossy(&printed);
    Some(text.lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_the_lock_file() {
        let axum = dependency_version("axum");
        assert!(axum.starts_with("axum 0."), "{axum}");
        assert_eq!(dependency_version("no-such-crate"), "no-such-crate");
    }

    #[test]
    fn a_program_that_fails_has_no_first_line() {
        assert_eq!(first_line_of("false", &[]), None);
        assert_eq!(first_line_of("no-such-program", &[]), None);
        assert_eq!(first_line_of("echo", &["one"]).as_deref(), Some("one"));
    }
}
