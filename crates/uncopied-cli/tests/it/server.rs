//! The program under test: started on a free port, stopped at the latest when dropped.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::client::PATIENCE;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_uncopied");

/// The program, with no flag of its own in the environment.
pub(crate) fn program() -> Command {
    clean(Command::new(PROGRAM))
}

pub(crate) fn clean(mut command: Command) -> Command {
    let ours = |name: &str| name.starts_with("UNCOPIED_") || name.starts_with("LISTEN_");
    for (name, _) in std::env::vars().filter(|(name, _)| ours(name)) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// A directory with `index.html` ("hello\n") and `big` (a sparse file of 40 MiB).
pub(crate) fn site() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("index.html"), "hello\n").unwrap();
    File::create(directory.path().join("big"))
        .unwrap()
        .set_len(BIG as u64)
        .unwrap();
    directory
}

/// The length of `big`: more than the kernel buffers for a connection.
pub(crate) const BIG: usize = 40 << 20;

pub(crate) struct Server {
    child: Child,
    lines: Receiver<String>,
    output: Option<Receiver<Vec<u8>>>,
    said: Vec<String>,
    pub(crate) urls: Vec<String>,
    is_over: bool,
}

/// How the program ended.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// Standard error, line by line.
    pub(crate) said: Vec<String>,
    /// Standard output.
    pub(crate) output: String,
}

impl End {
    /// The totals that the program said last.
    pub(crate) fn totals(&self) -> Totals {
        Totals::of(self.said.last().unwrap())
    }
}

/// The line of totals, read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) sendfile: u64,
    pub(crate) splice: u64,
    pub(crate) mmap_write: u64,
    pub(crate) copy: u64,
}

impl Totals {
    pub(crate) fn of(line: &str) -> Self {
        let words: Vec<_> = line.split([' ', ',', ':', ';']).collect();
        let at = |word| words.iter().position(|other| *other == word).unwrap();
        let before = |word| words[at(word) - 1].parse().unwrap();
        let after = |word| words[at(word) + 1].parse().unwrap();
        Self {
            requests: before("requests"),
            bytes: before("bytes"),
            sendfile: after("sendfile"),
            splice: after("splice"),
            mmap_write: after("mmap_write"),
            copy: after("copy"),
        }
    }
}

impl Server {
    /// Serves `path` on a free port of 127.0.0.1, with further flags.
    pub(crate) fn start(path: &Path, flags: &[&str]) -> Self {
        let mut command = program();
        command
            .arg("serve")
            .arg(path)
            .args(["--listen", "127.0.0.1:0"])
            .args(flags);
        Self::spawn(
            command,
            1 + flags.iter().filter(|flag| **flag == "--listen").count(),
        )
    }

    /// Runs `command` until it has said `urls` times where it serves.
    pub(crate) fn spawn(mut command: Command, urls: usize) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (to, lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines() {
                let _ = to.send(line.unwrap());
            }
        });
        let mut server = Self {
            child,
            lines,
            output: None,
            said: vec![],
            urls: vec![],
            is_over: false,
        };
        while server.urls.len() < urls {
            let line = server.wait_for(" on ");
            server
                .urls
                .push(line.rsplit(' ').next().unwrap().to_owned());
        }
        server
    }

    /// Collects standard output from now on. Without it, nobody reads the pipe.
    pub(crate) fn collect_output(&mut self) {
        let mut stdout = self.child.stdout.take().unwrap();
        let (to, output) = channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).unwrap();
            let _ = to.send(bytes);
        });
        self.output = Some(output);
    }

    /// Closes the reading end of standard output.
    pub(crate) fn close_output(&mut self) {
        drop(self.child.stdout.take());
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.urls[0]
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .parse()
            .unwrap()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line on standard error that contains `text`.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.lines.recv_timeout(PATIENCE) else {
                panic!(
                    "no line with {text:?} on standard error, but {:?}",
                    self.said
                );
            };
            self.said.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// SIGTERM, and how it ended.
    pub(crate) fn stop(self) -> End {
        self.signal(Signal::TERM);
        self.end()
    }

    /// Waits for the end.
    pub(crate) fn end(mut self) -> End {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                began.elapsed() < PATIENCE,
                "still running; it said {:?}",
                self.said
            );
            thread::sleep(Duration::from_millis(5));
        };
        self.is_over = true;
        let mut said = std::mem::take(&mut self.said);
        // The thread that reads standard error ends with the program.
        said.extend(self.lines.iter());
        let output = self
            .output
            .take()
            .map_or_else(Vec::new, |output| output.recv_timeout(PATIENCE).unwrap());
        End {
            status,
            said,
            output: String::from_utf8(output).unwrap(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.is_over {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs a command that ends by itself: status, standard output, standard error.
pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = program().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Asserts that a command fails with this status and one line that contains every one of `words`.
pub(crate) fn assert_fails(arguments: &[&str], status: i32, words: &[&str]) {
    let (code, _, said) = run(arguments);
    assert_eq!(code, Some(status), "{arguments:?}: {said}");
    assert!(said.starts_with("uncopied: "), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is missing in {said}");
    }
}

impl Server {
    /// The process's resident memory, in KiB.
    pub(crate) fn resident_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
