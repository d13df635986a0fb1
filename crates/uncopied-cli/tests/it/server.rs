//! Runs the program under test on a free port. Dropping a [`Server`] kills the program if it is
//! still running.

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

use crate::client::TEST_TIMEOUT;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_uncopied");

/// Returns a command that runs the program without the environment variables that set its flags.
pub(crate) fn program() -> Command {
    clean(Command::new(PROGRAM))
}

/// Prepares the environment of a command: unsets all variables that the program reads, and connects
/// standard input to /dev/null.
pub(crate) fn clean(mut command: Command) -> Command {
    let is_read = |name: &str| name.starts_with("UNCOPIED_") || name.starts_with("LISTEN_");
    for (name, _) in std::env::vars().filter(|(name, _)| is_read(name)) {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// The size of the file `big`: more than the kernel will buffer for one connection.
pub(crate) const BIG_FILE_BYTES: usize = 40 << 20;

/// Creates a directory with `index.html` ("hello\n") and `big` (a sparse file of 40 MiB).
pub(crate) fn site() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("index.html"), "hello\n").unwrap();
    File::create(directory.path().join("big"))
        .unwrap()
        .set_len(BIG_FILE_BYTES as u64)
        .unwrap();
    directory
}

/// A running program.
pub(crate) struct Server {
    child: Child,
    stderr: Receiver<String>,
    stdout: Option<Receiver<Vec<u8>>>,
    /// The lines of standard error that have been read so far.
    seen_stderr: Vec<String>,
    pub(crate) urls: Vec<String>,
    has_exited: bool,
}

/// The exit status and the output of the program.
pub(crate) struct ProgramExit {
    pub(crate) status: ExitStatus,
    /// The lines of standard error.
    pub(crate) stderr: Vec<String>,
    pub(crate) stdout: String,
}

impl ProgramExit {
    /// Returns the totals, which are in the last line of standard error.
    pub(crate) fn totals(&self) -> Totals {
        Totals::parse(self.stderr.last().unwrap())
    }
}

/// The parsed line of totals.
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
    pub(crate) fn parse(line: &str) -> Self {
        let words: Vec<_> = line.split([' ', ',', ':', ';']).collect();
        let at = |word| words.iter().position(|other| *other == word).unwrap();
        let before = |at: usize| words[at - 1].parse().unwrap();
        let after = |word| words[at(word) + 1].parse().unwrap();
        Self {
            requests: before(
                words
                    .iter()
                    .position(|word| word.starts_with("request"))
                    .unwrap(),
            ),
            bytes: before(at("sent") - 1),
            sendfile: after("sendfile"),
            splice: after("splice"),
            mmap_write: after("mmap_write"),
            copy: after("copy"),
        }
    }
}

impl Server {
    /// Serves `path` on a free port of 127.0.0.1, with additional flags.
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

    /// Runs `command`, and waits until it has printed the given number of URLs.
    pub(crate) fn spawn(command: Command, urls: usize) -> Self {
        Self::spawn_with_stdout(command, urls, Stdio::piped())
    }

    /// Like [`Server::spawn`], with another standard output than a pipe.
    pub(crate) fn spawn_with_stdout(mut command: Command, urls: usize, stdout: Stdio) -> Self {
        let mut child = command
            .stdout(stdout)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, stderr_lines) = channel();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        thread::spawn(move || {
            for line in stderr.lines() {
                let _ = sender.send(line.unwrap());
            }
        });
        let mut server = Self {
            child,
            stderr: stderr_lines,
            stdout: None,
            seen_stderr: vec![],
            urls: vec![],
            has_exited: false,
        };
        while server.urls.len() < urls {
            let line = server.wait_for_line(" on ");
            server
                .urls
                .push(line.rsplit(' ').next().unwrap().to_owned());
        }
        server
    }

    /// Starts collecting standard output. Unless this is called, the pipe is not read.
    pub(crate) fn collect_stdout(&mut self) {
        let mut stdout = self.child.stdout.take().unwrap();
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut bytes = Vec::new();
            stdout.read_to_end(&mut bytes).unwrap();
            let _ = sender.send(bytes);
        });
        self.stdout = Some(receiver);
    }

    /// Closes the reading end of standard output.
    pub(crate) fn close_stdout(&mut self) {
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

    /// Waits for the next line on standard error that contains `text`.
    pub(crate) fn wait_for_line(&mut self, text: &str) -> String {
        loop {
            let Ok(line) = self.stderr.recv_timeout(TEST_TIMEOUT) else {
                panic!(
                    "no line with {text:?} on standard error, but {:?}",
                    self.seen_stderr
                );
            };
            self.seen_stderr.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Sends SIGTERM and waits for the exit.
    pub(crate) fn stop(self) -> ProgramExit {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Waits for the exit.
    pub(crate) fn wait(mut self) -> ProgramExit {
        let began = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(
                began.elapsed() < TEST_TIMEOUT,
                "still running; standard error: {:?}",
                self.seen_stderr
            );
            thread::sleep(Duration::from_millis(5));
        };
        self.has_exited = true;
        let mut stderr = std::mem::take(&mut self.seen_stderr);
        // Add the remaining lines. The iteration ends when the thread that reads standard error
        // ends, which happens once the program has exited.
        stderr.extend(self.stderr.iter());
        let stdout = self.stdout.take().map_or_else(Vec::new, |stdout| {
            stdout.recv_timeout(TEST_TIMEOUT).unwrap()
        });
        ProgramExit {
            status,
            stderr,
            stdout: String::from_utf8(stdout).unwrap(),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.has_exited {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Runs the program with arguments that make it exit by itself. Returns the exit status, standard
/// output and standard error.
pub(crate) fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = program().args(arguments).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

/// Asserts that the program fails with this exit status, and prints a single line that contains
/// every one of `words`.
pub(crate) fn assert_fails(arguments: &[&str], status: i32, words: &[&str]) {
    let (code, _, stderr) = run(arguments);
    assert_eq!(code, Some(status), "{arguments:?}: {stderr}");
    assert!(stderr.starts_with("uncopied: "), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    for word in words {
        assert!(stderr.contains(word), "{word:?} is missing in {stderr}");
    }
}

impl Server {
    /// Returns the resident memory of the process, in KiB.
    pub(crate) fn resident_kib(&self) -> f64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }
}
