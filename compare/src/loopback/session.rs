//! Sets up a run of `memory`, `copy`, `receive`, `get` or `relay` (its directories, the description
//! of the machine, the receiver), and runs the processes of its contenders.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use tempfile::TempDir;

use super::options::LoopbackOptions;
use super::receiver::Receiver;
use crate::error::{Context, Error};
use crate::process::{self, PinnedChild};
use crate::{interrupt, machine, page};

/// The time limit for a contender to exit after its connection has ended.
const EXIT_LIMIT: Duration = Duration::from_secs(10);

/// After a failure, the time that a contender has to print the reason and exit before its output is
/// read.
const FAILURE_MESSAGE_DELAY: Duration = Duration::from_millis(100);

/// A run of `memory`, `copy`, `receive`, `get` or `relay`.
pub(crate) struct Session {
    scratch: TempDir,
    output_directory: Option<PathBuf>,
    facts: Vec<(&'static str, String)>,
    sender_cpu: usize,
    receiver_cpu: usize,
}

impl Session {
    /// Checks the options, and prepares the directories.
    ///
    /// The report will be written to `out`. If `out` is `None`, the report of a complete run will
    /// be written to `benchmarks/DATE-NAME-COMPARISON`, and the report of an incomplete run will
    /// only be printed.
    pub(crate) fn open(
        comparison: &str,
        options: &LoopbackOptions,
        out: Option<&Path>,
        is_incomplete: bool,
    ) -> Result<Self, Error> {
        page::check_name(options.name.as_deref())?;
        process::check_cpus(
            [options.sender_cpu, options.receiver_cpu],
            "--sender-cpu and --receiver-cpu",
            "senders and receiver",
        )?;
        interrupt::watch()?;
        page::warn_of_debug_build();
        let output_directory = page::output_directory(out, is_incomplete, || {
            let name = options.name.clone().unwrap_or_else(machine::host_name);
            format!("{name}-{comparison}")
        })?;
        let scratch = tempfile::Builder::new()
            .prefix("compare-")
            .tempdir_in(machine::scratch_parent(options.dir.as_deref())?)
            .context(|| "cannot create a directory for temporary files".into())?;
        let mut facts = machine::facts(scratch.path());
        facts.extend(machine::tcp_facts());
        Ok(Self {
            scratch,
            output_directory,
            facts,
            sender_cpu: options.sender_cpu,
            receiver_cpu: options.receiver_cpu,
        })
    }

    /// Opens the receiver, and pins this thread, which will receive, to the receiver's CPU.
    pub(crate) fn receiver(&self, congestion: &str) -> Result<Receiver, Error> {
        let receiver = Receiver::listen(congestion)?;
        process::pin_to(self.receiver_cpu)?;
        Ok(receiver)
    }

    /// Pins this thread, which will send, to the sender's CPU.
    pub(crate) fn pin_this_sender(&self) -> Result<(), Error> {
        process::pin_to(self.sender_cpu)
    }

    /// A directory for temporary files. It is removed when the session is dropped.
    pub(crate) fn scratch(&self) -> &Path {
        self.scratch.path()
    }

    /// The directory to write the report into, or `None` if the report is only printed.
    pub(crate) fn output_directory(&self) -> Option<&Path> {
        self.output_directory.as_deref()
    }

    /// Names and values that describe the machine.
    pub(crate) fn facts(&self) -> &[(&'static str, String)] {
        &self.facts
    }

    /// Starts a sender, calls `receive` with the sender's process, and waits until the process
    /// exits. Returns the result of `receive`, and the text that the sender printed on standard
    /// output.
    ///
    /// If `receive` fails, returns the most informative error available: the error that `failure`
    /// finds in the sender's output, otherwise the error that describes how the sender exited,
    /// otherwise the error of `receive`.
    pub(crate) fn run_sender<T>(
        &self,
        command: &[OsString],
        receive: impl FnOnce(&mut PinnedChild) -> Result<T, Error>,
        failure: impl FnOnce(&str) -> Option<Error>,
    ) -> Result<(T, String), Error> {
        self.run_child(command, self.sender_cpu, receive, failure)
    }

    /// Starts a receiver, calls `send` with the receiver's process, and waits until the process
    /// exits. Returns the result of `send`, and the text that the receiver printed on standard
    /// output. If `send` fails, returns the most informative error available, as
    /// [`run_sender`](Self::run_sender) does.
    pub(crate) fn run_receiver<T>(
        &self,
        command: &[OsString],
        send: impl FnOnce(&mut PinnedChild) -> Result<T, Error>,
    ) -> Result<(T, String), Error> {
        self.run_child(command, self.receiver_cpu, send, |_| None)
    }

    fn run_child<T>(
        &self,
        command: &[OsString],
        cpu: usize,
        other_side: impl FnOnce(&mut PinnedChild) -> Result<T, Error>,
        failure: impl FnOnce(&str) -> Option<Error>,
    ) -> Result<(T, String), Error> {
        let printed = self.scratch().join("stdout");
        let output =
            File::create(&printed).context(|| format!("cannot write {}", printed.display()))?;
        let errors = self.scratch().join("stderr");
        let mut child = PinnedChild::start(command, cpu, Stdio::from(output), &errors)?;
        let result = match other_side(&mut child) {
            Ok(result) => result,
            Err(Error::Interrupted) => return Err(Error::Interrupted),
            Err(error) => {
                // Give the contender time to exit. If it exits, its last message says more about
                // the cause than `error`, which may only say that the connection broke.
                thread::sleep(FAILURE_MESSAGE_DELAY);
                let error = child.check_alive().err().unwrap_or(error);
                return Err(failure(&read(&printed)?).unwrap_or(error));
            }
        };
        child.wait(EXIT_LIMIT)?;
        Ok((result, read(&printed)?))
    }
}

fn read(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path).context(|| format!("cannot read {}", path.display()))
}
