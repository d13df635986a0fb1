//! Runs the program under strace, and parses the system calls that it makes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::TEST_TIMEOUT;
use crate::server::{PROGRAM, ProgramExit, Server, clean};
use crate::skip::skip;

/// Whether strace is installed and permitted to trace. If not, reports that the test `name` is
/// skipped.
pub(crate) fn can_trace(name: &str) -> bool {
    static WHY_NOT: OnceLock<Option<&str>> = OnceLock::new();
    let why_not = WHY_NOT.get_or_init(|| {
        let outcome = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "true"])
            .output();
        match outcome {
            Err(_) => Some("strace is not installed (apt-get install strace)"),
            Ok(output) if !output.status.success() => Some("this machine forbids ptrace"),
            Ok(_) => None,
        }
    });
    if let Some(why) = why_not {
        skip(name, why);
    }
    why_not.is_none()
}

/// A server under strace. The process ID of `server` is that of the program, not of strace.
pub(crate) struct TracedServer {
    pub(crate) server: Server,
    directory: TempDir,
}

impl TracedServer {
    /// Serves `path` with one worker, on a free port of 127.0.0.1, under strace. `options` are
    /// additional options for strace.
    pub(crate) fn start(path: &Path, flags: &[&str], options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = clean(Command::new("strace"));
        // -D makes strace run as a grandchild, so that the child of this process is the program
        // itself.
        command
            .args(["-D", "-f", "-q", "-y", "-o"])
            .arg(directory.path().join("trace"))
            .args(options)
            .args([PROGRAM, "serve"])
            .arg(path)
            .args(["--listen", "127.0.0.1:0", "--threads", "1"])
            .args(flags);
        Self {
            server: Server::spawn(command, 1),
            directory,
        }
    }

    /// Stops the server. Returns its exit and every system call that it made.
    pub(crate) fn stop(self) -> (ProgramExit, Trace) {
        let id = self.server.id().to_string();
        let is_last = |line: &str| {
            let event = line.strip_prefix(&id).map(str::trim_start);
            event.is_some_and(|event| event.starts_with("+++ exited with "))
        };
        let exit = self.server.stop();
        let began = Instant::now();
        // Wait for the last line, because strace may write it after the program has exited.
        loop {
            let text = fs::read(self.directory.path().join("trace")).unwrap();
            let text = String::from_utf8_lossy(&text);
            if text.lines().rev().any(is_last) {
                return (exit, Trace::parse(&text));
            }
            assert!(
                began.elapsed() < TEST_TIMEOUT,
                "strace does not finish:\n{text}"
            );
            sleep(Duration::from_millis(10));
        }
    }
}

/// The system calls of all threads, in the order in which they returned.
pub(crate) struct Trace {
    pub(crate) calls: Vec<Call>,
}

/// A system call that has returned.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) thread: u32,
    pub(crate) name: String,
    /// The arguments and the result, as printed by strace.
    pub(crate) text: String,
    /// The return value: -1 for an error, 0 if strace did not print a number.
    pub(crate) result: i64,
    /// The lines of the trace on which the call began and returned.
    pub(crate) lines: (usize, usize),
}

impl Trace {
    fn parse(text: &str) -> Self {
        let mut unfinished: Vec<(u32, usize, String)> = Vec::new();
        let mut calls = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let Some((thread, rest)) = line.split_once(' ') else {
                continue;
            };
            let thread: u32 = thread.parse().unwrap();
            let rest = rest.trim_start();
            if let Some(start) = rest.strip_suffix("<unfinished ...>") {
                unfinished.push((thread, number, start.to_owned()));
            } else if let Some((_, tail)) = rest.split_once(" resumed>") {
                let at = unfinished.iter().position(|(other, ..)| *other == thread);
                let (_, began, start) = unfinished.swap_remove(at.unwrap());
                calls.extend(Call::parse(
                    thread,
                    (began, number),
                    &format!("{start}{tail}"),
                ));
            } else {
                calls.extend(Call::parse(thread, (number, number), rest));
            }
        }
        Self { calls }
    }

    /// Returns the calls with one of these names.
    pub(crate) fn calls_named<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a Call> {
        self.calls
            .iter()
            .filter(|call| names.contains(&call.name.as_str()))
    }

    /// Returns the calls with a descriptor of the file `name` among their arguments. strace's `-y`
    /// option prints the path after each descriptor, as in `7</site/name>`.
    pub(crate) fn calls_on_file(&self, name: &str) -> Vec<&Call> {
        let descriptor = format!("/{name}>");
        let is_on_file = |call: &&Call| call.arguments().contains(&descriptor);
        self.calls.iter().filter(is_on_file).collect()
    }
}

impl Call {
    fn parse(thread: u32, lines: (usize, usize), line: &str) -> Option<Self> {
        let (name, text) = line.split_once('(')?;
        let (_, result) = text.rsplit_once(" = ")?;
        let result = result.split([' ', '<', '?']).next().unwrap_or_default();
        let number = match result.strip_prefix("0x") {
            Some(digits) => i64::from_str_radix(digits, 16),
            None => result.parse(),
        };
        Some(Self {
            thread,
            name: name.to_owned(),
            text: text.to_owned(),
            result: number.unwrap_or(0),
            lines,
        })
    }

    pub(crate) fn arguments(&self) -> &str {
        self.text
            .rsplit_once(" = ")
            .map_or(&self.text, |(arguments, _)| arguments)
    }

    /// Returns the argument at this index. The text is split at commas, so no argument before it
    /// may contain a comma.
    pub(crate) fn argument(&self, index: usize) -> &str {
        let argument = self.arguments().split(", ").nth(index).unwrap();
        argument.trim_end().trim_end_matches(')')
    }
}

/// Returns the number of bytes that the calls moved, which is the sum of their results. Failed
/// calls count as 0.
pub(crate) fn bytes_moved<'a>(calls: impl IntoIterator<Item = &'a Call>) -> u64 {
    calls
        .into_iter()
        .map(|call| u64::try_from(call.result).unwrap_or(0))
        .sum()
}
