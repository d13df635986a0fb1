//! What is watched: a program that is started for it, or a process that runs already.

use std::ffi::OsString;
use std::io;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, WaitIdStatus, kill_process, waitid};

use super::process::{self, CpuTime};
use crate::error::Error;

/// How long a program may take to end after a signal, before it gets the next one.
const TIME_TO_END: Duration = Duration::from_secs(5);

/// What is watched.
pub(super) enum Target {
    /// A program that was started for it.
    Started(Started),
    /// A process that ran before.
    Running { process: i32, before: CpuTime },
}

/// A program that was started to be watched. It is killed when this is dropped.
pub(super) struct Started {
    child: Child,
    /// The next signal, and when it is due.
    next_signal: Option<(Instant, Signal)>,
    /// Whether a signal was sent.
    was_signalled: bool,
}

impl Target {
    /// Starts a program. The events that watch it must have been opened before, by this thread.
    pub(super) fn start(command: &[OsString]) -> Result<Self, Error> {
        let (program, arguments) = command.split_first().ok_or_else(|| Error::StartCommand {
            command: String::new(),
            source: io::ErrorKind::NotFound.into(),
        })?;
        let child = Command::new(program).args(arguments).spawn();
        let child = child.map_err(|source| Error::StartCommand {
            command: program.display().to_string(),
            source,
        })?;
        Ok(Self::Started(Started {
            child,
            next_signal: None,
            was_signalled: false,
        }))
    }

    /// Watches a process that runs already.
    pub(super) fn running(process: i32) -> Self {
        Self::Running {
            process,
            before: process::cpu_time(&process::tree(process)),
        }
    }

    /// The process, which may have ended.
    pub(super) fn process(&self) -> i32 {
        match self {
            Self::Started(started) => started.pid().as_raw_nonzero().get(),
            Self::Running { process, .. } => *process,
        }
    }

    /// Whether the process has ended. Sends signals that are due.
    pub(super) fn has_ended(&mut self) -> bool {
        match self {
            Self::Started(started) => started.has_ended(),
            Self::Running { process, .. } => !process::is_running(*process),
        }
    }

    /// Ends a started program with SIGTERM, and with SIGKILL if that does not help. With `wait`,
    /// it first gets time to end by itself. A process that ran before is left alone.
    ///
    /// Returns whether there is something to wait for.
    pub(super) fn end(&mut self, wait: bool) -> bool {
        match self {
            Self::Started(started) => {
                let due = Instant::now() + if wait { TIME_TO_END } else { Duration::ZERO };
                started.end_at(due);
                true
            }
            Self::Running { .. } => false,
        }
    }

    /// Returns how a started program that has ended by itself has failed.
    pub(super) fn failure(&self) -> Option<String> {
        match self {
            Self::Started(started) if !started.was_signalled => started.failure(),
            _ => None,
        }
    }

    /// The CPU time of the process and its descendants since the beginning.
    pub(super) fn cpu_time(&self) -> CpuTime {
        let now = process::cpu_time(&process::tree(self.process()));
        match self {
            Self::Started(_) => now,
            Self::Running { before, .. } => now.since(*before),
        }
    }
}

impl Started {
    fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// Sends SIGTERM when it is due. A further request must put off neither that nor SIGKILL.
    fn end_at(&mut self, due: Instant) {
        let is_earlier = |(other, signal)| signal == Signal::TERM && due < other;
        if self.next_signal.is_none_or(is_earlier) {
            self.next_signal = Some((due, Signal::TERM));
        }
    }

    fn has_ended(&mut self) -> bool {
        if let Some((due, signal)) = self.next_signal
            && Instant::now() >= due
        {
            self.was_signalled = true;
            // It fails if the program has ended, which the next lines find out.
            let _ = kill_process(self.pid(), signal);
            self.next_signal = match signal {
                Signal::KILL => None,
                _ => Some((Instant::now() + TIME_TO_END, Signal::KILL)),
            };
        }
        match self.status() {
            Ok(status) => status.is_some(),
            Err(_) => true,
        }
    }

    /// Returns how the program has ended. It is left as a zombie until this value is dropped, so
    /// that its CPU time can be read.
    fn status(&self) -> rustix::io::Result<Option<WaitIdStatus>> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        waitid(WaitId::Pid(self.pid()), options)
    }

    fn failure(&self) -> Option<String> {
        let status = self.status().ok()??;
        match (status.exit_status(), status.terminating_signal()) {
            (Some(0), _) | (None, None) => None,
            (Some(code), _) => Some(format!("ended with exit status {code}")),
            (None, Some(signal)) => Some(format!("was ended by signal {signal}")),
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        // Both fail if the program has ended and was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_further_request_puts_off_no_signal() {
        let now = Instant::now();
        let later = now + TIME_TO_END;
        let mut started = Started {
            child: Command::new("sleep")
                .arg("3600")
                .spawn()
                .expect("it starts"),
            next_signal: None,
            was_signalled: false,
        };
        started.end_at(later);
        assert_eq!(started.next_signal, Some((later, Signal::TERM)));
        started.end_at(later + TIME_TO_END);
        assert_eq!(started.next_signal, Some((later, Signal::TERM)));
        started.end_at(now);
        assert_eq!(started.next_signal, Some((now, Signal::TERM)));
        started.next_signal = Some((later, Signal::KILL));
        started.end_at(now);
        assert_eq!(started.next_signal, Some((later, Signal::KILL)));
    }
}
