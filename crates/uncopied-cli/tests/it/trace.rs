//! What the program asks of the kernel, as strace saw it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::client::PATIENCE;
use crate::server::{End, PROGRAM, Server, clean};
use crate::skip::skip;

/// Whether strace is here and may trace. Otherwise the test `name` is skipped.
pub(crate) fn can_trace(name: &str) -> bool {
    static WHY_NOT: OnceLock<Option<&str>> = OnceLock::new();
    let why_not = WHY_NOT.get_or_init(|| {
        let tried = Command::new("strace")
            .args(["-f", "-o", "/dev/null", "true"])
            .output();
        match tried {
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

/// A server under strace. Its process is the program's own.
pub(crate) struct Traced {
    pub(crate) server: Server,
    directory: TempDir,
}

impl Traced {
    /// Serves `path` by one thread on a free port of 127.0.0.1, under strace with further options.
    pub(crate) fn start(path: &Path, flags: &[&str], options: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = clean(Command::new("strace"));
        // -D: the tracer is the grandchild, so that signals and the exit status are the program's.
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

    /// Stops the server. Returns every call that it made.
    pub(crate) fn stop(self) -> (End, Trace) {
        let id = self.server.id().to_string();
        let is_last = |line: &str| {
            let said = line.strip_prefix(&id).map(str::trim_start);
            said.is_some_and(|said| said.starts_with("+++ exited with "))
        };
        let end = self.server.stop();
        let began = Instant::now();
        // strace writes the end when it has seen it, which may be after everybody else.
        loop {
            let text = fs::read(self.directory.path().join("trace")).unwrap();
            let text = String::from_utf8_lossy(&text);
            if text.lines().rev().any(is_last) {
                return (end, Trace::of(&text));
            }
            assert!(began.elapsed() < PATIENCE, "strace does not end:\n{text}");
            sleep(Duration::from_millis(10));
        }
    }
}

/// The calls of all threads, in the order in which they returned.
pub(crate) struct Trace {
    pub(crate) calls: Vec<Call>,
}

/// One call that has returned.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) thread: u32,
    pub(crate) name: String,
    /// Arguments and result, as strace prints them.
    pub(crate) text: String,
    /// What the call returned, -1 for an error, 0 if it was no number.
    pub(crate) result: i64,
    /// The line on which it began, and the one on which it returned.
    pub(crate) lines: (usize, usize),
}

impl Trace {
    fn of(text: &str) -> Self {
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
                calls.extend(Call::of(thread, (began, number), &format!("{start}{tail}")));
            } else {
                calls.extend(Call::of(thread, (number, number), rest));
            }
        }
        Self { calls }
    }

    /// The calls of these names.
    pub(crate) fn named<'a>(&'a self, names: &'a [&str]) -> impl Iterator<Item = &'a Call> {
        self.calls
            .iter()
            .filter(|call| names.contains(&call.name.as_str()))
    }

    /// The calls on the file that ends with `name`, by descriptor.
    pub(crate) fn on_file(&self, name: &str) -> Vec<&Call> {
        let mark = format!("/{name}>");
        let on_it = |call: &&Call| call.arguments().contains(&mark);
        self.calls.iter().filter(on_it).collect()
    }
}

impl Call {
    fn of(thread: u32, lines: (usize, usize), line: &str) -> Option<Self> {
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

    /// An argument by its place. Only for calls whose arguments hold no comma before it.
    pub(crate) fn argument(&self, at: usize) -> &str {
        let argument = self.arguments().split(", ").nth(at).unwrap();
        argument.trim_end().trim_end_matches(')')
    }
}

/// The bytes that calls moved.
pub(crate) fn moved<'a>(calls: impl IntoIterator<Item = &'a Call>) -> u64 {
    calls
        .into_iter()
        .map(|call| u64::try_from(call.result).unwrap_or(0))
        .sum()
}
